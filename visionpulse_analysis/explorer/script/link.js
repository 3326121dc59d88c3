// The view as a link, such as "step=12&layer=3": what is not said there is at its default. view.py reads the same links.

const MODES = ["dense", "pruned", "difference"]; // first trace, second trace, second minus first
const DEFAULTS = { mode: 0, scale: "step", sinks: "shown", kept: false, region: null, panel: 0, opacity: 70, map: "magma", picture: "shown", overview: false, beside: 1, shown: "attention", curve: "mass" };

export function viewToText(data, view) {
  const first = data.columns[0][view.column], parts = [];
  parts.push(first >= 0 ? `step=${first}` : `pruned_step=${data.columns[1][view.column]}`, `layer=${view.layer}`);
  if (data.heads) parts.push(`head=${view.head}`);
  if (view.mode) parts.push(`trace=${MODES[view.mode]}`);
  for (const name of ["beside", "shown", "curve", "scale", "sinks", "panel", "opacity", "map", "picture"])
    if (view[name] !== DEFAULTS[name]) parts.push(`${name}=${view[name]}`);
  if (view.kept) parts.push("kept=shown");
  if (view.overview) parts.push("overview=shown");
  if (view.region) parts.push(`rows=${view.region[0]}-${view.region[2]}`, `cols=${view.region[1]}-${view.region[3]}`);
  return parts.join("&");
}

/** Read a link; anything missing or impossible keeps its default. */
export function viewFromText(data, text) {
  const asked = new URLSearchParams(text.replace(/^#/, "")), view = { ...DEFAULTS };
  const whole = (name, low, high, otherwise) => {
    const value = asked.has(name) ? Number(asked.get(name)) : NaN;
    return Number.isInteger(value) && value >= low && value <= high ? value : otherwise;
  };
  const pick = (name, choices, otherwise) => choices.find((choice) => String(choice) === asked.get(name)) ?? otherwise;

  view.layer = pick("layer", data.layerChoices, data.layer);
  view.head = pick("head", data.headChoices, data.headChoices.at(-1));
  view.shown = pick("shown", data.mapChoices, DEFAULTS.shown);
  view.curve = pick("curve", data.curveChoices, DEFAULTS.curve);
  view.beside = whole("beside", 1, data.alignments.length, 1);
  if (data.pair) view.mode = Math.max(0, MODES.indexOf(asked.get("trace")));
  view.scale = pick("scale", ["absolute", "step"], DEFAULTS.scale);
  view.sinks = pick("sinks", ["shown", "masked"], DEFAULTS.sinks);
  view.map = pick("map", ["cividis", "magma"], DEFAULTS.map);
  view.picture = pick("picture", ["hidden", "shown"], DEFAULTS.picture);
  view.overview = asked.get("overview") === "shown" && data.maps > 1;
  view.opacity = whole("opacity", 0, 100, DEFAULTS.opacity);
  view.panel = whole("panel", 0, data.panels.length - 1, 0);
  view.kept = asked.get("kept") === "shown" && data.pruned;
  const span = (name, size) => {
    const [low, high] = (asked.get(name) ?? "").split("-").map((part) => (part === "" ? NaN : Number(part)));
    const end = high ?? low;
    return Number.isInteger(low) && Number.isInteger(end) && low >= 0 && low <= end && end < size ? [low, end] : null;
  };
  const { rows, cols } = data.panels[view.panel], r = span("rows", rows), c = span("cols", cols);
  view.region = r && c ? [r[0], c[0], r[1], c[1]] : null;
  const t = asked.has("pruned_step") && data.pair ? 1 : 0, columnOf = data.alignments[view.beside - 1].columnOf[t];
  view.column = columnOf[whole(t ? "pruned_step" : "step", 0, columnOf.length - 1, 0)];
  return view;
}
