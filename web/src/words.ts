/** Numbers and tokens as people read them. */

import type { Num } from "./figure";

export function show(value: Num | undefined, digits = 3): string {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return minus(String(value));
  const text = size >= 1e5 || size < 1e-3 ? Number(value.toPrecision(digits)).toExponential() : String(Number(value.toPrecision(digits)));
  return minus(text);
}

/** A token with its whitespace made visible. */
export function visible(token: string): string {
  return token
    .replaceAll(" ", "␣")
    .replaceAll("\r", "␍")
    .replaceAll("\n", "↵")
    .replaceAll("\t", "⇥")
    .replaceAll(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\ufeff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** A label: words keep their spaces, and only what a reader would miss at the ends is made visible. */
export function label(text: string): string {
  const core = text.trim();
  if (!core) return visible(text);
  const start = text.indexOf(core);
  const inside = core.split(" ").map(visible).join(" ");
  return visible(text.slice(0, start)) + inside + visible(text.slice(start + core.length));
}

function minus(text: string): string {
  return text.replaceAll("-", "−");
}
