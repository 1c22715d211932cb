/** A matrix as a picture, one pixel a cell. */

import { rgbOf, type Scale } from "./colour";
import type { Num } from "./figure";

export function paint(canvas: HTMLCanvasElement, values: Num[][], scale: Scale, dark: boolean): HTMLCanvasElement {
  const [rows, columns] = [values.length, values[0].length];
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d")!;
  const image = context.createImageData(columns, rows);
  values.forEach((line, r) =>
    line.forEach((value, c) => {
      const rgb = rgbOf(value, scale, dark);
      if (rgb) image.data.set([...rgb, 255], 4 * (r * columns + c));
    }),
  );
  context.putImageData(image, 0, 0);
  return canvas;
}
