// The current step in words, and going through the steps: buttons, slider, playing.

import { make, readable } from "./markup.js";
import { number } from "./numbers.js";

const PAUSE = 125; // milliseconds a step is shown while playing

export class Steps {
  constructor(explorer) {
    this.explorer = explorer;
    const { ref, data } = explorer;
    this.lines = data.traces.map(() => {
      const line = make("p"), name = make("span", "", { class: "vp-name" }), token = make("b"), facts = make("span");
      line.append(name, " ", token, " ", facts);
      ref.live.append(line);
      return { line, name, token, facts };
    });
    explorer.on(ref.back, "click", () => explorer.move(-1));
    explorer.on(ref.forward, "click", () => explorer.move(1));
    explorer.on(ref.slider, "input", () => explorer.set({ column: Number(ref.slider.value) }));
    explorer.on(ref.play, "click", () => this.play());
    explorer.stop.signal.addEventListener("abort", () => clearInterval(this.timer));
  }

  pair() {
    this.explorer.ref.slider.max = this.explorer.data.last;
  }

  play() {
    if (this.timer) return this.pause();
    const { explorer } = this, { ref, data } = explorer, end = () => data.nearest(data.last, explorer.view.mode);
    if (explorer.view.column === end()) explorer.set({ column: 0 });
    ref.live.setAttribute("aria-live", "off"); // eight announcements a second would be noise
    ref.play.textContent = "Pause";
    this.timer = setInterval(() => {
      explorer.move(1);
      if (explorer.view.column === end()) this.pause();
    }, PAUSE);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.explorer.ref.play.textContent = "Play";
    this.explorer.ref.live.setAttribute("aria-live", "polite");
  }

  step() {
    const { ref, view } = this.explorer;
    ref.slider.value = view.column;
    ref.slider.setAttribute("aria-valuetext", this.write());
  }

  /** One line per trace: token, step, mass, probability, what was kept. Returns them as one text. */
  write() {
    const { data, view, masses } = this.explorer;
    return data.traces.map((trace, t) => {
      const step = data.columns[t][view.column], { line, name, token, facts } = this.lines[t], known = [];
      name.textContent = data.pair ? trace.name : "";
      token.textContent = step < 0 ? "—" : readable(trace.tokens[step]);
      if (step < 0) known.push("no token aligned here");
      else {
        known.push(`step ${step} of ${trace.tokens.length - 1}`, `mass ${number(masses[t][step])}`);
        known.push(`probability ${number(Math.exp(trace.logprobs[step]))}`);
        if (trace.kept) known.push(this.keptText(t, step));
      }
      facts.textContent = known.join(" · ");
      line.classList.toggle("vp-other", data.pair && view.mode !== 2 && view.mode !== t);
      return [name, token, facts].map((part) => part.textContent).filter(Boolean).join(" ");
    }).join("; ");
  }

  keptText(t, step) {
    const { data, view } = this.explorer, { budget, keptCounts } = data.traces[t], kept = keptCounts[step];
    const share = budget?.[step] == null ? "" : `budget ${+(100 * budget[step]).toPrecision(3)}\u00a0%`;
    const reach = data.reach(t, step, view.layer), told = share && ` (${share})`;
    if (reach === "all") return `all ${data.count} visible at this layer (${kept} at the last${share && `, ${share}`})`;
    return `kept ${kept} of ${data.count} ${reach === "here" ? "patches" : "at the last layer"}${told}`;
  }
}
