// What is painted over an image: the same on the screen, on thumbnails and in the saved picture.
// `rects` are [patch, x, y, width, height]; `unit` is the width of a thin line.

import { colours, place } from "./colours.js";

export function paintPhoto(context, picture, width, height) {
  context.imageSmoothingEnabled = !picture || width < 3 * picture.naturalWidth; // tiny pictures stay crisp
  context.fillStyle = "#777";
  if (picture) context.drawImage(picture, 0, 0, width, height);
  else context.fillRect(0, 0, width, height);
}

/** The map that the explorer shows, with its opacity. */
export function paintPatches(context, rects, { values, limit, masked, palette, bare }, alpha = 1) {
  const shades = colours(palette, bare);
  context.globalAlpha = alpha;
  for (const [p, x, y, w, h] of rects) {
    if ((masked && masked[p]) || Number.isNaN(values[p])) continue;
    context.fillStyle = shades[place(palette, values[p], limit)];
    context.fillRect(x, y, w, h);
  }
  context.globalAlpha = 1;
}

/** Darken and hatch the patches that were dropped. */
export function paintDropped(context, rects, unit) {
  const path = new Path2D(), { width, height } = context.canvas;
  for (const [, x, y, w, h] of rects) path.rect(x, y, w, h);
  context.save();
  context.clip(path);
  context.fillStyle = "rgba(24, 24, 27, .62)";
  context.fillRect(0, 0, width, height);
  context.strokeStyle = "rgba(255, 255, 255, .38)";
  context.lineWidth = unit;
  context.beginPath();
  for (let x = -height; x < width; x += 7 * unit) { context.moveTo(x, height); context.lineTo(x + height, 0); }
  context.stroke();
  context.restore();
}

/** Cross out masked sinks. */
export function paintCrosses(context, rects, unit) {
  context.beginPath();
  for (const [, x, y, w, h] of rects) {
    context.moveTo(x, y); context.lineTo(x + w, y + h);
    context.moveTo(x + w, y); context.lineTo(x, y + h);
    context.rect(x, y, w, h);
  }
  for (const [colour, width] of [["#000", 3], ["#fff", 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * unit;
    context.stroke();
  }
}

/** A frame around all of the patches together, seen on any picture. */
export function paintOutline(context, rects, unit) {
  const x0 = Math.min(...rects.map((r) => r[1])), y0 = Math.min(...rects.map((r) => r[2]));
  const x1 = Math.max(...rects.map((r) => r[1] + r[3])), y1 = Math.max(...rects.map((r) => r[2] + r[4]));
  for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
    context.strokeStyle = colour;
    context.lineWidth = width * unit;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
}
