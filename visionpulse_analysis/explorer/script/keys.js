// The keyboard: one table, which the help shows as well.

/** Key names as browsers say them (lower case) -> what they do; `many` is ten with shift, else one. */
const ACTIONS = {
  arrowleft: (explorer, many) => explorer.move(-many),
  arrowright: (explorer, many) => explorer.move(many),
  arrowup: (explorer) => explorer.moveAlong(explorer.data.layerChoices, "layer", 1),
  arrowdown: (explorer) => explorer.moveAlong(explorer.data.layerChoices, "layer", -1),
  home: (explorer) => explorer.set({ column: 0 }),
  end: (explorer) => explorer.set({ column: explorer.data.last }),
  "[": (explorer) => explorer.moveAlong(explorer.data.headChoices, "head", -1),
  "]": (explorer) => explorer.moveAlong(explorer.data.headChoices, "head", 1),
  " ": (explorer) => explorer.ref.play.click(),
  d: (explorer) => explorer.toggle("mode"),
  p: (explorer, many) => explorer.moveBeside(many > 1 ? -1 : 1),
  a: (explorer) => explorer.toggle("scale"),
  s: (explorer) => explorer.toggle("sinks"),
  k: (explorer) => explorer.toggle("kept"),
  v: (explorer) => explorer.toggle("picture"),
  o: (explorer) => explorer.toggle("overview"),
  escape: (explorer) => explorer.set({ region: null }),
  "?": (explorer) => explorer.ref.help.showModal(),
};

export const HELP = [
  ["← →", "one step back or forward"], ["Shift + ← →", "ten steps"], ["Home, End", "first or last step"],
  ["↑ ↓", "layer above or below; the last choice is the mean"], ["[ ]", "head before or after"],
  ["Space", "play or pause"], ["D", "first trace, second trace, difference"],
  ["P", "the next of several pruned traces; with Shift the one before"], ["A", "a colour scale per step, or one for all steps"],
  ["S", "sinks shown or masked"], ["K", "show which patches were kept and dropped"], ["V", "the values alone, without the picture"],
  ["O", "all layers and heads of this step; click one to enlarge it"], ["Esc", "clear the region"], ["?", "this help"],
];

export function listenToKeys(explorer) {
  explorer.on(explorer.page ? document : explorer.root, "keydown", (event) => {
    const name = event.key.toLowerCase();
    if (!ACTIONS[name] || explorer.ref.help.open || isShortcut(event) || event.defaultPrevented) return;
    if (belongsToField(event, explorer.ref.slider)) return;
    event.preventDefault();
    event.stopPropagation();
    ACTIONS[name](explorer, event.shiftKey ? 10 : 1);
  });
}

/** Whether the browser may mean something by it. Many keyboards need Alt, or Ctrl and Alt, to type a bracket. */
function isShortcut({ key, ctrlKey, metaKey, altKey }) {
  return metaKey || (altKey || ctrlKey) && !(altKey && "[]".includes(key));
}

/** Whether a control that has the focus uses this key itself. The slider of steps leaves its arrows to us. */
function belongsToField({ target, key }, slider) {
  if (key === " " && target.closest?.("button, select, input")) return true;
  const field = target.closest?.("input, select, textarea");
  if (!field || field === slider) return false;
  return field.type !== "range" || key.startsWith("Arrow") || key === "Home" || key === "End";
}
