// What was recorded: the payload of payload.py, decoded when it is asked for.

import { average, floats, halves, inflate, median } from "./numbers.js";

// A sink takes attention at most steps, whatever the token: its median over steps is this many times the typical one.
export const SINK_FACTOR = 10;

/**
 * One trace, or several of the same image: `all`. Those shown are `traces`: the first, and one that stands beside it. A
 * *column* holds one step of each shown trace (-1: none), so that equal tokens of both stand in the same column; with
 * one trace, and with two that share too few tokens, columns are steps. A *panel* is one image, or one frame of a video.
 */
export class Data {
  constructor(payload) {
    Object.assign(this, payload);
    this.all = this.traces;
    this.pair = this.all.length > 1;
    this.count = this.grid.row.length; // patches, of all panels
    this.alignments.forEach((alignment, i) => {
      alignment.columnOf = alignment.columns.map((steps, t) => {
        const column = new Int32Array(this.all[t && i + 1].tokens.length);
        steps.forEach((step, c) => step >= 0 && (column[step] = c));
        return column;
      });
    });
    this.show(1);
    this.patchesOf = this.panels.map((panel) => {
      const inside = [];
      for (let p = 0; p < this.count; p++)
        if (this.grid.image[p] === panel.image && this.grid.frame[p] === panel.frame) inside.push(p);
      return inside;
    });
    // "mean" is a choice only where it is the mean of everything recorded: computed from all layers, or stored.
    const whole = this.layers.length === this.recorded_layers;
    this.layerChoices = this.stored.includes("mean") || (whole && this.layers.length > 1) ? [...this.layers, "mean"] : this.layers;
    this.table = Object.fromEntries(this.quantities.map((row) => [row.name, row]));
    this.mapChoices = this.quantities.filter((row) => row.map).map((row) => row.name);
    this.curveChoices = this.quantities.filter((row) => !row.map).map((row) => row.name);
    this.headChoices = this.heads?.length > 1 ? [...this.heads, "mean"] : this.heads ?? ["mean"];
    this.maps = this.layers.length * (this.heads?.length ?? 1); // of one step: what the overview shows
    this.planes = new Map();
  }

  /** Put one of the other traces beside the first: what follows from which two are shown is set here. */
  show(beside) {
    this.beside = beside;
    this.shown = this.pair ? [0, beside] : [0];
    this.traces = this.shown.map((i) => this.all[i]);
    this.lines = [this.about[0], ...this.shown.map((i) => this.about[i + 1])];
    this.pruned = this.traces.some((trace) => trace.kept);
    Object.assign(this, this.alignments[beside - 1]); // columns, columnOf, divergence, by_step
    this.last = this.columns[0].length - 1;
  }

  /** Whether both traces shown have the same token in a column, so that there is a difference. */
  paired(column) {
    const parted = this.by_step && this.divergence !== null && column >= this.divergence;
    return !parted && this.columns.every((steps) => steps[column] >= 0);
  }

  /** The column with another trace beside the first where the first is at the same step; else at the one before. */
  columnBeside(column, beside) {
    const [steps] = this.columns;
    while (column > 0 && steps[column] < 0) column--;
    return this.alignments[beside - 1].columnOf[0][Math.max(0, steps[column])];
  }

  async open() {
    this.box = await floats(this.grid.box);
    for (const trace of this.all) {
      for (const entry of Object.values(trace.recorded)) if (entry.values) entry.values = await floats(entry.values);
      trace.logprobs = await floats(trace.logprobs);
      trace.kept = trace.kept && (await inflate(trace.kept));
      trace.visible = trace.visible && (await floats(trace.visible));
      const bits = trace.kept, flag = (bit) => (bits[bit >> 3] >> (7 - (bit & 7))) & 1;
      trace.keptCounts = bits && Int32Array.from(trace.tokens, (_, step) => {
        let sum = 0;
        for (let p = 0; p < this.count; p++) sum += flag(step * this.count + p);
        return sum;
      });
    }
  }

  /** Positions of a choice along stored layers or heads: one, or all of them for a mean that is not stored itself. */
  chosen(axis, value) {
    if (!axis) return [0];
    return axis.includes(value) ? [axis.indexOf(value)] : axis.map((_, i) => i);
  }

  /** A quantity [step * patch] of all traces at one layer and head, each of which may be "mean". */
  async select(layer, head, name) {
    const key = `${layer}/${head}/${name}`;
    if (!this.planes.has(key)) {
      const attention = [];
      for (const trace of this.all) {
        const parts = [], { planes, scale } = trace.recorded[name];
        for (const l of this.chosen(this.stored, layer)) for (const h of planes[l].length > 1 ? this.chosen(this.heads, head) : [0]) {
          const packed = planes[l][h];
          if (typeof packed === "string") planes[l][h] = halves(await inflate(packed), scale);
          parts.push(planes[l][h]);
        }
        attention.push(average(parts));
      }
      this.planes.set(key, { attention, limits: new Map() });
    }
    return this.planes.get(key);
  }

