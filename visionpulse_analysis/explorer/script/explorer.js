// The explorer: holds the view and tells its parts what changed. Each part is one file and may have five methods:
//   pair()  another trace stands beside the first; draw() follows
//   draw()  anything of the view changed but the step: layer, trace, scale, region, theme, width
//   step()  another step is current
//   heat()  another map is shown: that of the current step, or of the token under the pointer
//   point() another patch is under the pointer

import { Curve } from "./curve.js";
import { Data } from "./data.js";
import { listenToKeys } from "./keys.js";
import { viewFromText, viewToText } from "./link.js";
import { Margins } from "./margins.js";
import { MARKUP } from "./markup.js";
import { Overview } from "./overview.js";
import { Readout } from "./readout.js";
import { Region } from "./region.js";
import { Stage } from "./stage.js";
import { Steps } from "./steps.js";
import { Thumbs } from "./thumbs.js";
import { Tokens } from "./tokens.js";
import { Toolbar } from "./toolbar.js";

const THEMES = ["auto", "light", "dark"];

export class Explorer {
  constructor(root, payload, { link = "", page = false, onLink = () => {} } = {}) {
    this.root = root;
    this.data = new Data(payload);
    this.page = page; // the offline page, not a widget
    this.onLink = onLink;
    this.hover = null; // column under the pointer on a token strip
    this.pointed = null; // patch under the pointer on the image
    this.theme = "auto";
    this.stop = new AbortController(); // every listener ends with it
    root.classList.add("vp-explorer");
    root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab leaves our keys alone
    root.tabIndex = -1;
    root.innerHTML = MARKUP; // constant; data enters below, as text
    this.ref = Object.fromEntries([...root.querySelectorAll("[data-ref]")].map((e) => [e.dataset.ref, e]));
    this.ready = this.open(link);
  }

  async open(link) {
    await this.data.open();
    this.pictures = await Promise.all(this.data.pictures.map(async (url) => {
      const image = new Image();
      image.src = url;
      await image.decode();
      return image;
    }));
    if (this.stop.signal.aborted) return;
    this.view = viewFromText(this.data, link);
    this.data.show(this.view.beside);
    // The tokens come first: they read the layout before anyone writes, so that a step costs one layout.
    this.parts = [Tokens, Curve, Steps, Stage, Thumbs, Readout, Region, Toolbar, Overview, Margins].map((Part) => new Part(this));
    this.tell("pair");
    listenToKeys(this);
    this.listen();
    this.paintTheme();
    await this.set({});
    this.writeLink();
    this.root.dataset.ready = "true";
  }

  listen() {
    this.on(window.matchMedia("(prefers-color-scheme: dark)"), "change", () => this.paintTheme());
    this.watch(new MutationObserver(() => this.paintTheme()), document.body, { attributeFilter: ["data-jp-theme-light", "data-vscode-theme-kind"] });
    this.watch(new ResizeObserver(() => requestAnimationFrame(() => this.resized())), this.root);
  }

  on(target, type, handler) {
    target.addEventListener(type, handler, { signal: this.stop.signal });
  }

  watch(observer, ...what) {
    observer.observe(...what);
    this.stop.signal.addEventListener("abort", () => observer.disconnect());
  }

  close() {
    clearTimeout(this.linkTimer);
    this.stop.abort();
  }

  // ---- changing the view

  /** Change what is shown. Moving the step draws at once; another layer or head may have to be decoded first. */
  async set(changes) {
    const { data } = this, view = { ...this.view, ...changes }, another = view.beside !== data.beside;
    if (another) {
      if (!("column" in changes)) view.column = data.columnBeside(view.column, view.beside);
      data.show(view.beside);
    }
    view.column = data.nearest(view.column, view.mode);
    this.view = view;
    this.hover = null;
    if (another) this.holdFocus(() => this.tell("pair"));
    const keyOf = ({ layer, head, shown }) => `${layer}/${head}/${shown}`, key = keyOf(view);
    if (key !== this.shownPlane) {
      const plane = await data.select(view.layer, view.head, view.shown);
      if (key !== keyOf(this.view) || this.stop.signal.aborted) return; // overtaken
      this.plane = plane;
      this.shownPlane = key;
      this.draw();
    } else if (Object.keys(changes).some((name) => name !== "column")) this.draw();
    else this.step();
  }

