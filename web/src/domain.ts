/** The span of an axis: all values, a little air, and never a single point. */

import type { Num } from "./figure";

export function domain(values: Num[], air = 0.05): [number, number] {
  const known = values.filter((value) => value !== null);
  let low = known.reduce((a, b) => Math.min(a, b), Infinity);
  let high = known.reduce((a, b) => Math.max(a, b), -Infinity);
  if (low > high) [low, high] = [0, 1];
  if (low === high) [low, high] = low === 0 ? [0, 1] : [low - Math.abs(low) / 2, high + Math.abs(high) / 2];
  const more = (high - low) * air;
  return [low - more, high + more];
}

/** The same for bars: with zero, which needs no air. */
export function fromZero(values: Num[]): [number, number] {
  const [low, high] = domain([0, ...values], 0);
  const more = (high - low) * 0.06;
  return [low < 0 ? low - more : 0, high > 0 ? high + more : 0];
}

/** Round numbers along low to high, about `count` of them. */
export function roundNumbers(low: number, high: number, count: number): number[] {
  const power = 10 ** Math.floor(Math.log10((high - low) / count));
  const step = power * ([1, 2, 5].find((factor) => (high - low) / (factor * power) <= count) ?? 10);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}
