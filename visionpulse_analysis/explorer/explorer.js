// The explorer: one ES module, used by the notebook widget (anywidget) and by the offline page.
//
// Order: numbers (decoding, colours) -> Data (what was recorded) -> view (what is shown, as a link) ->
// Explorer (the document: drawing, pointing, keys). Whatever comes from a trace enters the document as textContent.

const MAPS = {
  cividis: "00224e00285b002e6a0533711a386f273e6e32436d3b496c434e6c4b546c535a6d5a5f6e61656f686a716f70737676767d7c788482798c8878938e789b9476a39a74aba072b4a76fbcae6cc4b468cdbb63d5c25edec958e7d150f0d846f9e03afee838",
  magma: "0000040303120a0822130d341d114729115a36106b440f7651127c5d177f6a1c81762181832681902a819c2e7faa337db73779c43c75d0416fdc4869e75263ef5d5ef56b5cf9795dfc8961fd9869fea772feb67cfec488fed395fde2a3fcf0b2fcfdbf",
  difference: "9eb0ff8caef679abed65a7e2519fd34194c13685ad2e76992868862259731d4b61183d4f14303e11242e111a20121214190c09220c022b0e013510004112014d16025b1d086c27117d341e8e422e9e513fae6051be6f63ce7f76df8f89f09f9cffadad",
};
const KEYS = [
  ["← →", "one step back or forward"], ["Shift + ← →", "ten steps"], ["Home, End", "first or last step"],
  ["↑ ↓", "layer above or below; the last choice is the mean"], ["[ ]", "head before or after"],
  ["Space", "play or pause"], ["D", "dense, pruned, difference"], ["A", "one colour scale for all steps, or one per step"],
  ["S", "sinks shown or masked"], ["K", "show which patches were kept and dropped"], ["Esc", "clear the region"], ["?", "this help"],
];
// A sink takes attention at most steps, whatever the token: its median over steps is this many times the typical one.
const SINK_FACTOR = 10;
const DEFAULTS = { mode: 0, scale: "absolute", sinks: "shown", kept: false, region: null, panel: 0, opacity: 90, map: "magma" };

// ---------------------------------------------------------------------------------------------- numbers

const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