  /** A quantity without patches per step of one trace; the visual mass is one. */
  perStep(name, t, layer, head) {
    const { recorded, tokens } = this.traces[t], { values, heads } = recorded[name];
    const ls = this.chosen(this.stored, layer), hs = heads > 1 ? this.chosen(this.heads, head) : [0];
    return Float64Array.from(tokens, (_, step) => {
      let sum = 0;
      for (const l of ls) for (const h of hs) sum += values[(step * this.stored.length + l) * heads + h];
      return sum / (ls.length * hs.length);
    });
  }

  /** Attention to a set of patches, per step of one trace. */
  reverse(plane, t, patches) {
    return Float64Array.from(this.traces[t].tokens, (_, step) => {
      let sum = 0;
      for (const p of patches) sum += plane.attention[this.shown[t]][step * this.count + p];
      return sum;
    });
  }

  /** The kept set is that of the last layer. At another: the same ("here"), every patch ("all"), or not known ("last"). */
  reach(t, step, layer) {
    const { visible, tokens, keptCounts } = this.traces[t];
    if (!visible) return "here";
    const count = visible[this.layers.indexOf(layer) * tokens.length + step]; // undefined for the mean
    return count === keptCounts[step] ? "here" : count === this.count ? "all" : "last";
  }

  visible(t, step, patch, layer) {
    const { kept } = this.traces[t], bit = step * this.count + patch;
    return !kept || this.reach(t, step, layer) === "all" || Boolean(kept[bit >> 3] & (128 >> (bit & 7)));
  }

  /** Patches that take attention at most steps, judged on the first trace. */
  sinks(plane) {
    if (!plane.sinks) {
      const steps = this.traces[0].tokens.length, attention = plane.attention[0], column = new Float32Array(steps);
      const medians = Float32Array.from({ length: this.count }, (_, p) => {
        for (let s = 0; s < steps; s++) column[s] = attention[s * this.count + p];
        return median(column);
      });
      const typical = median(medians);
      plane.sinks = Uint8Array.from(medians, (value) => typical > 0 && value > SINK_FACTOR * typical);
    }
    return plane.sinks;
  }

  /** Values of a column: attention of one trace, or second minus first; null where there is none. */
  values(plane, mode, column) {
    const at = (t) => {
      const step = this.columns[t][column];
      return step < 0 ? null : plane.attention[this.shown[t]].subarray(step * this.count, (step + 1) * this.count);
    };
    if (mode < 2) return at(mode);
    if (!this.paired(column)) return null;
    const first = at(0);
    return at(1).map((value, p) => value - first[p]);
  }

  /** Largest absolute value of one column, without masked patches. */
  peak(values, masked) {
    let peak = 0;
    if (values) for (let p = 0; p < values.length; p++) {
      const value = Math.abs(values[p]);
      if (value > peak && !(masked && masked[p])) peak = value;
    }
    return peak;
  }

  /** Largest absolute value over all steps; both traces share one, so that they compare. */
  limit(plane, mode, masked) {
    const key = `${this.beside}/${mode === 2}/${Boolean(masked)}`;
    if (!plane.limits.has(key)) {
      let limit = 0;
      for (const m of mode === 2 ? [2] : this.traces.map((_, t) => t))
        for (let c = 0; c <= this.last; c++) limit = Math.max(limit, this.peak(this.values(plane, m, c), masked));
      plane.limits.set(key, limit);
    }
    return plane.limits.get(key);
  }

  /** The column itself, or the closest one where the shown trace has a step. */
  nearest(column, mode) {
    if (mode === 2) return column;
    const steps = this.columns[mode];
    for (let away = 0; away <= this.last; away++)
      for (const c of [column - away, column + away]) if (steps[c] >= 0) return c;
    return column;
  }

  /** [patch, x, y, width, height] of a panel in whole pixels of a canvas, so that neighbours meet without a seam. */
  rects(panel, width, height) {
    const { width: w, height: h } = this.panels[panel];
    return this.patchesOf[panel].map((p) => {
      const [x0, y0, x1, y1] = [0, 1, 2, 3].map((i) => Math.round(this.box[4 * p + i] * (i % 2 ? height / h : width / w)));
      return [p, x0, y0, x1 - x0, y1 - y0];
    });
  }

  /** Patches of a region [first row, first column, last row, last column] of a panel. */
  inside(panel, region) {
    if (!region) return [];
    const [r0, c0, r1, c1] = region, { row, col } = this.grid;
    return this.patchesOf[panel].filter((p) => row[p] >= r0 && row[p] <= r1 && col[p] >= c0 && col[p] <= c1);
  }
}
