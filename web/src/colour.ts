/** Colour scales, safe for colour-blind readers: blue is positive, orange negative, the ground is zero. */

import palette from "../../src/vesalius/figures/palette.json";
import type { Num } from "./figure";

type RGB = [number, number, number];

export interface Scale {
  low: number;
  high: number;
  diverging: boolean;
}

/** The scale of `values`: symmetric about 0 if diverging, else from 0 where that does not waste half of it. */
export function scaleOf(values: Iterable<Num>, diverging: boolean): Scale {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) [low, high] = [0, 1];
  if (diverging) {
    const most = Math.max(Math.abs(low), Math.abs(high)) || 1;
    return { low: -most, high: most, diverging };
  }
  if (low >= 0 && (low <= high / 2 || low === high)) low = 0;
  return { low, high: high === low ? low + 1 : high, diverging };
}

export function colourOf(value: Num, scale: Scale, dark: boolean): string {
  const rgb = rgbOf(value, scale, dark);
  return rgb ? `rgb(${rgb.join(" ")})` : "transparent";
}

export function rgbOf(value: Num, scale: Scale, dark: boolean): RGB | null {
  if (value === null) return null;
  const { low, high, diverging } = scale;
  if (!diverging) return along("positive", (value - low) / (high - low), dark);
  return value >= 0 ? along("positive", value / high, dark) : along("negative", value / low, dark);
}

/** Black or white, whichever reads better on this value's colour. */
export function inkOn(value: Num, scale: Scale, dark: boolean): string {
  const rgb = rgbOf(value, scale, dark);
  if (!rgb) return "inherit";
  const [r, g, b] = rgb.map((c) => (c / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.19 ? "#111" : "#fff";
}

export function series(index: number, dark: boolean): string {
  const colours = dark ? palette.series_dark : palette.series;
  return colours[index % colours.length];
}

/** A colour that goes round with an angle in degrees. */
export function cyclic(degrees: number, dark: boolean): string {
  const stops = (dark ? palette.cyclic_dark : palette.cyclic).map(parse);
  const at = ((((degrees % 360) + 360) % 360) / 360) * stops.length;
  const left = Math.floor(at) % stops.length;
  const right = stops[(left + 1) % stops.length];
  return `rgb(${stops[left].map((c, i) => Math.round(c + (right[i] - c) * (at % 1))).join(" ")})`;
}

export function ink(dark: boolean): { text: string; faint: string; rule: string } {
  return dark
    ? { text: "#d6d7da", faint: "#9a9ca3", rule: "#33363c" }
    : { text: "#22242a", faint: "#656873", rule: "#e3e3e0" };
}

function along(sign: "positive" | "negative", share: number, dark: boolean): RGB {
  const stops = (dark ? palette[`${sign}_dark`] : palette[sign]).map(parse);
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const left = Math.min(Math.floor(at), stops.length - 2);
  return stops[left].map((c, i) => Math.round(c + (stops[left + 1][i] - c) * (at - left))) as RGB;
}

function parse(hex: string): RGB {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)) as RGB;
}
