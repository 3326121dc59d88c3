// The controls above the image: which trace, layer and head, and how they are coloured.

import { make } from "./markup.js";

export class Toolbar {
  constructor(explorer) {
    this.explorer = explorer;
    const { data, ref } = explorer;
    const options = (select, choices, count) => {
      for (const value of choices) select.append(make("option", value === "mean" ? `mean of ${count}` : String(value), { value }));
    };
    options(ref.layer, data.layerChoices, data.recorded_layers);
    options(ref.head, data.headChoices, data.heads?.length);
    for (const [select, label, choices] of [[ref.shown, ref.shownLabel, data.mapChoices], [ref.curveChoice, ref.curveLabel, data.curveChoices]]) {
      for (const name of choices) select.append(make("option", data.table[name].label, { value: name, title: data.table[name].how }));
      label.hidden = choices.length < 2;
    }
    ref.headLabel.hidden = !data.heads;
    ref.openOverview.hidden = data.maps < 2;
    ref.modes.hidden = !data.pair;
    ref.besideLabel.hidden = data.all.length < 3;
    ref.besideLabel.prepend(`${data.all.at(-1).name} trace `);
    data.all.slice(1).forEach((trace, i) => ref.beside.append(make("option", trace.label, { value: i + 1 })));
    data.traces.forEach((trace, t) => { ref.modes.children[t].textContent = trace.name; });
    this.listen();
  }

  pair() {
    this.explorer.ref.kept.hidden = !this.explorer.data.pruned;
  }

  listen() {
    const { explorer } = this, { ref, data } = explorer;
    const choice = (choices, text) => choices.find((value) => String(value) === text);
    explorer.on(ref.layer, "change", () => explorer.set({ layer: choice(data.layerChoices, ref.layer.value) }));
    explorer.on(ref.head, "change", () => explorer.set({ head: choice(data.headChoices, ref.head.value) }));
    explorer.on(ref.shown, "change", () => explorer.set({ shown: ref.shown.value }));
    explorer.on(ref.curveChoice, "change", () => explorer.set({ curve: ref.curveChoice.value }));
    explorer.on(ref.beside, "change", () => explorer.set({ beside: Number(ref.beside.value) }));
    explorer.on(ref.scale, "change", () => explorer.set({ scale: ref.scale.value }));
    explorer.on(ref.map, "change", () => explorer.set({ map: ref.map.value }));
    explorer.on(ref.opacity, "input", () => explorer.set({ opacity: Number(ref.opacity.value) }));
    explorer.on(ref.sinks, "click", () => explorer.toggle("sinks"));
    explorer.on(ref.kept, "click", () => explorer.toggle("kept"));
    explorer.on(ref.bare, "click", () => explorer.toggle("picture"));
    explorer.on(ref.openOverview, "click", () => explorer.toggle("overview"));
    [...ref.modes.children].forEach((button, mode) => explorer.on(button, "click", () => explorer.set({ mode })));
  }

  draw() {
    const { ref, view } = this.explorer;
    for (const name of ["layer", "head", "scale", "map", "opacity", "beside", "shown"]) ref[name].value = view[name];
    ref.curveChoice.value = view.curve;
    ref.map.disabled = this.explorer.signed; // what has a sign has a palette of its own
    ref.sinks.setAttribute("aria-pressed", String(view.sinks === "masked"));
    ref.opacity.disabled = this.explorer.bare;
    ref.bare.setAttribute("aria-pressed", String(this.explorer.bare));
    ref.openOverview.setAttribute("aria-pressed", String(view.overview));
    ref.kept.setAttribute("aria-pressed", String(view.kept));
    [...ref.modes.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === view.mode)));
  }
}
