// The region without a pointer: four numbers; and the steps that looked there most.

import { make, quoted } from "./markup.js";
import { number } from "./numbers.js";

const ENDS = ["row0", "col0", "row1", "col1"]; // in the order of view.region
const MOST = 3; // steps named per trace

export class Region {
  constructor(explorer) {
    this.explorer = explorer;
    for (const name of ENDS) explorer.on(explorer.ref[name], "change", () => this.read(name));
    explorer.on(explorer.ref.clear, "click", () => explorer.set({ region: null }));
  }

  draw() {
    const { ref, view, data } = this.explorer, { rows, cols } = data.panels[view.panel];
    ENDS.forEach((name, i) => {
      const value = view.region?.[i] ?? "";
      ref[name].max = (name.startsWith("row") ? rows : cols) - 1;
      if (ref[name] !== document.activeElement || value !== "") ref[name].value = value; // leaves half a region being typed
    });
    ref.clear.disabled = !view.region;
    const at = [...ref.peaks.querySelectorAll("button")].indexOf(ref.peaks.getRootNode().activeElement);
    ref.peaks.replaceChildren(...(view.region ? data.traces.map((trace, t) => this.peaks(trace, t)) : []));
    ref.peaks.querySelectorAll("button")[at]?.focus({ preventScroll: true });
  }

  peaks(trace, t) {
    const { explorer } = this, { data } = explorer, series = explorer.series[t];
    const line = make("div", undefined, { class: "vp-row" });
    line.append(make("span", data.pair ? `${trace.name} looked there most at` : "Looked there most at"));
    for (const step of [...series.keys()].sort((a, b) => series[b] - series[a]).slice(0, MOST)) {
      const button = make("button", `step ${step} ${quoted(trace.tokens[step])} ${number(series[step])}`, { type: "button" });
      explorer.on(button, "click", () => explorer.goTo(t, data.columnOf[t][step]));
      line.append(button);
    }
    return line;
  }

  /** An empty end means one row or column; an end before its beginning moves the other one. */
  read(changed) {
    const { ref, data, view } = this.explorer, { rows, cols } = data.panels[view.panel];
    const read = (name, size) => (ref[name].value === "" ? null : Math.min(size - 1, Math.max(0, Math.round(Number(ref[name].value)))));
    let [r0, c0, r1, c1] = [read("row0", rows), read("col0", cols), read("row1", rows), read("col1", cols)];
    if (r0 === null || c0 === null) return;
    if (r1 === null || r1 < r0) { if (changed === "row1" && r1 !== null) r0 = r1; else r1 = r0; }
    if (c1 === null || c1 < c0) { if (changed === "col1" && c1 !== null) c0 = c1; else c1 = c0; }
    this.explorer.set({ region: [r0, c0, r1, c1] });
  }
}