async function inflate(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const floats = async (text) => new Float32Array((await inflate(text)).buffer);

let halfTable = null; // the value of every float16, so that decoding is one look-up
function halves(split) {
  if (!halfTable) {
    halfTable = Float32Array.from({ length: 65536 }, (_, h) => {
      const exponent = (h >> 10) & 31, fraction = h & 1023, sign = h >> 15 ? -1 : 1;
      if (exponent === 31) return fraction ? NaN : sign * Infinity;
      return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
    });
  }
  const count = split.length / 2, values = new Float32Array(count); // low bytes first, then high bytes
  for (let i = 0; i < count; i++) values[i] = halfTable[split[i] | (split[count + i] << 8)];
  return values;
}

function average(arrays) {
  if (arrays.length === 1) return arrays[0];
  const sum = new Float64Array(arrays[0].length);
  for (const array of arrays) for (let i = 0; i < sum.length; i++) sum[i] += array[i];
  return Float32Array.from(sum, (value) => value / arrays.length);
}

function median(values) {
  const sorted = Float32Array.from(values).sort(), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const number = (value) => (value === 0 ? "0" : value.toPrecision(4));
const signed = (value) => (value > 0 ? "+" : "") + number(value).replace("-", "−");

function ramp(hex, size = 256) {
  const stops = hex.match(/../g).map((pair) => parseInt(pair, 16)), last = stops.length / 3 - 1;
  return Array.from({ length: size }, (_, i) => {
    const at = (i / (size - 1)) * last, low = Math.min(last - 1, Math.floor(at)), t = at - low;
    return [0, 1, 2].map((c) => Math.round(stops[3 * low + c] * (1 - t) + stops[3 * low + 3 + c] * t));
  });
}
const RAMPS = Object.fromEntries(Object.entries(MAPS).map(([name, hex]) => [name, ramp(hex)]));
const solid = (name) => RAMPS[name].map((colour) => `rgb(${colour})`);
// On the picture, values near zero are half transparent: they darken what nobody looks at and never hide it.
const VEIL = 0.6;
const STYLES = Object.fromEntries(Object.entries(RAMPS).map(([name, colours]) => [name, colours.map((colour, i) => {
  const strength = name === "difference" ? Math.abs(i - 127.5) / 127.5 : i / 255;
  return `rgba(${colour},${VEIL + (1 - VEIL) * strength})`;
})]));

function luminance(rgb) {
  const [r, g, b] = rgb.map((v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

// ------------------------------------------------------------------------------------------------ Data

class Data {
  constructor(payload) {
    Object.assign(this, payload);
    this.count = this.grid.row.length;
    this.last = this.columns[0].length - 1;
    this.columnOf = this.columns.map((steps, t) => {
      const column = new Int32Array(this.traces[t].tokens.length);
      steps.forEach((step, c) => step >= 0 && (column[step] = c));
      return column;
    });
    this.patchesOf = this.panels.map((panel) => {
      const inside = [];
      for (let p = 0; p < this.count; p++)
        if (this.grid.image[p] === panel.image && this.grid.frame[p] === panel.frame) inside.push(p);
      return inside;
    });
    this.planes = new Map();
  }

  async open() {
    this.box = await floats(this.grid.box);
    for (const trace of this.traces) {
      trace.mass = await floats(trace.mass);
      trace.logprobs = await floats(trace.logprobs);
      trace.kept = trace.kept && (await inflate(trace.kept));
    }
  }

  headCount() { return this.heads ? this.heads.length : 1; }
  chosen(axis, value) { // positions along an axis: one, or all of them for the mean
    if (!axis) return [0];
    return value === "mean" ? axis.map((_, i) => i) : [axis.indexOf(value)];
  }

  /** Attention [step * patch] of each trace at one layer and head ("mean": over those in the page). */
  async select(layer, head) {
    const key = `${layer}/${head}`;
    if (!this.planes.has(key)) {
      const all = [];
      for (const trace of this.traces) {
        const parts = [];
        for (const l of this.chosen(this.layers, layer)) for (const h of this.chosen(this.heads, head)) {
          const packed = trace.planes[l][h];
          if (typeof packed === "string") trace.planes[l][h] = halves(await inflate(packed));
          parts.push(trace.planes[l][h]);
        }
        all.push(average(parts));
      }
      this.planes.set(key, { attention: all, limits: new Map() });
    }
    return this.planes.get(key);
  }

  /** Visual mass per step of one trace: float, share of the softmax row. */
  mass(t, layer, head) {
    const { mass, tokens } = this.traces[t], ls = this.chosen(this.layers, layer), hs = this.chosen(this.heads, head);
    return Float64Array.from(tokens, (_, step) => {
      let sum = 0;
      for (const l of ls) for (const h of hs) sum += mass[(step * this.layers.length + l) * this.headCount() + h];
      return sum / (ls.length * hs.length);
    });
  }

  /** Attention to a set of patches per step of one trace. */
  reverse(plane, t, patches) {
    return Float64Array.from(this.traces[t].tokens, (_, step) => {
      let sum = 0;
      for (const p of patches) sum += plane.attention[t][step * this.count + p];
      return sum;
    });
  }

  visible(t, step, patch) {
    const { kept } = this.traces[t], bit = step * this.count + patch;
    return !kept || Boolean(kept[bit >> 3] & (128 >> (bit & 7)));
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

  /** Values of a column: attention of one trace, or pruned minus dense; null where a trace has no step there. */
  values(plane, mode, column) {
    const at = (t) => {
      const step = this.columns[t][column];
      return step < 0 ? null : plane.attention[t].subarray(step * this.count, (step + 1) * this.count);
    };
    if (mode < 2) return at(mode);
    const dense = at(0), pruned = at(1);
    return dense && pruned && pruned.map((value, p) => value - dense[p]);
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

  /** Largest absolute value over all steps; dense and pruned share one, so that they compare. */
  limit(plane, mode, masked) {
    const key = `${mode === 2}/${Boolean(masked)}`;
    if (!plane.limits.has(key)) {
      let limit = 0;
      for (const m of mode === 2 ? [2] : this.traces.map((_, t) => t))
        for (let c = 0; c <= this.last; c++) limit = Math.max(limit, this.peak(this.values(plane, m, c), masked));
      plane.limits.set(key, limit);
    }
    return plane.limits.get(key);
  }
}

// ------------------------------------------------------------------------------------ the view as a link

const MODES = ["dense", "pruned", "difference"];

function viewToText(data, view) {
  const dense = data.columns[0][view.column], parts = [];
  parts.push(dense >= 0 ? `step=${dense}` : `pruned_step=${data.columns[1][view.column]}`, `layer=${view.layer}`);
  if (data.heads) parts.push(`head=${view.head}`);
  if (view.mode) parts.push(`trace=${MODES[view.mode]}`);
  for (const name of ["scale", "sinks", "panel", "opacity", "map"])
    if (view[name] !== DEFAULTS[name]) parts.push(`${name}=${view[name]}`);
  if (view.kept) parts.push("kept=shown");
  if (view.region) parts.push(`rows=${view.region[0]}-${view.region[2]}`, `cols=${view.region[1]}-${view.region[3]}`);
  return parts.join("&");
}

/** Read a link; anything missing or impossible keeps its default. */
function viewFromText(data, text) {
  const asked = new URLSearchParams(text.replace(/^#/, "")), view = { ...DEFAULTS };
  const whole = (name, low, high, otherwise) => {
    const value = asked.has(name) ? Number(asked.get(name)) : NaN;
    return Number.isInteger(value) && value >= low && value <= high ? value : otherwise;
  };
  const pick = (name, choices, otherwise) => (choices.includes(asked.get(name)) ? asked.get(name) : otherwise);
  const axis = (name, values, otherwise) =>
    asked.get(name) === "mean" && values.length > 1 ? "mean" : values.includes(Number(asked.get(name) ?? NaN)) ? Number(asked.get(name)) : otherwise;

  view.layer = axis("layer", data.layers, data.layer);
  view.head = data.heads ? axis("head", data.heads, data.heads.length > 1 ? "mean" : data.heads[0]) : "mean";
  if (data.traces.length === 2) view.mode = Math.max(0, MODES.indexOf(asked.get("trace")));
  view.scale = pick("scale", ["absolute", "step"], DEFAULTS.scale);
  view.sinks = pick("sinks", ["shown", "masked"], DEFAULTS.sinks);
  view.map = pick("map", ["cividis", "magma"], DEFAULTS.map);
  view.opacity = whole("opacity", 0, 100, DEFAULTS.opacity);
  view.panel = whole("panel", 0, data.panels.length - 1, 0);
  view.kept = asked.get("kept") === "shown" && data.traces.some((trace) => trace.kept);
  const span = (name, size) => {
    const [low, high] = (asked.get(name) ?? "").split("-").map((part) => (part === "" ? NaN : Number(part)));
    const end = high ?? low;
    return Number.isInteger(low) && Number.isInteger(end) && low >= 0 && low <= end && end < size ? [low, end] : null;
  };
  const { rows, cols } = data.panels[view.panel], r = span("rows", rows), c = span("cols", cols);
  view.region = r && c ? [r[0], c[0], r[1], c[1]] : null;
  const trace = asked.has("pruned_step") && data.traces.length === 2 ? 1 : 0;
  view.column = data.columnOf[trace][whole(trace ? "pruned_step" : "step", 0, data.traces[trace].tokens.length - 1, 0)];
  return view;
}

// -------------------------------------------------------------------------------------------- Explorer

const MARKUP = `
<header class="vp-head">
  <div>
    <p class="vp-brand">VisionPulse explorer</p>
    <h1 data-ref="question"></h1>
    <p class="vp-muted" data-ref="about"></p>
  </div>
  <div class="vp-row">
    <button type="button" data-ref="theme"></button>
    <button type="button" data-ref="openHelp" aria-haspopup="dialog">Help <kbd>?</kbd></button>
  </div>
</header>
<p class="vp-note" data-ref="notes" hidden></p>
<div class="vp-toolbar" role="group" aria-label="What is shown">
  <div class="vp-segment" role="group" aria-label="Trace" data-ref="modes">
    <button type="button">Dense</button><button type="button">Pruned</button><button type="button">Difference</button>
  </div>
  <label>Layer <select data-ref="layer"></select></label>
  <label data-ref="headLabel">Head <select data-ref="head"></select></label>
  <label>Scale <select data-ref="scale">
    <option value="absolute">all steps</option><option value="step">each step</option>
  </select></label>
  <label>Colours <select data-ref="map"><option>magma</option><option>cividis</option></select></label>
  <label>Opacity <input type="range" min="0" max="100" data-ref="opacity"></label>
  <button type="button" aria-pressed="false" data-ref="sinks">Mask sinks</button>
  <button type="button" aria-pressed="false" data-ref="kept">Mark dropped</button>
</div>
<div class="vp-main">
  <section aria-label="Image" class="vp-image">
    <div class="vp-stage" data-ref="stage">
      <canvas data-ref="photo" role="img"></canvas><canvas data-ref="heat" aria-hidden="true"></canvas><canvas data-ref="marks" aria-hidden="true"></canvas>
      <p class="vp-veil" data-ref="veil" hidden></p>
    </div>
    <div class="vp-thumbs" role="group" aria-label="Images and frames" data-ref="thumbs" hidden></div>
    <div class="vp-bar"><span data-ref="low"></span><canvas data-ref="bar" aria-hidden="true" width="256" height="1"></canvas><span data-ref="high"></span></div>
    <p class="vp-muted" data-ref="unit"></p>
    <p class="vp-note" data-ref="sinkNote" hidden></p>
    <p class="vp-value" data-ref="value"></p>
  </section>
  <section aria-label="Reasoning" class="vp-reasoning">
    <div class="vp-now" role="status" aria-live="polite" data-ref="live"></div>
    <div class="vp-row vp-transport">
      <button type="button" data-ref="back" aria-label="One step back">◀</button>
      <button type="button" data-ref="play" class="vp-play">Play</button>
      <button type="button" data-ref="forward" aria-label="One step forward">▶</button>
      <input type="range" min="0" data-ref="slider" aria-label="Step">
    </div>
    <div data-ref="strips"></div>
    <div class="vp-row vp-caption"><span data-ref="curveTitle"></span><span class="vp-legend" data-ref="legend"></span><button type="button" data-ref="divergence" hidden></button></div>
    <div class="vp-curve" data-ref="curve"><canvas data-ref="plot" role="img"></canvas><div class="vp-cursor" data-ref="cursor"></div></div>
    <fieldset class="vp-region">
      <legend>Patch or region</legend>
      <label>rows <input type="number" min="0" data-ref="row0"></label><label>to <input type="number" min="0" data-ref="row1"></label>
      <label>columns <input type="number" min="0" data-ref="col0"></label><label>to <input type="number" min="0" data-ref="col1"></label>
      <button type="button" data-ref="clear">Clear</button>
    </fieldset>
    <div class="vp-peaks" data-ref="peaks"></div>
  </section>
</div>
<footer class="vp-foot">
  <div class="vp-copy"><span>Link to this view</span><code data-ref="link" tabindex="0" role="group" aria-label="Link to this view"></code><button type="button" data-ref="copyLink">Copy link</button></div>
  <div class="vp-copy"><span>Paper figure</span><code data-ref="command" tabindex="0" role="group" aria-label="Command for the paper figure"></code><button type="button" data-ref="copyCommand">Copy command</button></div>
  <div class="vp-row"><button type="button" data-ref="savePng">Save this view as figure (PNG)</button><span role="status" class="vp-muted" data-ref="told"></span></div>
  <p class="vp-muted">Attention shows where the model read from at a step; it does not by itself explain why the model answered as it did.</p>
  <p class="vp-muted">Values are the recorded float16 attention, lossless, shown to four digits; means are taken over them.</p>
</footer>
<dialog class="vp-help" data-ref="help" aria-label="Help">
  <h2>Keys and gestures</h2><dl data-ref="keys"></dl>
  <p>Click or hover a token for its heatmap. Click a patch, or drag a box, to see on the token strip which steps looked there.</p>
  <p data-ref="sinkHelp"></p>
  <button type="button" data-ref="closeHelp">Close</button>
</dialog>`;

let instances = 0;

function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const readable = (token) => (token === "" ? "∅" : token.replaceAll("\n", "↵").replaceAll("\t", "⇥"));

class Explorer {
  constructor(root, payload, { link = "", page = false, onLink = () => {} } = {}) {
    this.root = root;
    this.data = new Data(payload);
    this.page = page;
    this.onLink = onLink;
    this.hover = null; // column under the pointer on a token strip
    this.pointed = null; // patch under the pointer on the image
    this.drag = null;
    this.theme = "auto";
    this.stop = new AbortController(); // every listener ends with it
    this.id = `vp${instances++}`;
    root.classList.add("vp-explorer");
    root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab leaves our keys alone
    root.tabIndex = -1;
    root.innerHTML = MARKUP; // constant; data enters below, as text
    this.ref = Object.fromEntries([...root.querySelectorAll("[data-ref]")].map((e) => [e.dataset.ref, e]));
    this.ready = this.open(link);
  }

  async open(link) {
    await this.data.open();
    this.view = viewFromText(this.data, link);
    this.pictures = await Promise.all(this.data.panels.map((panel) => this.picture(panel)));
    if (this.stop.signal.aborted) return;
    this.fill();
    this.listen();
    this.paintTheme();
    await this.set({});
    this.writeLink();
    this.root.dataset.ready = "true";
  }

  async picture(panel) {
    if (panel.picture === null) return null;
    const image = new Image();
    image.src = this.data.pictures[panel.picture];
    await image.decode();
    return image;
  }

  close() {
    this.pause();
    clearTimeout(this.linkTimer);
    this.stop.abort();
    this.resize?.disconnect();
  }

  on(target, type, handler, options = {}) {
    target.addEventListener(type, handler, { signal: this.stop.signal, ...options });
  }

  // ---- the parts of the document that never change

  fill() {
    const { data, ref } = this;
    ref.question.textContent = data.question;
    ref.about.textContent = data.about;
    ref.notes.textContent = data.notes.join(" ");
    ref.notes.hidden = !data.notes.length;
    const options = (select, values, recorded) => {
      for (const value of values) select.append(make("option", String(value), { value }));
      const mean = `mean of ${values.length}` + (values.length < recorded ? ` of ${recorded}` : "");
      if (values.length > 1) select.append(make("option", mean, { value: "mean" }));
    };
    options(ref.layer, data.layers, data.recorded_layers);
    if (data.heads) options(ref.head, data.heads, data.heads.length);
    ref.headLabel.hidden = !data.heads;
    ref.modes.hidden = data.traces.length < 2;
    ref.kept.hidden = !data.traces.some((trace) => trace.kept);
    ref.slider.max = data.last;
    ref.sinkHelp.textContent = `A sink is a patch whose median attention over all steps is more than ${SINK_FACTOR} times that of the ` +
      "typical patch, judged on the first trace at the layer and head shown. Masking changes colours and scale, never values, mass or curves.";
    for (const [key, does] of KEYS) {
      const term = make("dt");
      for (const part of key.split(" ")) term.append(/^[+,]$/.test(part) ? part : make("kbd", part.replace(",", "")), " ");
      ref.keys.append(term, make("dd", does));
    }
    if (data.divergence !== null) {
      ref.divergence.hidden = false;
      ref.divergence.textContent = "Go to first divergence";
    }
    this.fillThumbs();
    ref.strips.classList.toggle("vp-pair", data.traces.length === 2);
    this.strips = data.traces.map((trace, t) => this.fillStrip(trace, t));
    this.lines = data.traces.map(() => {
      const line = make("p"), name = make("span", "", { class: "vp-name" }), token = make("b"), facts = make("span");
      line.append(name, " ", token, " ", facts);
      ref.live.append(line);
      return { name, token, facts };
    });
  }

  fillThumbs() {
    const { data, ref } = this;
    ref.thumbs.hidden = data.panels.length < 2;
    if (ref.thumbs.hidden) return;
    this.thumbs = data.panels.map((panel, i) => {
      const button = make("button", undefined, { type: "button", "aria-label": panel.label, title: panel.label });
      const canvas = make("canvas");
      canvas.height = 64;
      canvas.width = Math.round((64 * panel.width) / panel.height);
      button.append(canvas);
      this.on(button, "click", () => this.set({ panel: i, region: null }));
      ref.thumbs.append(button);
      return { canvas, button, rects: this.rects(i, canvas.width, canvas.height) };
    });
  }

  fillStrip(trace, t) {
    const { data, ref } = this, steps = data.columns[t];
    const box = make("div", undefined, { class: "vp-strip", role: "listbox", tabindex: "0", "aria-label": `${trace.name} tokens` });
    const alone = new Uint8Array(trace.tokens.length);
    if (data.traces.length === 2) steps.forEach((step, c) => step >= 0 && data.columns[1 - t][c] < 0 && (alone[step] = 1));
    const tokens = trace.tokens.map((token, step) => {
      const element = make("span", readable(token), { role: "option", id: `${this.id}-${t}-${step}`, "aria-selected": "false" });
      element.dataset.step = step;
      if (token.includes("\n")) element.classList.add("vp-newline");
      if (step === trace.answer) element.classList.add("vp-answer");
      if (alone[step]) element.classList.add("vp-alone");
      if (data.columnOf[t][step] === data.divergence) element.classList.add("vp-diverges");
      box.append(element);
      return element;
    });
    const columnAt = (event) => {
      const token = event.target.closest("[data-step]");
      return token && data.columnOf[t][Number(token.dataset.step)];
    };
    this.on(box, "click", (event) => {
      const column = columnAt(event);
      if (column !== null) this.set({ column, mode: this.modeFor(t, column) });
    });
    this.on(box, "pointerover", (event) => event.pointerType === "mouse" && this.preview(columnAt(event)));
    this.on(box, "pointerleave", () => this.preview(null));
    const heading = make("div", undefined, { class: "vp-row vp-caption" }), shade = make("span", "", { class: "vp-muted" });
    heading.append(make("strong", data.traces.length === 2 ? `${trace.name} tokens` : "Tokens"), shade);
    ref.strips.append(heading, box);
    return { box, tokens, shade, here: null };
  }

  /** A token of the other trace brings that trace into view, unless the difference exists there. */
  modeFor(t, column) {
    const { mode } = this.view;
    return mode === 2 && this.data.columns[1 - t][column] >= 0 ? 2 : t;
  }

  // ---- changing the view

  /** Change what is shown. Moving the step draws at once; another layer or head may have to be decoded first. */
  async set(changes) {
    const before = this.view, view = { ...before, ...changes };
    view.column = this.nearest(view.column, view.mode);
    this.view = view;
    this.hover = null;
    const key = `${view.layer}/${view.head}`;
    if (key !== this.shownPlane) {
      const plane = await this.data.select(view.layer, view.head);
      if (key !== `${this.view.layer}/${this.view.head}` || this.stop.signal.aborted) return; // overtaken
      this.plane = plane;
      this.shownPlane = key;
      this.drawAll();
    } else if (Object.keys(changes).some((name) => name !== "column")) this.drawAll();
    else this.drawStep();
  }

  /** The column itself, or the closest one where the shown trace has a step. */
  nearest(column, mode) {
    if (mode === 2) return column;
    const steps = this.data.columns[mode];
    for (let away = 0; away <= this.data.last; away++)
      for (const c of [column - away, column + away]) if (steps[c] >= 0) return c;
    return column;
  }

  move(count) {
    const { data, view } = this, direction = Math.sign(count);
    let { column } = view;
    for (let c = column + direction; count !== 0 && c >= 0 && c <= data.last; c += direction)
      if (view.mode === 2 || data.columns[view.mode][c] >= 0) { column = c; count -= direction; }
    this.set({ column });
  }

  moveAlong(axis, name, by) {
    if (!axis || axis.length < 2) return;
    const choices = [...axis, "mean"], at = choices.indexOf(this.view[name]) + by;
    if (at >= 0 && at < choices.length) this.set({ [name]: choices[at] });
  }

  preview(column) {
    if (column === this.hover) return;
    this.hover = column;
    this.drawHeat();
  }

  play() {
    if (this.timer) return this.pause();
    const end = () => this.nearest(this.data.last, this.view.mode);
    if (this.view.column === end()) this.set({ column: this.nearest(0, this.view.mode) });
    this.ref.live.setAttribute("aria-live", "off"); // eight announcements a second would be noise
    this.timer = setInterval(() => {
      this.move(1);
      if (this.view.column === end()) this.pause();
    }, 125);
    this.ref.play.textContent = "Pause";
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.ref.play.textContent = "Play";
    this.ref.live.setAttribute("aria-live", "polite");
  }

  // ---- drawing

  get column() { return this.hover ?? this.view.column; }
  get masked() { return this.view.sinks === "masked" ? this.data.sinks(this.plane) : null; }
  get palette() { return this.view.mode === 2 ? "difference" : this.view.map; }

  regionPatches() {
    const { region, panel } = this.view, { grid } = this.data;
    if (!region) return [];
    const [r0, c0, r1, c1] = region;
    return this.data.patchesOf[panel].filter((p) => grid.row[p] >= r0 && grid.row[p] <= r1 && grid.col[p] >= c0 && grid.col[p] <= c1);
  }

  regionName() {
    const [r0, c0, r1, c1] = this.view.region;
    return r0 === r1 && c0 === c1 ? `row ${r0}, column ${c0}` : `rows ${r0} to ${r1}, columns ${c0} to ${c1}`;
  }

  drawAll() {
    this.drawControls();
    this.layout();
    this.drawSeries();
    this.drawStep();
  }

  drawControls() {
    const { ref, view, data } = this;
    ref.layer.value = view.layer;
    ref.head.value = view.head;
    ref.scale.value = view.scale;
    ref.map.value = view.map;
    ref.map.disabled = view.mode === 2;
    ref.opacity.value = view.opacity;
    [...ref.modes.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === view.mode)));
    ref.sinks.setAttribute("aria-pressed", String(view.sinks === "masked"));
    ref.kept.setAttribute("aria-pressed", String(view.kept));
    const { rows, cols } = data.panels[view.panel], [r0, c0, r1, c1] = view.region ?? ["", "", "", ""];
    Object.entries({ row0: r0, row1: r1, col0: c0, col1: c1 }).forEach(([name, value]) => {
      ref[name].max = (name.startsWith("row") ? rows : cols) - 1;
      if (ref[name] !== document.activeElement || value !== "") ref[name].value = value;
    });
    ref.clear.disabled = !view.region;
    this.thumbs?.forEach(({ button }, i) => button.setAttribute("aria-pressed", String(i === view.panel)));
  }

  /** Patch boxes of a panel in whole pixels of a canvas, so that neighbours meet without a seam. */
  rects(panel, width, height) {
    const { data } = this, { width: w, height: h } = data.panels[panel];
    return data.patchesOf[panel].map((p) => {
      const [x0, y0, x1, y1] = [0, 1, 2, 3].map((i) => Math.round(data.box[4 * p + i] * (i % 2 ? height / h : width / w)));
      return [p, x0, y0, x1 - x0, y1 - y0];
    });
  }

  layout() {
    const { ref, data, view } = this, panel = data.panels[view.panel], pixel = window.devicePixelRatio || 1;
    const across = Math.min(ref.stage.parentElement.clientWidth, (620 * panel.width) / panel.height);
    ref.stage.style.width = `${across}px`;
    ref.stage.style.aspectRatio = `${panel.width} / ${panel.height}`;
    const width = Math.round(across * pixel), height = Math.round((width * panel.height) / panel.width);
    const key = `${view.panel}/${width}`;
    if (key !== this.laidOut && width > 0) {
      this.laidOut = key;
      for (const name of ["photo", "heat", "marks"]) Object.assign(ref[name], { width, height });
      this.drawPhoto(ref.photo.getContext("2d"), view.panel, width, height);
      ref.photo.setAttribute("aria-label", `${panel.label} with attention per patch, ${panel.rows} rows of ${panel.cols}`);
      this.stageRects = this.rects(view.panel, width, height);
    }
    ref.heat.style.opacity = view.opacity / 100;
  }

  drawPhoto(context, panel, width, height) {
    const picture = this.pictures[panel];
    context.imageSmoothingEnabled = !picture || width < 3 * picture.naturalWidth; // tiny pictures stay crisp
    context.fillStyle = "#777";
    if (picture) context.drawImage(picture, 0, 0, width, height);
    else context.fillRect(0, 0, width, height);
  }

  drawPatches(context, rects, values, limit, masked) {
    const styles = STYLES[this.palette], signed = this.view.mode === 2;
    for (const [p, x, y, w, h] of rects) {
      if (masked && masked[p]) continue;
      const t = limit > 0 ? Math.max(-1, Math.min(1, values[p] / limit)) : 0;
      context.fillStyle = styles[signed ? Math.round(127.5 + 127.5 * t) : Math.round(255 * t)];
      context.fillRect(x, y, w, h);
    }
  }

  /** The map of the step under the pointer, or of the current one. Only canvases: this is what must be fast. */
  drawHeat() {
    const { ref, view, data, masked } = this, context = ref.heat.getContext("2d");
    const values = data.values(this.plane, view.mode, this.column);
    const limit = view.scale === "step" ? data.peak(values, masked) : data.limit(this.plane, view.mode, masked);
    this.limit = limit;
    context.clearRect(0, 0, ref.heat.width, ref.heat.height);
    ref.veil.hidden = Boolean(values);
    if (values) this.drawPatches(context, this.stageRects, values, limit, masked);
    else ref.veil.textContent = "No token of the other trace is aligned with this one, so there is no difference here.";
    this.drawMarks();
    this.thumbs?.forEach(({ canvas, rects }, i) => {
      const small = canvas.getContext("2d");
      this.drawPhoto(small, i, canvas.width, canvas.height);
      small.globalAlpha = view.opacity / 100;
      if (values) this.drawPatches(small, rects, values, limit, masked);
      small.globalAlpha = 1;
    });
    const difference = view.mode === 2;
    ref.low.textContent = difference ? signed(-limit) : "0";
    ref.high.textContent = difference ? signed(limit) : number(limit);
    ref.unit.textContent = (difference ? "pruned − dense attention" : "attention, share of the softmax row") +
      (view.scale === "step" ? "; this step's own scale" : "; one scale for all steps");
    this.describeSinks(values);
    this.describePatch(values);
  }

  drawMarks() {
    const { ref, view, masked } = this, context = ref.marks.getContext("2d"), unit = Math.max(1, ref.marks.width / 520);
    context.clearRect(0, 0, ref.marks.width, ref.marks.height);
    if (view.kept) this.drawDropped(context, this.stageRects, unit);
    if (masked) this.drawCrosses(context, this.stageRects, masked, unit);
    const region = new Set(this.regionPatches());
    if (region.size) this.outline(context, this.stageRects.filter(([p]) => region.has(p)), unit);
    const pointed = this.stageRects.filter(([p]) => p === this.pointed);
    if (this.drag?.box) this.outline(context, [[null, ...this.drag.box]], unit);
    else if (pointed.length) this.outline(context, pointed, unit / 2);
  }

  outline(context, rects, unit) {
    const x0 = Math.min(...rects.map((r) => r[1])), y0 = Math.min(...rects.map((r) => r[2]));
    const x1 = Math.max(...rects.map((r) => r[1] + r[3])), y1 = Math.max(...rects.map((r) => r[2] + r[4]));
    for (const [colour, width] of [["#000", 4], ["#fff", 2]]) { // seen on any picture
      context.strokeStyle = colour;
      context.lineWidth = width * unit;
      context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    }
  }

  /** Which trace's kept set goes with the shown map, and at which step. */
  keptStep() {
    const t = this.view.mode < 2 && this.data.traces[this.view.mode].kept ? this.view.mode : this.data.traces.findIndex((trace) => trace.kept);
    return [t, t < 0 ? -1 : this.data.columns[t][this.column]];
  }

  drawDropped(context, rects, unit) {
    const [t, step] = this.keptStep();
    if (step < 0) return;
    const path = new Path2D();
    for (const [p, x, y, w, h] of rects) if (!this.data.visible(t, step, p)) path.rect(x, y, w, h);
    context.save();
    context.clip(path);
    context.fillStyle = "rgba(24, 24, 27, .62)";
    context.fillRect(0, 0, context.canvas.width, context.canvas.height);
    context.strokeStyle = "rgba(255, 255, 255, .38)";
    context.lineWidth = unit;
    context.beginPath();
    const { width, height } = context.canvas;
    for (let x = -height; x < width; x += 7 * unit) { context.moveTo(x, height); context.lineTo(x + height, 0); }
    context.stroke();
    context.restore();
  }

  drawCrosses(context, rects, masked, unit) {
    context.beginPath();
    for (const [p, x, y, w, h] of rects) {
      if (!masked[p]) continue;
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

  describeSinks(values) {
    const { ref, view, data } = this;
    ref.sinkNote.hidden = view.sinks === "shown";
    if (view.sinks === "shown") return;
    const sinks = data.sinks(this.plane), count = sinks.reduce((sum, flag) => sum + flag, 0);
    let held = 0;
    if (values) for (let p = 0; p < values.length; p++) if (sinks[p]) held += values[p];
    ref.sinkNote.textContent = count === 0 ? "Sinks masked: no patch is one at this layer and head."
      : `Sinks masked: ${count} ${count === 1 ? "patch" : "patches"} crossed out, left out of colours and scale` +
        (values && view.mode < 2 ? `; attention there ${number(held)}.` : ".");
  }

  describePatch(values) {
    const { ref, data, view } = this, p = this.pointed;
    if (p !== null && values) {
      const value = view.mode === 2 ? `${signed(values[p])} pruned − dense` : `${number(values[p])} of the softmax row`;
      const [t, step] = this.keptStep(), dropped = step >= 0 && !data.visible(t, step, p);
      const sink = this.masked?.[p] ? ", masked sink" : "";
      ref.value.textContent = `Row ${data.grid.row[p]}, column ${data.grid.col[p]}: attention ${value}${dropped ? ", dropped" : ""}${sink}`;
    } else if (view.region && values) {
      let sum = 0;
      for (const patch of this.regionPatches()) sum += values[patch];
      const what = view.mode === 2 ? `${signed(sum)} pruned − dense` : `${number(sum)} of the softmax row`;
      ref.value.textContent = `${this.regionName().replace(/^r/, "R")}: attention ${what}`;
    } else ref.value.textContent = "Point at a patch to read its value.";
  }

  /** Token shades, curve and best steps: they change with layer, head, region and theme, not with the step. */
  drawSeries() {
    const { ref, data, view } = this, patches = this.regionPatches(), reverse = patches.length > 0;
    this.masses = data.traces.map((_, t) => data.mass(t, view.layer, view.head));
    this.series = reverse ? data.traces.map((_, t) => data.reverse(this.plane, t, patches)) : this.masses;
    this.top = Math.max(1e-12, ...this.series.map((values) => values.reduce((a, b) => Math.max(a, b), 0)));
    const what = reverse ? `attention to ${this.regionName()}` : "visual mass";
    const shades = this.shades(reverse ? "--vp-warm" : "--vp-accent");
    this.strips.forEach(({ tokens, shade }, t) => {
      shade.textContent = `shaded by ${what}, 0 to ${number(this.top)}`;
      tokens.forEach((token, step) => {
        const [background, ink] = shades[Math.round((shades.length - 1) * (this.series[t][step] / this.top))];
        token.style.backgroundColor = background;
        token.style.color = ink;
      });
    });
    ref.curveTitle.textContent = (reverse ? what[0].toUpperCase() + what.slice(1) : "Visual mass") + " per step";
    this.drawPeaks(reverse);
    this.drawCurve();
    const bar = ref.bar.getContext("2d");
    solid(this.palette).forEach((style, i) => { bar.fillStyle = style; bar.fillRect(i, 0, 1, 1); });
  }

  /** From the surface to a colour of the theme, each with the ink that reads best on it. */
  shades(name) {
    const style = getComputedStyle(this.root), rgb = (variable) => style.getPropertyValue(variable).match(/\d+/g).map(Number);
    const from = rgb("--vp-surface-rgb"), to = rgb(`${name}-rgb`);
    return Array.from({ length: 64 }, (_, i) => {
      const colour = from.map((v, c) => Math.round(v + (to[c] - v) * (i / 63)));
      return [`rgb(${colour})`, luminance(colour) > 0.179 ? "#000" : "#fff"];
    });
  }

  drawPeaks(reverse) {
    const { ref, data } = this;
    ref.peaks.replaceChildren();
    if (!reverse) return;
    data.traces.forEach((trace, t) => {
      const best = [...this.series[t].keys()].sort((a, b) => this.series[t][b] - this.series[t][a]).slice(0, 3);
      const line = make("div", undefined, { class: "vp-row" });
      line.append(make("span", data.traces.length === 2 ? `${trace.name} looked there most at` : "Looked there most at"));
      ref.peaks.append(line);
      for (const step of best) {
        const button = make("button", `step ${step} ${readable(trace.tokens[step])} ${number(this.series[t][step])}`, { type: "button" });
        this.on(button, "click", () => this.set({ column: data.columnOf[t][step], mode: this.modeFor(t, data.columnOf[t][step]) }));
        line.append(button);
      }
    });
  }

  drawCurve() {
    const { ref, data } = this, pixel = window.devicePixelRatio || 1, style = getComputedStyle(this.root);
    const width = ref.curve.clientWidth, height = ref.curve.clientHeight;
    if (!width) return;
    Object.assign(ref.plot, { width: Math.round(width * pixel), height: Math.round(height * pixel) });
    this.area = { left: 46, right: width - 8, top: 20, bottom: height - 20 };
    const context = ref.plot.getContext("2d");
    context.scale(pixel, pixel);
    this.paintCurve(context, this.area, (name) => style.getPropertyValue(name), 11);
    const colours = ["--vp-line-dense", "--vp-line-pruned"];
    ref.legend.replaceChildren();
    if (data.traces.length === 2) data.traces.forEach((trace, t) => {
      const sample = make("i");
      sample.style.borderTopColor = style.getPropertyValue(colours[t]);
      if (t) sample.style.borderTopStyle = "dashed";
      const entry = make("span", ` ${trace.name}`);
      entry.prepend(sample);
      ref.legend.append(entry);
    });
    ref.plot.setAttribute("aria-label", `${ref.curveTitle.textContent}, 0 to ${number(this.top)}`);
  }

  x(column, area) { return area.left + ((area.right - area.left) * column) / Math.max(1, this.data.last); }

  paintCurve(context, area, colour, size) {
    const { data } = this;
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
      context.fillText(part ? (this.top * part).toPrecision(2) : "0", area.left - 6, y);
    }
    context.textBaseline = "alphabetic";
    [[0, "left"], [data.last, "right"]].forEach(([column, align]) => {
      context.textAlign = align;
      context.fillText(String(column), this.x(column, area), area.bottom + size + 4);
    });
    context.textAlign = "center";
    context.fillText(data.traces.length === 2 ? "aligned token" : "step", (area.left + area.right) / 2, area.bottom + size + 4);
    this.paintMoments(context, area, colour, size);
    [0, 1].slice(0, data.traces.length).forEach((t) => {
      context.strokeStyle = colour(t ? "--vp-line-pruned" : "--vp-line-dense");
      context.lineWidth = 1.5;
      context.setLineDash(t ? [5, 3] : []);
      context.beginPath();
      let open = false;
      data.columns[t].forEach((step, column) => {
        if (step < 0) { open = false; return; }
        const y = area.bottom - (area.bottom - area.top) * (this.series[t][step] / this.top);
        if (open) context.lineTo(this.x(column, area), y);
        else { context.moveTo(this.x(column, area), y); context.lineTo(this.x(column, area) + 1, y); }
        open = true;
      });
      context.stroke();
    });
    context.setLineDash([]);
  }

  /** Where thinking ends and where the traces part. */
  paintMoments(context, area, colour, size) {
    const { data } = this, answer = data.traces[0].answer, moments = [];
    if (answer !== null && answer < data.traces[0].tokens.length) moments.push([data.columnOf[0][answer], "answer", "--vp-muted"]);
    if (data.divergence !== null) moments.push([data.divergence, "diverges", "--vp-warn"]);
    for (const [column, label, name] of moments) {
      const x = this.x(column, area), right = x > (area.left + area.right) / 2;
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

  /** Everything that follows the step. Positions are read before anything is written: one layout per step. */
  drawStep() {
    const { ref, data, view } = this;
    const here = this.strips.map((strip, t) => {
      const step = data.columns[t][view.column], token = step < 0 ? null : strip.tokens[step];
      return { token, at: token?.offsetTop, tall: token?.offsetHeight, from: strip.box.scrollTop, view: strip.box.clientHeight };
    });
    this.drawHeat();
    here.forEach(({ token, at, tall, from, view: seen }, t) => {
      const strip = this.strips[t];
      if (strip.here !== token) {
        strip.here?.setAttribute("aria-selected", "false");
        token?.setAttribute("aria-selected", "true");
        strip.here = token;
      }
      strip.box.classList.toggle("vp-nowhere", !token);
      if (!token) return strip.box.removeAttribute("aria-activedescendant");
      strip.box.setAttribute("aria-activedescendant", token.id);
      if (at < from + 4 || at + tall > from + seen - 4) strip.box.scrollTop = at - seen / 2;
    });
    ref.slider.value = view.column;
    ref.slider.setAttribute("aria-valuetext", this.writeStep());
    if (this.area) ref.cursor.style.transform = `translateX(${this.x(view.column, this.area)}px)`;
    clearTimeout(this.linkTimer);
    this.linkTimer = setTimeout(() => this.writeLink(), 150); // browsers refuse a new address at every frame
  }

  /** One line per trace: token, step, mass, probability, what was kept. */
  writeStep() {
    const { data, view, ref } = this, pair = data.traces.length === 2;
    data.traces.forEach((trace, t) => {
      const step = data.columns[t][view.column], { name, token, facts } = this.lines[t];
      name.textContent = pair ? trace.name : "";
      token.textContent = step < 0 ? "—" : readable(trace.tokens[step]);
      const known = [`step ${step} of ${trace.tokens.length - 1}`];
      if (step >= 0) {
        known.push(`mass ${number(this.masses[t][step])}`, `probability ${number(Math.exp(trace.logprobs[step]))}`);
        if (trace.kept) known.push(this.keptText(t, step));
      }
      facts.textContent = step < 0 ? "no token aligned here" : known.join(" · ");
      name.parentElement.classList.toggle("vp-other", pair && view.mode !== 2 && view.mode !== t);
    });
    return [...ref.live.children].map((line) => [...line.children].map((part) => part.textContent).filter(Boolean).join(" ")).join("; ");
  }

  keptText(t, step) {
    const { data } = this, budget = data.traces[t].budget?.[step];
    let kept = 0;
    for (let p = 0; p < data.count; p++) kept += data.visible(t, step, p);
    return `kept ${kept} of ${data.count} patches` + (budget == null ? "" : ` (budget ${+(100 * budget).toPrecision(3)} %)`);
  }

  writeLink() {
    const link = viewToText(this.data, this.view), { ref } = this;
    ref.link.textContent = `#${link}`;
    ref.command.textContent = `${this.data.command} --view '${link}' --figure view.pdf`;
    this.onLink(link);
  }

  // ---- theme

  paintTheme() {
    const host = document.body.dataset.jpThemeLight; // JupyterLab's own theme wins over the system's
    const system = host ? host === "false" : window.matchMedia("(prefers-color-scheme: dark)").matches;
    this.root.dataset.theme = this.theme === "auto" ? (system ? "dark" : "light") : this.theme;
    if (this.page) document.documentElement.dataset.theme = this.root.dataset.theme;
    this.ref.theme.textContent = `Theme: ${this.theme}`;
    if (this.shownPlane) this.drawSeries();
  }

  // ---- listening

  listen() {
    const { ref, data } = this, click = (name, does) => this.on(ref[name], "click", does);
    const axis = (text) => (text === "mean" ? text : Number(text));
    this.on(ref.layer, "change", () => this.set({ layer: axis(ref.layer.value) }));
    this.on(ref.head, "change", () => this.set({ head: axis(ref.head.value) }));
    this.on(ref.scale, "change", () => this.set({ scale: ref.scale.value }));
    this.on(ref.map, "change", () => this.set({ map: ref.map.value }));
    this.on(ref.opacity, "input", () => this.set({ opacity: Number(ref.opacity.value) }));
    this.on(ref.slider, "input", () => this.set({ column: Number(ref.slider.value) }));
    [...ref.modes.children].forEach((button, mode) => this.on(button, "click", () => this.set({ mode })));
    click("sinks", () => this.toggle("s"));
    click("kept", () => this.toggle("k"));
    click("back", () => this.move(-1));
    click("forward", () => this.move(1));
    click("play", () => this.play());
    click("clear", () => this.set({ region: null }));
    click("divergence", () => this.set({ column: data.divergence, mode: data.columns[this.view.mode]?.[data.divergence] >= 0 ? this.view.mode : 2 }));
    click("theme", () => {
      const themes = ["auto", "light", "dark"];
      this.theme = themes[(themes.indexOf(this.theme) + 1) % 3];
      this.paintTheme();
    });
    click("openHelp", () => ref.help.showModal());
    click("closeHelp", () => ref.help.close());
    click("copyLink", () => this.copy(ref.link, this.page ? location.href.split("#")[0] + ref.link.textContent : ref.link.textContent));
    click("copyCommand", () => this.copy(ref.command, ref.command.textContent));
    click("savePng", () => { ref.told.textContent = `Saved ${savePng(this)}.`; });
    for (const name of ["row0", "row1", "col0", "col1"]) this.on(ref[name], "change", () => this.readRegion(name));
    this.listenStage();
    this.listenCurve();
    this.on(this.page ? document : this.root, "keydown", (event) => this.key(event));
    if (this.page) this.on(window, "hashchange", () => this.follow(location.hash));
    this.on(window.matchMedia("(prefers-color-scheme: dark)"), "change", () => this.paintTheme());
    this.resize = new ResizeObserver(() => this.shownPlane && requestAnimationFrame(() => this.resized()));
    this.resize.observe(this.root);
  }

  /** Show what a link says, unless it is the view already shown. */
  follow(link) {
    if (link.replace(/^#/, "") !== viewToText(this.data, this.view)) this.set(viewFromText(this.data, link));
  }

  resized() {
    if (this.stop.signal.aborted || this.root.clientWidth === this.seenWidth) return;
    this.seenWidth = this.root.clientWidth;
    this.layout();
    this.drawCurve();
    this.drawStep();
  }

  listenStage() {
    const { ref, data } = this, scale = () => data.panels[this.view.panel].width / ref.stage.clientWidth;
    const place = (event) => {
      const box = ref.stage.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    const patchAt = ([x, y]) => {
      const px = x * scale(), py = y * scale(), { box } = data;
      return data.patchesOf[this.view.panel].find((p) => px >= box[4 * p] && px < box[4 * p + 2] && py >= box[4 * p + 1] && py < box[4 * p + 3]) ?? null;
    };
    this.on(ref.stage, "pointermove", (event) => {
      const to = place(event);
      this.pointed = patchAt(to);
      if (this.drag) {
        const [x0, y0] = this.drag.from, pixel = ref.marks.width / ref.stage.clientWidth;
        this.drag.moved ||= Math.hypot(to[0] - x0, to[1] - y0) > 6;
        if (this.drag.moved) this.drag.box = [Math.min(x0, to[0]), Math.min(y0, to[1]), Math.abs(to[0] - x0), Math.abs(to[1] - y0)].map((v) => v * pixel);
      }
      this.drawMarks();
      this.describePatch(data.values(this.plane, this.view.mode, this.column));
    });
    this.on(ref.stage, "pointerleave", () => {
      this.pointed = null;
      if (!this.drag) { this.drawMarks(); this.describePatch(data.values(this.plane, this.view.mode, this.column)); }
    });
    this.on(ref.stage, "pointerdown", (event) => {
      if (event.button !== 0) return;
      this.drag = { from: place(event), patch: patchAt(place(event)), moved: false };
      ref.stage.setPointerCapture(event.pointerId);
    });
    this.on(ref.stage, "pointerup", (event) => {
      if (!this.drag) return;
      const { from, patch, moved } = this.drag, to = place(event);
      this.drag = null;
      if (moved) this.set({ region: this.regionBetween(from, to, scale()) });
      else if (patch !== null) {
        const row = data.grid.row[patch], col = data.grid.col[patch], chosen = [row, col, row, col];
        this.set({ region: String(this.view.region) === String(chosen) ? null : chosen });
      }
    });
    this.on(ref.stage, "pointercancel", () => { this.drag = null; this.drawMarks(); });
  }

  /** The patches a box touches, as first and last row and column; null when it touches none. */
  regionBetween(from, to, scale) {
    const { data } = this, [x0, x1] = [from[0], to[0]].sort((a, b) => a - b), [y0, y1] = [from[1], to[1]].sort((a, b) => a - b);
    const touched = data.patchesOf[this.view.panel].filter((p) => {
      const [left, top, right, bottom] = data.box.subarray(4 * p, 4 * p + 4);
      return left < x1 * scale && right > x0 * scale && top < y1 * scale && bottom > y0 * scale;
    });
    if (!touched.length) return null;
    const rows = touched.map((p) => data.grid.row[p]), cols = touched.map((p) => data.grid.col[p]);
    return [Math.min(...rows), Math.min(...cols), Math.max(...rows), Math.max(...cols)];
  }

  /** The four numbers beside the image: a region without a pointer. An empty end means one row or column. */
  readRegion(changed) {
    const { ref } = this, { rows, cols } = this.data.panels[this.view.panel];
    const read = (name, size) => (ref[name].value === "" ? null : Math.min(size - 1, Math.max(0, Math.round(Number(ref[name].value)))));
    let [r0, r1, c0, c1] = [read("row0", rows), read("row1", rows), read("col0", cols), read("col1", cols)];
    if (r0 === null || c0 === null) return;
    if (r1 === null || r1 < r0) { if (changed === "row1" && r1 !== null) r0 = r1; else r1 = r0; }
    if (c1 === null || c1 < c0) { if (changed === "col1" && c1 !== null) c0 = c1; else c1 = c0; }
    this.set({ region: [r0, c0, r1, c1] });
  }

  listenCurve() {
    const { ref, data } = this;
    const go = (event) => {
      const x = event.clientX - ref.curve.getBoundingClientRect().left, { left, right } = this.area;
      this.set({ column: Math.round(data.last * Math.min(1, Math.max(0, (x - left) / (right - left)))) });
    };
    this.on(ref.curve, "pointerdown", (event) => { ref.curve.setPointerCapture(event.pointerId); go(event); });
    this.on(ref.curve, "pointermove", (event) => event.buttons & 1 && go(event));
  }

  toggle(key) {
    const { view, data } = this;
    if (key === "d" && data.traces.length === 2) this.set({ mode: (view.mode + 1) % 3 });
    if (key === "a") this.set({ scale: view.scale === "absolute" ? "step" : "absolute" });
    if (key === "s") this.set({ sinks: view.sinks === "shown" ? "masked" : "shown" });
    if (key === "k" && data.traces.some((trace) => trace.kept)) this.set({ kept: !view.kept });
  }

  key(event) {
    const { target, key } = event, { ref } = this;
    if (ref.help.open || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const arrows = key.startsWith("Arrow") || key === "Home" || key === "End", field = target.closest?.("input, select, textarea");
    if (field && field !== ref.slider && (arrows || field.type !== "range")) return; // the field's own keys
    if (key === " " && target.closest?.("button, select, input")) return;
    const many = event.shiftKey ? 10 : 1, { data } = this, lower = key.toLowerCase();
    const does = {
      arrowleft: () => this.move(-many), arrowright: () => this.move(many),
      arrowup: () => this.moveAlong(data.layers, "layer", 1), arrowdown: () => this.moveAlong(data.layers, "layer", -1),
      "[": () => this.moveAlong(data.heads, "head", -1), "]": () => this.moveAlong(data.heads, "head", 1),
      home: () => this.move(-data.last - 1), end: () => this.move(data.last + 1),
      " ": () => this.play(), "?": () => ref.help.showModal(), escape: () => this.set({ region: null }),
      d: () => this.toggle("d"), a: () => this.toggle("a"), s: () => this.toggle("s"), k: () => this.toggle("k"),
    }[lower];
    if (!does) return;
    event.preventDefault();
    event.stopPropagation();
    does();
  }

  async copy(element, text) {
    try {
      await navigator.clipboard.writeText(text);
      this.ref.told.textContent = "Copied.";
    } catch { // a browser may refuse; then the text is selected, ready for Ctrl+C
      getSelection().selectAllChildren(element);
      this.ref.told.textContent = "Press Ctrl+C to copy the selected text.";
    }
  }
}

// ------------------------------------------------------------------------------------- the view as a PNG

const PAPER = { "--vp-muted": "#52525b", "--vp-rule": "#e4e4e7", "--vp-line-dense": "#1d4ed8", "--vp-line-pruned": "#b45309", "--vp-warn": "#b91c1c" };

/** Draw the view on white, twice the size of a screen, and hand it to the browser as a download. */
function savePng(explorer) {
  const { data, view, ref } = explorer, panel = data.panels[view.panel];
  const canvas = make("canvas"), context = canvas.getContext("2d"), margin = 48, wide = 860;
  const tall = Math.min(1100, Math.round((wide * panel.height) / panel.width)), across = Math.round((tall * panel.width) / panel.height);
  canvas.width = across + 3 * margin + 900;
  canvas.height = Math.max(tall, 560) + 250;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, x, y, size, colour = "#18181b", weight = "") => {
    context.font = `${weight} ${size}px system-ui, sans-serif`;
    context.fillStyle = colour;
    context.textAlign = "left";
    context.fillText(text, x, y, canvas.width - x - margin);
  };
  const layer = view.layer === "mean" ? "mean layer" : `layer ${view.layer}`;
  const head = data.heads ? (view.head === "mean" ? ", mean head" : `, head ${view.head}`) : "";
  write(`${layer}${head}`, margin, 40, 24, PAPER["--vp-muted"]);
  explorer.lines.forEach(({ name, token, facts }, t) => {
    const words = [name.textContent, `“${token.textContent}”`, facts.textContent].filter(Boolean);
    write(words.join("  "), margin, 78 + 36 * t, 26);
  });

  context.save();
  context.translate(margin, 140);
  const values = data.values(explorer.plane, view.mode, view.column), rects = explorer.rects(view.panel, across, tall), unit = across / 520;
  explorer.drawPhoto(context, view.panel, across, tall);
  context.globalAlpha = view.opacity / 100;
  if (values) explorer.drawPatches(context, rects, values, explorer.limit, explorer.masked);
  context.globalAlpha = 1;
  context.beginPath();
  context.rect(0, 0, across, tall);
  context.clip();
  if (view.kept) explorer.drawDropped(context, rects, unit);
  if (explorer.masked) explorer.drawCrosses(context, rects, explorer.masked, unit);
  const region = new Set(explorer.regionPatches());
  if (region.size) explorer.outline(context, rects.filter(([p]) => region.has(p)), unit);
  context.restore();
  context.drawImage(ref.bar, margin, tall + 156, across, 16);
  write(`${ref.low.textContent} to ${ref.high.textContent} ${ref.unit.textContent}`, margin, tall + 200, 22, PAPER["--vp-muted"]);

  const left = across + 2 * margin;
  write(ref.curveTitle.textContent, left, 170, 26);
  const area = { left: left + 70, right: canvas.width - margin, top: 200, bottom: 520 };
  explorer.paintCurve(context, area, (name) => PAPER[name], 20);
  context.fillStyle = "#18181b";
  context.fillRect(explorer.x(view.column, area) - 1, area.top, 2, area.bottom - area.top);
  write(data.question, left, 600, 24);
  write(data.about, left, 636, 20, PAPER["--vp-muted"]);
  write(`#${viewToText(data, view)}`, margin, canvas.height - 20, 18, PAPER["--vp-muted"]);

  // Encoded at once: toBlob waits for an idle moment, which on a busy machine may take a minute.
  const blob = new Blob([bytes(canvas.toDataURL("image/png").split(",")[1])], { type: "image/png" });
  const name = `${data.traces[0].id || "trace"}_${viewToText(data, view)}`.replace(/[^\w.-]+/g, "_") + ".png";
  const link = make("a", "", { download: name });
  link.href = URL.createObjectURL(blob);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  return name;
}

// ------------------------------------------------------------------------------------------ ways in

export function mount(root, payload, options) {
  const explorer = new Explorer(root, payload, options);
  root.explorer = explorer;
  return explorer;
}

/** The offline page: the view lives in the address. */
export function mountPage(root, payload, link) {
  return mount(root, payload, {
    link: location.hash || link,
    page: true,
    onLink: (text) => {
      if (location.protocol !== "about:") history.replaceState(null, "", `#${text}`); // inside a notebook there is no address
    },
  });
}

/** The notebook: the view is a trait, so that Python can read and set it. */
function render({ model, el }) {
  const root = document.createElement("div");
  el.append(root);
  const explorer = mount(root, JSON.parse(model.get("payload")), {
    link: model.get("view"),
    onLink: (text) => { model.set("view", text); model.save_changes(); },
  });
  const follow = () => explorer.ready.then(() => explorer.follow(model.get("view")));
  model.on("change:view", follow);
  return () => { model.off("change:view", follow); explorer.close(); };
}

export default { render };
