// What stands around the view: heading, notes, help, theme, link, command, saving.

import { SINK_FACTOR } from "./data.js";
import { HELP } from "./keys.js";
import { make } from "./markup.js";
import { savePng } from "./picture.js";

export class Margins {
  constructor(explorer) {
    this.explorer = explorer;
    const { data, ref } = explorer;
    ref.question.textContent = ref.question.title = data.question; // of a long one four lines are shown
    this.lines = data.lines.map((_, i) => make("p", "", i === 2 ? { role: "status" } : {})); // of the trace beside the first
    ref.about.append(...this.lines);
    ref.notes.textContent = data.notes.join(" ");
    ref.notes.hidden = !data.notes.length;
    ref.commandNote.textContent = data.command_note;
    ref.commandNote.hidden = !data.command_note;
    this.fillHelp();
    this.listen();
  }

  pair() {
    this.explorer.data.lines.forEach((text, i) => { this.lines[i].textContent = text; });
  }

  fillHelp() {
    const { ref } = this.explorer;
    ref.sinkHelp.textContent = `A sink is a patch whose median attention over all steps is more than ${SINK_FACTOR} times that of the ` +
      "typical patch, judged on the first trace at the layer and head shown. Masking changes colours and scale, never values, mass or curves.";
    for (const [keys, does] of HELP) {
      const term = make("dt");
      for (const part of keys.split(" ")) term.append(part === "+" ? part : make("kbd", part.replace(",", "")), " ");
      ref.keys.append(term, make("dd", does));
    }
  }

  listen() {
    const { explorer } = this, { ref } = explorer, click = (name, does) => explorer.on(ref[name], "click", does);
    const address = () => (explorer.page ? location.href.split("#")[0] : "") + ref.link.textContent;
    click("theme", () => explorer.nextTheme());
    click("openHelp", () => ref.help.showModal());
    click("closeHelp", () => ref.help.close());
    click("copyLink", () => this.copy(ref.link, address()));
    click("copyCommand", () => this.copy(ref.command, ref.command.textContent));
    click("savePng", () => { ref.told.textContent = `Saved ${savePng(explorer)}.`; });
  }

  async copy(element, text) {
    const { told } = this.explorer.ref;
    try {
      await navigator.clipboard.writeText(text);
      told.textContent = "Copied.";
    } catch { // a browser may refuse; then the text is selected, ready for Ctrl+C
      getSelection().selectAllChildren(element);
      told.textContent = "Press Ctrl+C to copy the selected text.";
    }
  }
}
