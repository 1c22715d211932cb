/** The JSON that vesalius.figures writes: one interface per kind of figure. */

import type { Packed } from "./packed";

export type Num = number | null;
export type Reference = ["x" | "y" | "diagonal", number, string];

/** Where along an axis, counted in cells, and what stands there. */
export type Tick = [number, string];

export interface Heatmap {
  values: Num[][][];
  x: string[] | null;
  y: string[] | null;
  x_ticks: Tick[] | null;
  y_ticks: Tick[] | null;
  panels: string[] | null;
  x_label: string;
  y_label: string;
  value_label: string;
  diverging: boolean;
}
export interface Scatter {
  x: Num[];
  y: Num[];
  labels: string[] | null;
  groups: string[] | null;
  x_label: string;
  y_label: string;
  references: Reference[];
}
export interface Lines {
  x: number[];
  series: Record<string, Num[]>;
  bands: Record<string, [Num[], Num[]]>;
  marks: [number, string][];
  x_label: string;
  y_label: string;
  log_x: boolean;
}
export interface Bars {
  labels: string[];
  series: Record<string, Num[]>;
  intervals: Record<string, [Num, Num][]>;
  y_label: string;
}
export interface Histogram {
  edges: number[];
  groups: Record<string, number[]>;
  sizes: Record<string, number>;
  x_label: string;
  references: Reference[];
}
export interface Polar {
  panels: Record<string, [Num, Num][]>;
}
export interface Attention {
  patterns: Num[][][];
  tokens: string[];
  heads: string[];
}
export interface TokenRow {
  label: string;
  tokens: string[] | null;
  layers: Record<string, Num[]>;
}
export interface Tokens {
  tokens: string[];
  rows: TokenRow[];
}
export interface Node {
  id: string;
  label: string;
  column: number | string;
}
export interface Edge {
  source: string;
  target: string;
  weight: number;
  kind: string;
}
export interface Graph {
  nodes: Node[];
  edges: Edge[];
}
export type Cell = string | number | null | { text: string; value: Num };
export interface Table {
  columns: string[];
  rows: Cell[][];
}
export interface Picture {
  src: string;
  width: number;
  height: number;
  alpha: boolean;
}
export interface Images {
  pictures: (Picture | null)[];
  labels: string[] | null;
  columns: number | null;
}
export interface GalleryRow {
  label: string;
  pictures: (Picture | null)[];
  texts: string[] | null;
}
export interface Gallery {
  columns: string[] | null;
  rows: GalleryRow[];
}
export interface Feature extends Node {
  picture: Picture | null;
}
export interface Kernel {
  source: string;
  target: string;
  weight: number;
  map: Num[][] | null;
  label: string | null;
}
export interface Circuit {
  nodes: Feature[];
  edges: Kernel[];
}
export interface Tuning {
  angles: number[];
  series: Record<string, Num[]>;
  value_label: string;
  radial: boolean;
}
export interface Labelling {
  pictures: Picture[];
  classes: string[];
  keys: string[];
}
export interface OneBoard {
  label: string;
  dark: Num[][] | null;
  light: Num[][] | null;
  values: Num[][] | null;
  legal: boolean[][] | null;
  marked: [number, number][];
}
export interface Board {
  boards: OneBoard[];
  stones: [string, string];
  value_label: string;
  diverging: boolean;
  columns: number | null;
}
/** What a reader said of the pictures: the class of each key. */
export type Labels = Record<string, string>;
export interface Dashboard {
  latents: Packed;
  columns: Record<string, Packed>;
  counts: Packed;
  widths: Packed;
  intervals: number;
  examples: {
    starts: Packed;
    groups: Packed;
    values: Packed;
    windows: Packed;
    tokens?: Packed;
    effects?: Packed;
    measured?: Packed;
    scale?: Packed;
  };
  logits: { tokens: Packed; values: Packed; counts: Packed; low: Packed; high: Packed } | null;
  related: { title: string; units: Packed; values: Packed }[];
  texts: { tokens: Packed; starts: Packed; latents: Packed; values: Packed }[];
  vocabulary: string[];
  pictures: {
    images: (Picture | null)[];
    of: Packed;
    places: Packed;
    columns: number;
    size: number;
    stride: number;
    offset: number;
  } | null;
}
export interface Group {
  figures: Figure[];
}

interface Kinds {
  heatmap: Heatmap;
  scatter: Scatter;
  lines: Lines;
  bars: Bars;
  histogram: Histogram;
  polar: Polar;
  attention: Attention;
  tokens: Tokens;
  graph: Graph;
  table: Table;
  images: Images;
  gallery: Gallery;
  circuit: Circuit;
  dashboard: Dashboard;
  tuning: Tuning;
  labelling: Labelling;
  board: Board;
  group: Group;
}
export type Figure = {
  [K in keyof Kinds]: { component: K; data: Kinds[K]; title: string; caption: string };
}[keyof Kinds];
