// The token strips: one per trace, shaded by visual mass or, with a region, by attention to it.

import { shader } from "./colours.js";
import { make, readable } from "./markup.js";
import { number } from "./numbers.js";

const RIGHT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/g, LEFT = /[A-Za-z\u00c0-\u024f\u0370-\u052f\u0900-\u1fff\u3040-\ud7ff]/g;
let strips = 0; // in this document, for unique ids

export class Tokens {
  constructor(explorer) {
    this.explorer = explorer;
    explorer.ref.strips.classList.toggle("vp-pair", explorer.data.pair);
    this.strips = explorer.data.traces.map((_, t) => this.make(t));
  }

  make(t) {
    const id = `vp-strip-${strips++}`, name = make("strong", ""), shade = make("span", "", { class: "vp-muted" });
    const heading = make("div", undefined, { class: "vp-row vp-caption" }), box = make("div", undefined, { class: "vp-strip", role: "listbox", tabindex: "0" });
    heading.append(name, shade);
    this.explorer.ref.strips.append(heading, box);
    this.listen(box, t);
    return { id, name, box, tokens: [], shade, here: null };
  }

  pair() {
    this.explorer.data.traces.forEach((trace, t) => this.fill(this.strips[t], trace, t));
  }

  fill(strip, trace, t) {
    const { data } = this.explorer, { id, name, box } = strip, called = `${trace.name} tokens` + (trace.label && `, ${trace.label}`);
    name.textContent = data.pair ? called : "Tokens";
    box.setAttribute("aria-label", called);
    strip.here = null;
    strip.tokens = trace.tokens.map((token, step) => {
      const column = data.columnOf[t][step];
      const element = make("span", readable(token), { role: "option", id: `${id}-${step}`, "aria-selected": "false" });
      element.dataset.step = step;
      if (token.includes("\n")) element.classList.add("vp-newline");
      if (step === trace.answer) element.classList.add("vp-answer");
      if (data.pair && !data.paired(column)) element.classList.add("vp-alone");
      if (column === data.divergence) element.classList.add("vp-diverges");
      return element;
    });
    // Tokens written from the right run on from each other as the text does: boxes would stand in the order of steps.
    const text = trace.tokens.join(""), count = (letters) => text.match(letters)?.length ?? 0, right = count(RIGHT);
    box.classList.toggle("vp-runs", right > 0);
    box.dir = right > count(LEFT) ? "rtl" : "ltr";
    box.replaceChildren(...strip.tokens);
  }

  listen(box, t) {
    const { explorer } = this;
    const columnAt = (event) => {
      const token = event.target.closest("[data-step]");
      return token && explorer.data.columnOf[t][Number(token.dataset.step)];
    };
    explorer.on(box, "click", (event) => {
      const column = columnAt(event);
      if (column !== null) explorer.goTo(t, column);
    });
    explorer.on(box, "pointerover", (event) => event.pointerType === "mouse" && explorer.preview(columnAt(event)));
    explorer.on(box, "pointerleave", () => explorer.preview(null));
  }

  draw() {
    const { root, series, seriesName, top, bottom, view } = this.explorer;
    const shadeOf = shader(getComputedStyle(root), view.region ? "--vp-warm" : "--vp-accent");
    this.strips.forEach(({ tokens, shade }, t) => {
      shade.textContent = `shaded by ${seriesName}, ${number(bottom)} to ${number(top)}`;
      tokens.forEach((token, step) => {
        const [ground, ink] = shadeOf(((Number.isNaN(series[t][step]) ? bottom : series[t][step]) - bottom) / (top - bottom));
        token.style.backgroundColor = ground;
        token.style.color = ink;
      });
    });
  }

  /** Mark the current token and bring it into sight. All is read before anything is written. */
  step() {
    const { data, view } = this.explorer;
    const here = this.strips.map(({ box, tokens }, t) => {
      const step = data.columns[t][view.column], token = step < 0 ? null : tokens[step];
      return { token, at: token?.offsetTop, tall: token?.offsetHeight, from: box.scrollTop, seen: box.clientHeight };
    });
    here.forEach(({ token, at, tall, from, seen }, t) => {
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
  }
}
