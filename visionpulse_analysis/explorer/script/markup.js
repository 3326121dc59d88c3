// The document, before any data is in it. Elements with data-ref are reached as explorer.ref.name.

export const MARKUP = `
<div class="vp-head">
  <div>
    <p class="vp-brand">VisionPulse explorer</p>
    <h1 data-ref="question" dir="auto"></h1>
    <div class="vp-muted" data-ref="about"></div>
  </div>
  <div class="vp-row">
    <button type="button" data-ref="theme"></button>
    <button type="button" data-ref="openHelp" aria-haspopup="dialog">Help <kbd>?</kbd></button>
  </div>
</div>
<p class="vp-note" data-ref="notes" hidden></p>
<div class="vp-toolbar" role="group" aria-label="What is shown">
  <div class="vp-segment" role="group" aria-label="Trace" data-ref="modes">
    <button type="button"></button><button type="button"></button><button type="button">Difference</button>
  </div>
  <label data-ref="besideLabel" class="vp-beside" hidden><select data-ref="beside"></select></label>
  <label>Layer <select data-ref="layer"></select></label>
  <label data-ref="headLabel">Head <select data-ref="head"></select></label>
  <label>Scale <select data-ref="scale">
    <option value="step">each step</option><option value="absolute">all steps</option>
  </select></label>
  <button type="button" aria-pressed="false" data-ref="sinks">Mask sinks</button>
  <button type="button" aria-pressed="false" data-ref="kept">Mark dropped</button>
  <button type="button" aria-pressed="false" data-ref="openOverview">All maps</button>
</div>
<section class="vp-overview" aria-label="All layers and heads" data-ref="overview" hidden>
  <p class="vp-muted" data-ref="overviewTold"></p>
  <div class="vp-maps" role="group" aria-label="Maps" data-ref="maps"></div>
</section>
<div class="vp-main">
  <section aria-label="Image" class="vp-image">
    <p class="vp-value" data-ref="value"></p>
    <div class="vp-stage" data-ref="stage">
      <canvas data-ref="photo" role="img"></canvas><canvas data-ref="heat" aria-hidden="true"></canvas><canvas data-ref="marks" aria-hidden="true"></canvas>
      <p class="vp-veil" data-ref="veil" hidden></p>
    </div>
    <div class="vp-bar"><span data-ref="low"></span><canvas data-ref="bar" aria-hidden="true" width="256" height="2"></canvas><span data-ref="high"></span></div>
    <p class="vp-muted" role="status" data-ref="unit"></p>
    <div class="vp-toolbar vp-colours" role="group" aria-label="Colours">
      <label data-ref="shownLabel" hidden>Show <select data-ref="shown"></select></label>
      <label>Colours <select data-ref="map"><option>magma</option><option>cividis</option></select></label>
      <label>Opacity <input type="range" min="0" max="100" data-ref="opacity"></label>
      <button type="button" aria-pressed="false" data-ref="bare">Values only</button>
    </div>
    <div class="vp-thumbs" role="group" aria-label="Images and frames" data-ref="thumbs" hidden></div>
    <p class="vp-note" data-ref="sinkNote" hidden></p>
    <fieldset class="vp-region">
      <legend>Patch or region</legend>
      <label>rows <input type="number" min="0" data-ref="row0"></label><label>to <input type="number" min="0" data-ref="row1"></label>
      <label>columns <input type="number" min="0" data-ref="col0"></label><label>to <input type="number" min="0" data-ref="col1"></label>
      <button type="button" data-ref="clear">Clear</button>
    </fieldset>
  </section>
  <section aria-label="Step" class="vp-step">
    <div class="vp-now" role="status" aria-live="polite" data-ref="live"></div>
    <div class="vp-row vp-transport">
      <button type="button" data-ref="back" aria-label="One step back">◀</button>
      <button type="button" data-ref="play" class="vp-play">Play</button>
      <button type="button" data-ref="forward" aria-label="One step forward">▶</button>
      <input type="range" min="0" data-ref="slider" aria-label="Step">
    </div>
  </section>
  <section aria-label="Reasoning" class="vp-reasoning">
    <div data-ref="strips"></div>
    <div class="vp-peaks" data-ref="peaks"></div>
    <div class="vp-row vp-caption"><span data-ref="curveTitle"></span><label data-ref="curveLabel" hidden>Curve <select data-ref="curveChoice"></select></label><span class="vp-legend" data-ref="legend"></span><button type="button" data-ref="divergence" hidden>Go to first divergence</button></div>
    <div class="vp-curve" data-ref="curve"><canvas data-ref="plot" role="img"></canvas><div class="vp-cursor" data-ref="cursor"></div></div>
  </section>
</div>
<div class="vp-foot">
  <div class="vp-copy"><span>Link to this view</span><code data-ref="link" tabindex="0" role="group" aria-label="Link to this view"></code><button type="button" data-ref="copyLink">Copy link</button></div>
  <div class="vp-copy"><span>Paper figure</span><code data-ref="command" tabindex="0" role="group" aria-label="Command for the paper figure"></code><button type="button" data-ref="copyCommand">Copy command</button></div>
  <p class="vp-muted" data-ref="commandNote" hidden></p>
  <div class="vp-row"><button type="button" data-ref="savePng">Save this view as figure (PNG)</button><span role="status" class="vp-muted" data-ref="told"></span></div>
  <p class="vp-muted">Attention shows where the model read from at a step; it does not by itself explain why the model answered as it did.</p>
  <p class="vp-muted">Values are the recorded float16 attention, lossless, shown to four digits; means are taken over them. Other quantities over patches are rounded to three digits.</p>
</div>
<dialog class="vp-help" data-ref="help" aria-label="Help">
  <h2>Keys and gestures</h2><dl data-ref="keys"></dl>
  <p>Click or hover a token for its heatmap. Click a patch, or drag a box, to see on the token strip which steps looked there.</p>
  <p>A bar before a token: the answer begins. A dotted line under a token: the other trace has none, or another one, there. A red frame: the first divergence.</p>
  <p data-ref="sinkHelp"></p>
  <button type="button" data-ref="closeHelp">Close</button>
</dialog>`;

/** A new element; its text is text, whatever it holds. */
export function make(tag, text, attributes = {}) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069]/g; // controls, also those that turn text around

/** A token with its blanks and controls made visible. */
export const readable = (token) => (token === "" ? "∅" : token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(UNSEEN, "\ufffd"));

/** Text for the middle of a sentence: the beginning of a long one, and whichever way it runs, the rest is left alone. */
export function inside(text, most = 24) {
  const letters = [...text];
  return `\u2068${letters.length > most ? `${letters.slice(0, most).join("")}…` : text}\u2069`;
}

/** A token in the middle of a sentence. */
export const quoted = (token) => `“${inside(readable(token))}”`;
