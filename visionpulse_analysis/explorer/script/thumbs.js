// Several images, or the frames of a video: a row of thumbnails, all in the colour scale of the large image.

import { make } from "./markup.js";
import { number, signed } from "./numbers.js";
import { paintPatches, paintPhoto } from "./paint.js";

const TALL = 64; // pixels of the canvas, which the style sheet shows one to one

export class Thumbs {
  constructor(explorer) {
    this.explorer = explorer;
    const { data, ref } = explorer;
    ref.thumbs.hidden = data.panels.length < 2;
    this.thumbs = ref.thumbs.hidden ? [] : data.panels.map((panel, i) => {
      const button = make("button", undefined, { type: "button" }), canvas = make("canvas"), share = make("span", "");
      canvas.height = TALL;
      canvas.width = Math.max(1, Math.round((TALL * panel.width) / panel.height));
      button.append(canvas, make("span", panel.label), share);
      explorer.on(button, "click", () => explorer.set({ panel: i, region: null }));
      ref.thumbs.append(button);
      return { button, canvas, share, rects: data.rects(i, canvas.width, canvas.height) };
    });
  }

  draw() {
    const { ref: { thumbs: row }, view } = this.explorer, chosen = this.thumbs[view.panel]?.button;
    this.thumbs.forEach(({ button }) => button.setAttribute("aria-pressed", String(button === chosen)));
    if (!chosen) return;
    const hidden = chosen.offsetLeft < row.scrollLeft || chosen.offsetLeft + chosen.offsetWidth > row.scrollLeft + row.clientWidth;
    if (hidden) row.scrollLeft = chosen.offsetLeft - (row.clientWidth - chosen.offsetWidth) / 2;
  }

  heat() {
    const { explorer } = this, { data, view, pictures, values } = explorer;
    this.thumbs.forEach(({ canvas, share, rects }, i) => {
      const context = canvas.getContext("2d");
      paintPhoto(context, explorer.bare ? null : pictures[data.panels[i].picture], canvas.width, canvas.height);
      if (values) paintPatches(context, rects, explorer, explorer.alpha);
      const mass = values && data.patchesOf[i].reduce((sum, p) => sum + values[p], 0);
      share.textContent = values ? `${view.shown === "attention" ? "mass" : "sum"} ${view.mode === 2 ? signed(mass) : number(mass)}` : "—";
    });
  }
}
