// The view as a PNG: drawn on white, whatever the theme, at twice the size of a screen.

import { across, LINES, paintCurve } from "./curve.js";
import { viewToText } from "./link.js";
import { inside, make } from "./markup.js";
import { bytes } from "./numbers.js";
import { paintPatches, paintPhoto } from "./paint.js";
import { paintMarks } from "./stage.js";

const PAPER = {
  "--vp-ink": "#18181b", "--vp-muted": "#52525b", "--vp-rule": "#e4e4e7", "--vp-warn": "#b91c1c",
  "--vp-line-dense": "#1d4ed8", "--vp-line-pruned": "#b45309",
};
const MARGIN = 48, WIDE = 860, TALL = 1100, BESIDE = 900; // of the image at most; of what stands beside it

/** Draw the view and hand it to the browser as a download; returns the name of the file. */
export function savePng(explorer) {
  explorer.preview(null); // what is saved is the current step, not a token that is only pointed at
  const { data, view } = explorer, link = viewToText(data, view), canvas = paintView(explorer, link);
  // Encoded at once: toBlob waits for an idle moment, which on a busy machine may take a minute.
  const blob = new Blob([bytes(canvas.toDataURL("image/png").split(",")[1])], { type: "image/png" });
  const name = `${data.traces[0].id || "trace"}_${link}`.replace(/[^\w.-]+/g, "_").slice(0, 200) + ".png";
  const anchor = make("a", "", { download: name });
  anchor.href = URL.createObjectURL(blob);
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
  return name;
}

function paintView(explorer, link) {
  const { data, view, ref } = explorer, panel = data.panels[view.panel];
  const tall = Math.min(TALL, Math.round((WIDE * panel.height) / panel.width)), wide = Math.round((tall * panel.width) / panel.height);
  const canvas = make("canvas"), context = canvas.getContext("2d");
  canvas.width = wide + 3 * MARGIN + BESIDE;
  canvas.height = Math.max(tall, 600) + 250;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  const write = (text, x, y, size, colour = "--vp-ink") => {
    context.font = `${size}px system-ui, sans-serif`;
    context.fillStyle = PAPER[colour];
    context.textAlign = "left";
    context.fillText(text, x, y, canvas.width - x - MARGIN);
  };

  const selected = (select) => select.selectedOptions[0].textContent;
  const head = data.heads ? `, head ${selected(ref.head)}` : "", label = data.panels.length > 1 ? `, ${panel.label.toLowerCase()}` : "";
  const shown = data.pair ? `${ref.modes.children[view.mode].textContent}, ` : "";
  write(`${shown}layer ${selected(ref.layer)}${head}${label}`, MARGIN, 40, 24, "--vp-muted");
  [...ref.live.children].forEach((line, t) => {
    write([...line.children].map((part) => part.textContent).filter(Boolean).map((text) => inside(text, 120)).join("  "), MARGIN, 78 + 36 * t, 26);
  });

  paintImage(context, explorer, wide, tall);
  context.imageSmoothingEnabled = false; // the two halves of the bar stay apart
  context.drawImage(ref.bar, MARGIN, tall + 156, wide, 16);
  context.imageSmoothingEnabled = true;
  write(`${ref.low.textContent} to ${ref.high.textContent} ${ref.unit.textContent}`, MARGIN, tall + 200, 22, "--vp-muted");

  const left = wide + 2 * MARGIN, area = { left: left + 70, right: canvas.width - MARGIN, top: 200, bottom: 520 };
  write(ref.curveTitle.textContent, left, 170, 26);
  if (data.pair) data.traces.forEach(({ name }, t) => write(`${t ? "╌╌" : "──"} ${name}`, area.left + 180 * t, 576, 22, LINES[t]));
  paintCurve(context, area, explorer, (name) => PAPER[name], 20);
  context.fillStyle = PAPER["--vp-ink"];
  context.fillRect(across(view.column, data, area) - 1, area.top, 2, area.bottom - area.top);
  write(data.question, left, 630, 24);
  data.lines.forEach((line, i) => write(line, left, 666 + 30 * i, 20, "--vp-muted"));
  write(`#${link}`, MARGIN, canvas.height - 20, 18, "--vp-muted");
  return canvas;
}

function paintImage(context, explorer, wide, tall) {
  const { data, view, pictures, values } = explorer, rects = data.rects(view.panel, wide, tall);
  context.save();
  context.translate(MARGIN, 140);
  context.beginPath();
  context.rect(0, 0, wide, tall);
  context.clip();
  paintPhoto(context, explorer.bare ? null : pictures[data.panels[view.panel].picture], wide, tall);
  if (values) paintPatches(context, rects, explorer, explorer.alpha);
  paintMarks(context, explorer, rects, wide / 520);
  context.restore();
}
