// What the colours mean and the value under the pointer, in words and numbers.

import { colours } from "./colours.js";
import { quoted } from "./markup.js";
import { capital, number, signed } from "./numbers.js";

/** A unit behind its number. */
const of = (unit) => (unit.startsWith("share of ") ? unit.slice(5) : ` ${unit}`);

export class Readout {
  constructor(explorer) {
    this.explorer = explorer;
  }

  get difference() { return this.explorer.view.mode === 2; }

  /** The name of the difference: "pruned − dense". */
  get minus() {
    const [first, second] = this.explorer.data.traces;
    return `${second.name} − ${first.name}`.toLowerCase();
  }

  draw() {
    const { ref, data, view, palette, bare, alpha } = this.explorer, bar = ref.bar.getContext("2d");
    // What lies on the picture depends on what is below: the bar has it over white and, lower half, over black.
    bar.globalAlpha = 1;
    ["#fff", "#000"].forEach((ground, row) => { bar.fillStyle = ground; bar.fillRect(0, row, 256, 1); });
    bar.globalAlpha = alpha;
    colours(palette, bare).forEach((style, i) => { bar.fillStyle = style; bar.fillRect(i, 0, 1, 2); });
    const scale = view.scale === "step" ? "this step's own scale" : "one scale for all steps";
    const layer = view.layer === "mean" ? `mean of ${data.recorded_layers} layers` : `layer ${view.layer}`;
    const head = !data.heads ? "" : view.head === "mean" ? `, mean of ${data.heads.length} heads` : `, head ${view.head}`;
    const { label, unit } = this.explorer.quantity;
    const told = `${this.difference ? `${this.minus} ` : ""}${label}, ${unit}; ${layer}${head}; ${scale}${bare ? "; picture hidden" : "; the bar shows the colours over white and over black"}`;
    if (ref.unit.textContent !== told) ref.unit.textContent = told; // it is read aloud when it changes
  }

  heat() {
    const { ref, limit, signed: either } = this.explorer;
    ref.low.textContent = either ? signed(-limit) : "0";
    ref.high.textContent = either ? signed(limit) : number(limit);
    this.sinks();
    this.point();
  }

  sinks() {
    const { ref, values, masked } = this.explorer;
    ref.sinkNote.hidden = !masked;
    if (!masked) return;
    const count = masked.reduce((sum, flag) => sum + flag, 0);
    const held = values && !this.difference ? values.reduce((sum, value, p) => sum + (masked[p] ? value : 0), 0) : null;
    ref.sinkNote.textContent = count === 0 ? "Sinks masked: no patch is one at this layer and head."
      : `Sinks masked: ${count} ${count === 1 ? "patch" : "patches"} crossed out, left out of colours and scale` +
        (held === null ? "." : `; ${this.explorer.quantity.label} there ${number(held)}.`);
  }

  /** The value under the pointer, on the image or over a token or the curve; else that of the region. */
  point() {
    const { ref, data, view, values, masked, pointed: p, hover, regionPatches, keptStep, quantity } = this.explorer;
    const told = (value) => (this.difference ? `${signed(value)}${of(quantity.unit)} (${this.minus})` : `${number(value)}${of(quantity.unit)}`);
    if (p !== null && values) {
      const [t, step] = keptStep, lost = step >= 0 && !data.visible(t, step, p, view.layer);
      const dropped = !lost ? "" : data.reach(t, step, view.layer) === "here" ? ", dropped" : ", not kept at the last layer";
      ref.value.textContent = `Row ${data.grid.row[p]}, column ${data.grid.col[p]}: ${quantity.label} ${told(values[p])}${dropped}${masked?.[p] ? ", masked sink" : ""}`;
    } else if (hover !== null) ref.value.textContent = this.ofColumn(hover);
    else if (view.region && values) {
      const sum = regionPatches.reduce((total, patch) => total + values[patch], 0);
      ref.value.textContent = `${capital(this.explorer.regionName)}: ${quantity.label} ${told(sum)}`;
    } else ref.value.textContent = "Point at a patch, a token or the curve to read its value.";
  }

  /** What the tokens and the curve show of a column. */
  ofColumn(column) {
    const { data, series, seriesName, seriesUnit } = this.explorer;
    const told = data.traces.map((trace, t) => {
      const step = data.columns[t][column], name = data.pair ? `${trace.name} step` : "Step";
      return step >= 0 && `${name} ${step} ${quoted(trace.tokens[step])}: ${seriesName} ${number(series[t][step])}${of(seriesUnit)}`;
    });
    return told.filter(Boolean).join("; ");
  }
}
