// From the bytes of the page to numbers, and from numbers to text.

export const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

export async function inflate(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

export const floats = async (text) => new Float32Array((await inflate(text)).buffer);

let halfTable = null; // the value of every float16, so that decoding is one look-up

/** Float16 times a scale. */
export function halves(split, scale) {
  if (!halfTable) {
    halfTable = Float32Array.from({ length: 65536 }, (_, h) => {
      const exponent = (h >> 10) & 31, fraction = h & 1023, sign = h >> 15 ? -1 : 1;
      if (exponent === 31) return fraction ? NaN : sign * Infinity;
      return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
    });
  }
  const count = split.length / 2, values = new Float32Array(count); // low bytes first, then high bytes
  for (let i = 0; i < count; i++) values[i] = scale * halfTable[split[i] | (split[count + i] << 8)];
  return values;
}

export function average(arrays) {
  if (arrays.length === 1) return arrays[0];
  const sum = new Float64Array(arrays[0].length);
  for (const array of arrays) for (let i = 0; i < sum.length; i++) sum[i] += array[i];
  return Float32Array.from(sum, (value) => value / arrays.length);
}

export function median(values) {
  const sorted = Float32Array.from(values).sort(), middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

export const number = (value) => (value === 0 ? "0" : Number.isNaN(value) ? "undefined" : value.toPrecision(4));
export const signed = (value) => (value > 0 ? "+" : "") + number(value).replace("-", "−");
export const capital = (text) => text[0].toUpperCase() + text.slice(1);