  /** Show what a link says, unless it is the view already shown. */
  follow(link) {
    return link.replace(/^#/, "") === viewToText(this.data, this.view) ? null : this.set(viewFromText(this.data, link));
  }

  /** Go `count` steps on or back, over the columns where the shown trace has one. */
  move(count) {
    const { data, view } = this, direction = Math.sign(count);
    let { column } = view;
    for (let c = column + direction; count !== 0 && c >= 0 && c <= data.last; c += direction)
      if (view.mode === 2 || data.columns[view.mode][c] >= 0) { column = c; count -= direction; }
    this.set({ column });
  }

  moveAlong(choices, name, by) {
    const at = choices.indexOf(this.view[name]) + by;
    if (at >= 0 && at < choices.length) this.set({ [name]: choices[at] });
  }

  /** Put the next of the other traces beside the first, or the one before; after the last comes the first. */
  moveBeside(by) {
    const { alignments: { length: count } } = this.data;
    this.set({ beside: ((this.view.beside - 1 + by + count) % count) + 1 });
  }

  toggle(name) {
    const { view, data } = this;
    if (name === "mode" && data.pair) this.set({ mode: (view.mode + 1) % 3 });
    if (name === "scale") this.set({ scale: view.scale === "absolute" ? "step" : "absolute" });
    if (name === "sinks") this.set({ sinks: view.sinks === "shown" ? "masked" : "shown" });
    if (name === "kept" && data.pruned) this.set({ kept: !view.kept });
    if (name === "picture") this.set({ picture: view.picture === "shown" ? "hidden" : "shown" });
    if (name === "overview" && data.maps > 1) this.set({ overview: !view.overview });
  }

  /** Go to a token; that of the other trace brings this trace into view, unless the difference exists there. */
  goTo(t, column) {
    const stays = this.view.mode === 2 && this.data.paired(column);
    this.set({ column, mode: stays ? 2 : t });
  }

  preview(column) {
    if (column === this.hover) return;
    this.hover = column;
    this.heat();
  }

  pointAt(patch) {
    this.pointed = patch;
    this.tell("point");
  }

  // ---- what the parts read

  /** The column whose map is shown. */
  get column() { return this.hover ?? this.view.column; }
  get masked() { return this.view.sinks === "masked" ? this.data.sinks(this.plane) : null; }
  /** The quantity over the picture, and whether its values have a sign. */
  get quantity() { return this.data.table[this.view.shown]; }
  get signed() { return this.view.mode === 2 || this.quantity.signed; }
  get palette() { return this.signed ? "difference" : this.view.map; }
  /** Whether the values stand alone, opaque, without the picture; else how opaque the map is over it. */
  get bare() { return this.view.picture === "hidden"; }
  get alpha() { return this.bare ? 1 : this.view.opacity / 100; }
  get regionPatches() { return this.data.inside(this.view.panel, this.view.region); }

  get regionName() {
    const [r0, c0, r1, c1] = this.view.region;
    return r0 === r1 && c0 === c1 ? `row ${r0}, column ${c0}` : `rows ${r0} to ${r1}, columns ${c0} to ${c1}`;
  }

  /** Which trace's kept set goes with the shown map, and at which step (-1: none). */
  get keptStep() {
    const { view: { mode }, data } = this;
    const t = data.traces[mode]?.kept ? mode : data.traces.findIndex((trace) => trace.kept);
    return [t, t < 0 ? -1 : data.columns[t][this.column]];
  }

  // ---- telling the parts

  tell(what) { for (const part of this.parts) part[what]?.(); }

  draw() {
    const { data, view, plane } = this, patches = this.regionPatches;
    const perStep = (name) => data.traces.map((_, t) => data.perStep(name, t, view.layer, view.head));
    this.masses = perStep("mass");
    // What shades the tokens and makes the curve: visual mass or another quantity, or what the picture shows in the region.
    this.series = patches.length ? data.traces.map((_, t) => data.reverse(plane, t, patches)) : perStep(view.curve);
    this.seriesName = patches.length ? `${this.quantity.label} to ${this.regionName}` : data.table[view.curve].label;
    this.seriesUnit = patches.length ? this.quantity.unit : data.table[view.curve].unit;
    const ends = (pick, start) => this.series.reduce((end, values) => values.reduce((a, b) => (Number.isNaN(b) ? a : pick(a, b)), end), start);
    this.top = ends(Math.max, 1e-12);
    this.bottom = ends(Math.min, 0);
    this.holdFocus(() => this.tell("draw"));
    this.step();
  }

  /** A control with the focus may be disabled, hidden or made anew: the next key is still ours, not the notebook's. */
  holdFocus(change) {
    const focused = () => this.root.getRootNode().activeElement, held = this.root.contains(focused());
    change();
    const now = focused();
    if (held && (!this.root.contains(now) || now.disabled || !now.getClientRects().length)) this.root.focus({ preventScroll: true });
  }

  step() {
    this.tell("step");
    this.heat();
    clearTimeout(this.linkTimer);
    this.linkTimer = setTimeout(() => this.writeLink(), 150); // browsers refuse a new address at every frame
  }

  heat() {
    const { data, view, plane, masked } = this;
    this.values = data.values(plane, view.mode, this.column);
    this.limit = view.scale === "step" ? data.peak(this.values, masked) : data.limit(plane, view.mode, masked);
    this.tell("heat");
  }

  resized() {
    if (this.stop.signal.aborted || !this.shownPlane || this.root.clientWidth === this.seenWidth) return;
    this.seenWidth = this.root.clientWidth;
    this.draw();
  }

  writeLink() {
    const link = viewToText(this.data, this.view);
    this.ref.link.textContent = `#${link}`;
    this.ref.command.textContent = this.data.command.join(link);
    this.onLink(link);
  }

  // ---- theme

  nextTheme() {
    this.theme = THEMES[(THEMES.indexOf(this.theme) + 1) % 3];
    this.paintTheme();
  }

  paintTheme() {
    const { jpThemeLight, vscodeThemeKind } = document.body.dataset; // the theme of a notebook wins over the system's
    const dark = jpThemeLight ? jpThemeLight === "false" : vscodeThemeKind ? !/light/.test(vscodeThemeKind)
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
    this.root.dataset.theme = this.theme === "auto" ? (dark ? "dark" : "light") : this.theme;
    if (this.page) document.documentElement.dataset.theme = this.root.dataset.theme;
    this.ref.theme.textContent = `Theme: ${this.theme}`;
    if (this.shownPlane) this.draw();
  }
}
