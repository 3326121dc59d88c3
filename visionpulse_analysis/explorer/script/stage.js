// The image with the attention over it, and the pointer on it: hover, click a patch, drag a box.

import { paintCrosses, paintDropped, paintOutline, paintPatches, paintPhoto } from "./paint.js";

const TALLEST = 620, AROUND = 300, LEAST = 400; // css pixels: of the image, of what stands above it, of it in a low window
const STUCK = 0.42; // of the window, where the image stays in sight above the tokens
const CLICK = 6; // a pointer that moved less is a click

export class Stage {
  constructor(explorer) {
    this.explorer = explorer;
    this.drag = null;
    this.listen();
  }

  /** Size of the canvases; the photo is painted again only when that or the panel changes. */
  draw() {
    const { ref, data, view, pictures } = this.explorer, panel = data.panels[view.panel], pixel = window.devicePixelRatio || 1;
    const stuck = getComputedStyle(ref.stage).position === "sticky";
    const column = stuck ? ref.stage.closest(".vp-main") : ref.stage.parentElement;
    const tallest = stuck ? Math.min(TALLEST, STUCK * window.innerHeight) : Math.min(TALLEST, Math.max(LEAST, window.innerHeight - AROUND));
    const across = Math.min(column.clientWidth, (tallest * panel.width) / panel.height);
    ref.stage.style.width = `${across}px`;
    ref.stage.style.aspectRatio = `${panel.width} / ${panel.height}`;
    this.explorer.root.style.setProperty("--vp-stuck", `${(across * panel.height) / panel.width}px`);
    const width = Math.round(across * pixel), height = Math.round((width * panel.height) / panel.width);
    const key = `${view.panel}/${width}/${view.shown}/${view.picture}`;
    if (key !== this.drawn && width > 0) {
      this.drawn = key;
      for (const name of ["photo", "heat", "marks"]) Object.assign(ref[name], { width, height });
      paintPhoto(ref.photo.getContext("2d"), this.explorer.bare ? null : pictures[panel.picture], width, height);
      ref.photo.setAttribute("aria-label", `${panel.label} with ${this.explorer.quantity.label} per patch, ${panel.rows} rows of ${panel.cols}`);
      this.rects = data.rects(view.panel, width, height);
    }
    ref.heat.style.opacity = this.explorer.alpha;
  }

  heat() {
    const { explorer } = this, { ref, values } = explorer, context = ref.heat.getContext("2d");
    context.clearRect(0, 0, ref.heat.width, ref.heat.height);
    if (values && this.rects) paintPatches(context, this.rects, explorer);
    ref.veil.hidden = Boolean(values);
    ref.veil.textContent = values ? "" : "No token of the other trace is aligned with this one, so there is no difference here.";
    this.point();
  }

  /** Marks lie on a canvas of their own, so that the map under a moving pointer is not drawn again. */
  point() {
    if (!this.rects) return;
    const { ref, pointed } = this.explorer, context = ref.marks.getContext("2d"), unit = Math.max(1, ref.marks.width / 520);
    context.clearRect(0, 0, ref.marks.width, ref.marks.height);
    paintMarks(context, this.explorer, this.rects, unit);
    const under = this.rects.filter(([p]) => p === pointed);
    if (this.drag?.box) paintOutline(context, [[null, ...this.drag.box]], unit);
    else if (under.length) paintOutline(context, under, unit / 2);
  }

  // ---- the pointer

  listen() {
    const { explorer } = this, { ref } = explorer;
    explorer.on(ref.stage, "pointermove", (event) => this.moved(this.place(event)));
    explorer.on(ref.stage, "pointerleave", () => {
      if (!this.drag) explorer.pointAt(null);
    });
    explorer.on(ref.stage, "pointerdown", (event) => {
      if (event.button !== 0) return;
      this.drag = { from: this.place(event), patch: this.patchAt(this.place(event)), moved: false };
      ref.stage.setPointerCapture(event.pointerId);
    });
    explorer.on(ref.stage, "pointerup", (event) => this.released(this.place(event)));
    explorer.on(ref.stage, "pointercancel", () => { this.drag = null; this.point(); });
  }

  /** Point of an event on the stage, in css pixels. */
  place(event) {
    const box = this.explorer.ref.stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  /** Pixels of the original image per css pixel. */
  get scale() {
    const { data, view, ref } = this.explorer;
    return data.panels[view.panel].width / ref.stage.clientWidth;
  }

  patchAt([x, y]) {
    const { data: { box, patchesOf }, view } = this.explorer, px = x * this.scale, py = y * this.scale;
    const under = (p) => px >= box[4 * p] && px < box[4 * p + 2] && py >= box[4 * p + 1] && py < box[4 * p + 3];
    return patchesOf[view.panel].find(under) ?? null;
  }

  moved(to) {
    if (this.drag) {
      const [x0, y0] = this.drag.from, pixel = this.explorer.ref.marks.width / this.explorer.ref.stage.clientWidth;
      this.drag.moved ||= Math.hypot(to[0] - x0, to[1] - y0) > CLICK;
      const box = [Math.min(x0, to[0]), Math.min(y0, to[1]), Math.abs(to[0] - x0), Math.abs(to[1] - y0)];
      if (this.drag.moved) this.drag.box = box.map((v) => v * pixel);
    }
    this.explorer.pointAt(this.patchAt(to));
  }

  released(to) {
    if (!this.drag) return;
    const { explorer } = this, { row, col } = explorer.data.grid, { from, patch, moved } = this.drag;
    this.drag = null;
    if (moved) explorer.set({ region: this.touched(from, to) });
    else if (patch !== null) {
      const chosen = [row[patch], col[patch], row[patch], col[patch]];
      explorer.set({ region: String(explorer.view.region) === String(chosen) ? null : chosen });
    }
  }

  /** The patches a box touches, as first and last row and column; null when it touches none. */
  touched(from, to) {
    const { data, view } = this.explorer, ends = [0, 1].map((axis) => [from[axis], to[axis]].sort((a, b) => a - b));
    const [[x0, x1], [y0, y1]] = ends.map((pair) => pair.map((v) => v * this.scale));
    const patches = data.patchesOf[view.panel].filter((p) => {
      const [left, top, right, bottom] = data.box.subarray(4 * p, 4 * p + 4);
      return left < x1 && right > x0 && top < y1 && bottom > y0;
    });
    if (!patches.length) return null;
    const rows = patches.map((p) => data.grid.row[p]), cols = patches.map((p) => data.grid.col[p]);
    return [Math.min(...rows), Math.min(...cols), Math.max(...rows), Math.max(...cols)];
  }
}

/** Dropped patches, masked sinks and the region: on the screen and in the saved picture. */
export function paintMarks(context, explorer, rects, unit) {
  const { data, view, masked, regionPatches } = explorer, [t, step] = explorer.keptStep;
  if (view.kept && step >= 0) paintDropped(context, rects.filter(([p]) => !data.visible(t, step, p, view.layer)), unit);
  if (masked) paintCrosses(context, rects.filter(([p]) => masked[p]), unit);
  const region = new Set(regionPatches);
  if (region.size) paintOutline(context, rects.filter(([p]) => region.has(p)), unit);
}
