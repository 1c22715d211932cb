/** What a page of dashboards holds, unpacked once, and what its parts ask of it. */

import type { Dashboard } from "./figure";
import { unpack, type Values } from "./packed";
import { visible } from "./words";

export interface Example {
  group: number;
  value: number;
  /** Values around, as shares of the latent's largest. */
  shares: number[];
  tokens: string[];
  /** Nats that each token gains; null where it is not known. */
  effects: (number | null)[] | null;
  /** Of a picture. */
  picture: number;
  place: number;
}
export interface Active {
  latent: number;
  value: number;
}

export class Pages {
  readonly latents: Values;
  readonly columns: Map<string, Values>;
  readonly size: number;
  readonly reach: number;
  readonly #data: Dashboard;
  readonly #parts = new Map<object, Values>();
  #words: string[] | null = null;

  constructor(data: Dashboard) {
    this.#data = data;
    this.latents = unpack(data.latents);
    this.size = this.latents.length;
    this.columns = new Map(Object.entries(data.columns).map(([name, values]) => [name, unpack(values)]));
    this.reach = data.examples.windows.shape[1];
  }

  /** Unpacked when it is first asked for. */
  of(array: Dashboard["latents"]): Values {
    const known = this.#parts.get(array);
    if (known) return known;
    const values = unpack(array);
    this.#parts.set(array, values);
    return values;
  }

  word(token: number): string {
    return this.#data.vocabulary[token];
  }

  range(latent: number): [number, number] {
    const starts = this.of(this.#data.examples.starts);
    return [starts[latent], starts[latent + 1]];
  }

  example(number: number, latent: number): Example {
    const { examples, pictures } = this.#data;
    const [n, from] = [this.reach, number * this.reach];
    const row = examples.measured ? this.of(examples.measured)[number] : 0;
    return {
      group: this.of(examples.groups)[number],
      value: this.of(examples.values)[number],
      shares: Array.from(this.of(examples.windows).subarray(from, from + n), (v) => v / 255),
      tokens: examples.tokens ? Array.from(this.of(examples.tokens).subarray(from, from + n), (t) => this.word(t)) : [],
      effects: row ? this.#effects(row - 1, latent) : null,
      picture: pictures ? this.of(pictures.of)[number] : -1,
      place: pictures ? this.of(pictures.places)[number] : -1,
    };
  }

  examples(latent: number): Example[] {
    const [from, to] = this.range(latent);
    return Array.from({ length: to - from }, (_, i) => this.example(from + i, latent));
  }

  favoured(latent: number, most: boolean): { token: string; value: number }[] {
    const logits = this.#data.logits;
    if (!logits) return [];
    const both = logits.tokens.shape[1];
    const from = latent * both + (most ? 0 : both / 2);
    return Array.from({ length: both / 2 }, (_, i) => ({ token: this.word(this.of(logits.tokens)[from + i]), value: this.of(logits.values)[from + i] }));
  }

  /** The token at which it is highest, or what it makes likeliest: a word for a list. */
  hint(latent: number): string {
    const [from, to] = this.range(latent);
    const tokens = this.#data.examples.tokens;
    const peak = tokens && to > from ? visible(this.word(this.of(tokens)[from * this.reach + (this.reach >> 1)])) : "";
    const next = this.favoured(latent, true).slice(0, 2).map((one) => visible(one.token));
    return [peak, ...(next.length ? [`→ ${next.join(" ")}`] : [])].join(" ");
  }

  /** The first few pictures in which it is highest. */
  pictures(latent: number): number[] {
    const [from, to] = this.range(latent);
    return Array.from(this.of(this.#data.pictures!.of).subarray(from, Math.min(to, from + 4)));
  }

  /** Positions in the list of the latents that match: their number, a text in examples, one of their logits. */
  matching(query: string, where: "anywhere" | "examples" | "logits"): Set<number> | null {
    const wanted = query.trim() === "" ? "" : query;
    if (!wanted) return null;
    const found = new Set<number>();
    const number = /^#?(\d+)$/.exec(wanted.trim());
    if (number) for (let i = 0; i < this.size; i++) if (String(this.latents[i]).startsWith(number[1])) found.add(i);
    const test = tester(wanted);
    for (let i = 0; i < this.size; i++) {
      if (found.has(i)) continue;
      if (where !== "examples" && [true, false].some((most) => this.favoured(i, most).some((one) => test(one.token)))) found.add(i);
      else if (where !== "logits" && this.#texts(i).some(test)) found.add(i);
    }
    return found;
  }

  active(text: Dashboard["texts"][number], position: number): Active[] {
    const [starts, latents, values] = [text.starts, text.latents, text.values].map((part) => this.of(part));
    return Array.from({ length: starts[position + 1] - starts[position] }, (_, i) => ({
      latent: latents[starts[position] + i],
      value: values[starts[position] + i],
    }));
  }

  #texts(latent: number): string[] {
    const tokens = this.#data.examples.tokens;
    if (!tokens) return [];
    const starts = this.of(this.#data.examples.starts);
    if (!this.#words) {
      const [ids, n] = [this.of(tokens), this.reach];
      this.#words = Array.from({ length: starts[this.size] }, (_, row) => {
        let text = "";
        for (let i = row * n; i < (row + 1) * n; i++) text += this.#data.vocabulary[ids[i]];
        return text;
      });
    }
    return this.#words.slice(starts[latent], starts[latent + 1]);
  }

  #effects(row: number, latent: number): (number | null)[] {
    const { effects, scale } = this.#data.examples;
    const size = this.of(scale!)[latent] / 127;
    return Array.from(this.of(effects!).subarray(row * this.reach, (row + 1) * this.reach), (v) => (v === -128 ? null : v * size));
  }
}

/** `/…/` is a regular expression, anything else a text in either case. */
function tester(query: string): (text: string) => boolean {
  const pattern = /^\/(.+)\/(i?)$/.exec(query.trim());
  if (pattern) {
    try {
      const expression = new RegExp(pattern[1], pattern[2]);
      return (text) => expression.test(text);
    } catch {
      return () => false;
    }
  }
  const lower = query.toLowerCase();
  return (text) => text.toLowerCase().includes(lower);
}
