// All layers and heads at one step: a small map of each, one pixel a patch; a click shows it large.

import { place, rgbs } from "./colours.js";
import { make } from "./markup.js";

const WIDE = 64, TALL = 64; // css pixels of a map at most
const short = (value) => (value ? value.toPrecision(2).replace("-", "−") : "0");

export class Overview {
  constructor(explorer) {
    this.explorer = explorer;
    this.panel = null;
  }

  /** Maps are made once for an image; their planes are decoded when they are first asked for. */
  draw() {
    const { explorer } = this, { ref, view, data } = explorer, open = view.overview;
    ref.overview.hidden = !open;
    if (!open) return;
    if (this.panel !== view.panel) this.make();
    this.maps.forEach(({ button, layer, head }) => button.setAttribute("aria-pressed", String(layer === view.layer && head === view.head)));
    ref.overviewTold.textContent = `${explorer.quantity.label[0].toUpperCase()}${explorer.quantity.label.slice(1)} of this step at each layer${data.heads ? " and head" : ""}: ` +
      `every map on its own scale, from ${explorer.signed ? "minus its largest value to that" : "0 to its largest value"}; below it ${view.mode === 2 ? "the difference of the sums" : "the sum"} over the patches. Click one to enlarge it.`;
    this.load();
  }

  make() {
    const { explorer } = this, { ref, data, view } = explorer, { rows, cols } = data.panels[view.panel];
    this.panel = view.panel;
    this.loaded = null; // the quantity whose planes the maps have
    const heads = data.heads ?? ["mean"], scale = Math.min(WIDE / cols, TALL / rows);
    ref.maps.replaceChildren();
    ref.maps.style.gridTemplateColumns = data.heads ? `max-content repeat(${heads.length}, max-content)` : "repeat(auto-fill, minmax(84px, max-content))";
    if (data.heads) ref.maps.append(make("span"), ...heads.map((head) => make("span", `head ${head}`)));
    this.maps = data.layers.flatMap((layer) => {
      if (data.heads) ref.maps.append(make("span", `layer ${layer}`, { class: "vp-layer" }));
      return heads.map((head) => {
        const name = `layer ${layer}${data.heads ? `, head ${head}` : ""}`, button = make("button", undefined, { type: "button", title: name });
        const canvas = make("canvas", undefined, { width: cols, height: rows, "aria-hidden": "true" }), sum = make("span", "");
        Object.assign(canvas.style, { width: `${Math.max(8, scale * cols)}px`, height: `${Math.max(8, scale * rows)}px` });
        button.append(canvas, ...(data.heads ? [] : [make("span", name)]), sum);
        explorer.on(button, "click", () => explorer.set({ layer, head }));
        ref.maps.append(button);
        return { button, canvas, sum, layer, head, name };
      });
    });
  }

  async load() {
    const { explorer } = this, { data, view: { shown } } = explorer;
    if (this.loaded === shown) return this.paint();
    for (const map of this.maps) {
      const plane = await data.select(map.layer, map.head, shown);
      if (explorer.stop.signal.aborted || explorer.view.shown !== shown || !explorer.view.overview) return;
      map.plane = plane;
    }
    this.loaded = shown;
    this.paint();
  }

  heat() {
    if (this.explorer.view.overview && this.loaded === this.explorer.view.shown && this.panel === this.explorer.view.panel) this.paint();
  }

  paint() {
    const { explorer } = this, { data, view, column, palette } = explorer, colours = rgbs(palette), { row, col } = data.grid;
    for (const { canvas, sum, plane, button, name } of this.maps) {
      const values = data.values(plane, view.mode, column), masked = view.sinks === "masked" ? data.sinks(plane) : null;
      const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
      const patches = data.patchesOf[view.panel], peak = values ? patches.reduce((most, p) => (masked?.[p] ? most : Math.max(most, Math.abs(values[p]) || 0)), 0) : 0;
      for (const p of values ? patches : []) {
        if (masked?.[p] || Number.isNaN(values[p])) continue;
        pixels.data.set([...colours[place(palette, values[p], peak)], 255], 4 * (row[p] * canvas.width + col[p]));
      }
      context.putImageData(pixels, 0, 0);
      const total = values && patches.reduce((all, p) => all + values[p], 0);
      sum.textContent = values ? `${view.mode === 2 && total > 0 ? "+" : ""}${short(total)}` : "—";
      button.setAttribute("aria-label", `${name}: ${sum.textContent}`);
    }
  }
}
