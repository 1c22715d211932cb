/** Arrays as vesalius.figures.dashboards packs them: base64 of little-endian bytes. */

export interface Packed {
  type: "u8" | "i8" | "u16" | "i32" | "f32";
  shape: number[];
  bytes: string;
}
export type Values = Uint8Array | Int8Array | Uint16Array | Int32Array | Float32Array;

const TYPES = { u8: Uint8Array, i8: Int8Array, u16: Uint16Array, i32: Int32Array, f32: Float32Array };

export function unpack(array: Packed): Values {
  const binary = atob(array.bytes);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new TYPES[array.type](bytes.buffer);
}
