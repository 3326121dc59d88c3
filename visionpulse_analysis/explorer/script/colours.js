// Colour maps (33 stops each, from matplotlib), how they lie over a picture, and how they shade a token.

const MAPS = {
  cividis: "00224e00285b002e6a0533711a386f273e6e32436d3b496c434e6c4b546c535a6d5a5f6e61656f686a716f70737676767d7c788482798c8878938e789b9476a39a74aba072b4a76fbcae6cc4b468cdbb63d5c25edec958e7d150f0d846f9e03afee838",
  magma: "0000040303120a0822130d341d114729115a36106b440f7651127c5d177f6a1c81762181832681902a819c2e7faa337db73779c43c75d0416fdc4869e75263ef5d5ef56b5cf9795dfc8961fd9869fea772feb67cfec488fed395fde2a3fcf0b2fcfdbf",
  difference: "9eb0ff8caef679abed65a7e2519fd34194c13685ad2e76992868862259731d4b61183d4f14303e11242e111a20121214190c09220c022b0e013510004112014d16025b1d086c27117d341e8e422e9e513fae6051be6f63ce7f76df8f89f09f9cffadad",
};
// On the picture, values near zero are half transparent: they darken what nobody looks at and never hide it.
const VEIL = 0.65;
const SHADES = 64;

function ramp(hex, size = 256) {
  const stops = hex.match(/../g).map((pair) => parseInt(pair, 16)), last = stops.length / 3 - 1;
  return Array.from({ length: size }, (_, i) => {
    const at = (i / (size - 1)) * last, low = Math.min(last - 1, Math.floor(at)), t = at - low;
    return [0, 1, 2].map((c) => Math.round(stops[3 * low + c] * (1 - t) + stops[3 * low + 3 + c] * t));
  });
}

const RAMPS = Object.fromEntries(Object.entries(MAPS).map(([name, hex]) => [name, ramp(hex)]));

const VEILED = Object.fromEntries(Object.entries(RAMPS).map(([name, colours]) => [name, colours.map((colour, i) => {
  const strength = name === "difference" ? Math.abs(i - 127.5) / 127.5 : i / 255;
  return `rgba(${colour},${VEIL + (1 - VEIL) * Math.sqrt(strength)})`;
})]));

const OPAQUE = Object.fromEntries(Object.entries(RAMPS).map(([name, colours]) => [name, colours.map((colour) => `rgb(${colour})`)]));

/** The 256 colours of a map, as they lie over a picture or, `bare`, without one. */
export const colours = (palette, bare) => (bare ? OPAQUE : VEILED)[palette];

/** Red, green and blue of those. */
export const rgbs = (palette) => RAMPS[palette];

/** Which of the 256 a value has: 0 to `limit`, or -`limit` to `limit` in the palette of differences. */
export function place(palette, value, limit) {
  const t = limit > 0 ? Math.max(-1, Math.min(1, value / limit)) : 0;
  return palette === "difference" ? Math.round(127.5 + 127.5 * t) : Math.round(255 * t);
}

function luminance(rgb) {
  const [r, g, b] = rgb.map((v) => ((v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** From the surface to a colour of the theme, each with the ink that reads best on it: strength 0..1 -> [ground, ink]. */
export function shader(style, name) {
  const rgb = (variable) => style.getPropertyValue(variable).match(/\d+/g).map(Number);
  const from = rgb("--vp-surface-rgb"), to = rgb(`${name}-rgb`);
  const shades = Array.from({ length: SHADES }, (_, i) => {
    const colour = from.map((v, c) => Math.round(v + (to[c] - v) * (i / (SHADES - 1))));
    return [`rgb(${colour})`, luminance(colour) > 0.179 ? "#000" : "#fff"];
  });
  return (strength) => shades[Math.round((SHADES - 1) * strength)];
}
