// The curve: visual mass per step, or attention to the region, of one or both traces, with a cursor.

import { make } from "./markup.js";
import { capital, number } from "./numbers.js";

export const LINES = ["--vp-line-dense", "--vp-line-pruned"];

export class Curve {
  constructor(explorer) {
    this.explorer = explorer;
    const { ref, data } = explorer;
    const columnAt = (event) => {
      const x = event.clientX - ref.curve.getBoundingClientRect().left, { left, right } = this.area;
      return data.nearest(Math.round(data.last * Math.min(1, Math.max(0, (x - left) / (right - left)))), explorer.view.mode);
    };
    const go = (event) => explorer.set({ column: columnAt(event) });
    explorer.on(ref.curve, "pointerdown", (event) => { ref.curve.setPointerCapture(event.pointerId); go(event); });
    explorer.on(ref.curve, "pointermove", (event) => {
      if (event.buttons & 1) go(event);
      else if (event.pointerType === "mouse") explorer.preview(columnAt(event));
    });
    explorer.on(ref.curve, "pointerleave", () => explorer.preview(null));
    explorer.on(ref.divergence, "click", () => {
      const { mode } = explorer.view, column = data.divergence;
      explorer.set({ column, mode: data.columns[mode]?.[column] >= 0 ? mode : 2 });
    });
  }

  pair() {
    this.explorer.ref.divergence.hidden = this.explorer.data.divergence === null;
  }

  draw() {
    const { explorer } = this, { ref, root } = explorer, pixel = window.devicePixelRatio || 1, style = getComputedStyle(root);
    const width = ref.curve.clientWidth, height = ref.curve.clientHeight, colour = (name) => style.getPropertyValue(name);
    const { seriesName, seriesUnit } = explorer;
    ref.curveTitle.textContent = `${capital(seriesName)} per step${seriesUnit.startsWith("share of ") ? "" : ` (${seriesUnit})`}`;
    ref.plot.setAttribute("aria-label", `${ref.curveTitle.textContent}, ${number(explorer.bottom)} to ${number(explorer.top)}`);
    this.drawLegend(colour);
    if (!width) return; // not on screen yet
    Object.assign(ref.plot, { width: Math.round(width * pixel), height: Math.round(height * pixel) });
    this.area = { left: 46, right: width - 8, top: 20, bottom: height - 20 };
    const context = ref.plot.getContext("2d");
    context.scale(pixel, pixel);
    paintCurve(context, this.area, explorer, colour, 11);
  }

  drawLegend(colour) {
    const { ref, data } = this.explorer;
    if (!data.pair) return;
    ref.legend.replaceChildren(...data.traces.map((trace, t) => {
      const entry = make("span", ` ${trace.name}`), sample = make("i");
      sample.style.borderTopColor = colour(LINES[t]);
      if (t) sample.style.borderTopStyle = "dashed";
      entry.prepend(sample);
      return entry;
    }));
  }

  step() {
    const { data, view, ref } = this.explorer;
    if (this.area) ref.cursor.style.transform = `translateX(${across(view.column, data, this.area)}px)`;
  }
}

export const across = (column, data, area) => area.left + ((area.right - area.left) * column) / Math.max(1, data.last);

/** Axes, moments and lines inside `area` of a canvas; `colour` looks up a colour of the theme. */
export function paintCurve(context, area, explorer, colour, size) {
  const { data, series, top, bottom } = explorer;
  paintAxes(context, area, explorer, colour, size);
  paintMoments(context, area, data, colour, size);
  data.columns.forEach((steps, t) => {
    context.strokeStyle = colour(LINES[t]);
    context.lineWidth = size / 7;
    context.setLineDash(t ? [5, 3] : []);
    context.beginPath();
    let open = false;
    steps.forEach((step, column) => {
      if (step < 0 || Number.isNaN(series[t][step])) { open = false; return; }
      const x = across(column, data, area), y = area.bottom - (area.bottom - area.top) * ((series[t][step] - bottom) / (top - bottom));
      if (open) context.lineTo(x, y);
      else { context.moveTo(x, y); context.lineTo(x + 1, y); } // a step alone is a dot
      open = true;
    });
    context.stroke();
  });
  context.setLineDash([]);
}

function paintAxes(context, area, { data, top, bottom }, colour, size) {
  context.font = `${size}px system-ui, sans-serif`;
  context.fillStyle = colour("--vp-muted");
  context.strokeStyle = colour("--vp-rule");
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const part of [0, 0.5, 1]) {
    const y = area.bottom - (area.bottom - area.top) * part;
    context.beginPath();
    context.moveTo(area.left, y); context.lineTo(area.right, y);
    context.stroke();
    const value = bottom + (top - bottom) * part;
    context.fillText(value ? value.toPrecision(2).replace("-", "−") : "0", area.left - 6, y);
  }
  context.textBaseline = "alphabetic";
  const below = area.bottom + size + 4;
  context.textAlign = "left";
  context.fillText("0", area.left, below);
  context.textAlign = "right";
  context.fillText(String(data.last), area.right, below);
  context.textAlign = "center";
  context.fillText(!data.by_step ? "aligned token" : data.pair ? "step (the traces share too few tokens to be aligned)" : "step", (area.left + area.right) / 2, below);
}

/** Where thinking ends and where the traces part. */
function paintMoments(context, area, data, colour, size) {
  const { answer, tokens } = data.traces[0], moments = [];
  if (answer !== null && answer < tokens.length) moments.push([data.columnOf[0][answer], "answer", "--vp-muted"]);
  if (data.divergence !== null) moments.push([data.divergence, "diverges", "--vp-warn"]);
  for (const [column, label, name] of moments) {
    const x = across(column, data, area), right = x > (area.left + area.right) / 2;
    context.strokeStyle = context.fillStyle = colour(name);
    context.setLineDash([2, 3]);
    context.beginPath();
    context.moveTo(x, area.top - size); context.lineTo(x, area.bottom);
    context.stroke();
    context.setLineDash([]);
    context.textAlign = right ? "right" : "left";
    context.fillText(label, x + (right ? -4 : 4), area.top - 5);
  }
}
