// The tracker of one target in a browser: tracking/tracker.py, crop.py and boxes.py of the Python package, which
// describe every step, with onnxruntime-web in place of PyTorch. tests/test_browser_page.py compares the boxes.
import * as ort from "./vendor/ort.js";

ort.env.wasm.wasmPaths = {wasm: new URL("./vendor/ort.wasm", import.meta.url).href};

// As `round` of Python: halves to even numbers.
function round(value) {
  const low = Math.floor(value), rest = value - low;
  return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
}

// `Crop.around` in crop.py: a square around a box, its side a multiple of the target's size.
function cropAround([x, y, w, h], factor) {
  const side = Math.max(1, Math.ceil(Math.sqrt(w * h) * factor));
  return {x: round(x + w / 2 - side / 2), y: round(y + h / 2 - side / 2), side};
}

// Both source pixels of every output pixel along an axis, and their weights in 1/2048, as OpenCV's INTER_LINEAR: at
// the border it keeps the weights of rows (both are of the same row), but not those of columns.
function taps(side, size, keepWeights) {
  const low = new Int32Array(size), high = new Int32Array(size), a = new Int32Array(size), b = new Int32Array(size);
  for (let i = 0; i < size; i++) {
    const at = Math.fround((i + 0.5) * (side / size) - 0.5), first = Math.floor(at);
    let weight = Math.fround(at - first);
    if (!keepWeights && (first < 0 || first >= side - 1)) weight = 0;
    low[i] = Math.min(Math.max(first, 0), side - 1);
    high[i] = Math.min(Math.max(first + 1, 0), side - 1);
    a[i] = round(Math.fround(1 - weight) * 2048);
    b[i] = round(weight * 2048);
  }
  return {low, high, a, b};
}

// `Crop.cut` in crop.py, then `Tracker.images`: the crop of a frame, black outside the frame, resized, normalized, as
// tensor (1, 3, size, size). `frame.read(x, y, width, height)` gives RGBA of a part of the frame.
function image(frame, crop, size, table) {
  const left = Math.max(crop.x, 0), top = Math.max(crop.y, 0);
  const width = Math.min(crop.x + crop.side, frame.width) - left, height = Math.min(crop.y + crop.side, frame.height) - top;
  const inside = width > 0 && height > 0, pixels = inside ? frame.read(left, top, width, height) : null;
  const columns = taps(crop.side, size, false), rows = taps(crop.side, size, true);
  const start = coordinate => {  // of a row of the crop in `pixels`, -1 outside the frame
    const row = coordinate + crop.y - top;
    return inside && row >= 0 && row < height ? row * width : -1;
  };
  const at = (row, coordinate, channel) => {
    const column = coordinate + crop.x - left;
    return row < 0 || column < 0 || column >= width ? 0 : pixels[4 * (row + column) + channel];
  };
  const out = new Float32Array(3 * size * size);
  for (let i = 0; i < size; i++) {
    const upper = start(rows.low[i]), lower = start(rows.high[i]);
    for (let j = 0; j < size; j++) {
      const {low, high, a, b} = columns;
      for (let c = 0; c < 3; c++) {
        const above = at(upper, low[j], c) * a[j] + at(upper, high[j], c) * b[j];
        const below = at(lower, low[j], c) * a[j] + at(lower, high[j], c) * b[j];
        // OpenCV's rounding of 8-bit values
        const value = (((rows.a[i] * (above >> 4)) >> 16) + ((rows.b[i] * (below >> 4)) >> 16) + 2) >> 2;
        out[(c * size + i) * size + j] = table[c][value];
      }
    }
  }
  return new ort.Tensor("float32", out, [1, 3, size, size]);
}

// `_visible_part` in crop.py: the part of the box inside the frame.
export function visiblePart([x, y, w, h], frame) {
  if (![x, y, w, h].every(Number.isFinite)) throw new Error("The box needs four numbers: x, y, width and height in pixels.");
  if (w < 1 || h < 1) throw new Error("The box is smaller than a pixel: draw a larger one around the target.");
  const left = Math.max(x, 0), top = Math.max(y, 0);
  const right = Math.min(x + w, frame.width), bottom = Math.min(y + h, frame.height);
  if (right <= left || bottom <= top) {
    throw new Error(`The box is outside the frame, which is ${frame.width} x ${frame.height} pixels.`);
  }
  return [left, top, right - left, bottom - top];
}

// `clip_box` and `_clip_span` in crop.py.
function clipBox([x, y, w, h], frame, {margin, min_size}) {
  const span = (start, length, side) => {
    length = Math.max(length, min_size);
    const least = Math.min(margin, length, side), low = Math.min(Math.max(start, 0), side - least);
    return [low, Math.max(Math.max(Math.min(start + length, side), least) - low, least)];
  };
  const [left, width] = span(x, w, frame.width), [top, height] = span(y, h, frame.height);
  return [left, top, width, height];
}

// `Tracker._select` in tracker.py, and `vote` in boxes.py: the best location after scale penalty and window, and the
// mean of the boxes that overlap its box. `scores` (rows, columns) and `boxes` (4, rows, columns), cxcywh in 0..1 of
// the crop; `previous`: width and height of the previous box, likewise.
function select(scores, boxes, [rows, columns], previous, config) {
  const count = rows * columns, at = i => [0, 1, 2, 3].map(k => boxes[k * count + i]);
  const hann = (i, n) => n === 1 ? 1 : 0.5 - 0.5 * Math.cos(2 * Math.PI * i / (n - 1));
  const ratio = (a, b) => Math.max(a / b, b / a), paddedSize = (w, h) => Math.sqrt((w + (w + h) / 2) * (h + (w + h) / 2));
  const [oldW, oldH] = previous.map(value => Math.max(value, 1e-4));
  const factor = i => {
    const w = Math.max(boxes[2 * count + i], 1e-4), h = Math.max(boxes[3 * count + i], 1e-4);
    const change = ratio(paddedSize(w, h), paddedSize(oldW, oldH)) * ratio(w / h, oldW / oldH);
    return Math.exp(-config.scale_penalty * (change - 1));
  };
  let best = 0, highest = -Infinity;
  for (let i = 0; i < count; i++) {
    const window = hann(Math.floor(i / columns), rows) * hann(i % columns, columns);
    const rank = scores[i] * factor(i) * (1 - config.window_weight) + window * config.window_weight;
    if (rank > highest || Number.isNaN(rank)) [best, highest] = [i, rank];
    if (Number.isNaN(rank)) break;  // as argmax of PyTorch
  }
  const score = scores[best], rate = score * factor(best);
  let box = at(best);
  if (config.box_vote) {
    const [bx, by, bw, bh] = box, sums = [0, 0, 0, 0];
    let total = 0;
    for (let i = 0; i < count; i++) {
      const [x, y, w, h] = at(i);
      const across = Math.min(x + w / 2, bx + bw / 2) - Math.max(x - w / 2, bx - bw / 2);
      const down = Math.min(y + h / 2, by + bh / 2) - Math.max(y - h / 2, by - bh / 2);
      const both = Math.max(across, 0) * Math.max(down, 0);
      const weight = scores[i] * (both / (w * h + bw * bh - both + 1e-7)) ** config.box_vote;
      total += weight;
      [x, y, w, h].forEach((value, k) => { sums[k] += value * weight; });
    }
    if (total > 0 || Number.isNaN(total)) box = sums.map(sum => sum / total);
  }
  if (config.damp_size) box = [box[0], box[1], ...[0, 1].map(k => previous[k] + rate * (box[2 + k] - previous[k]))];
  return {score, box};
}

export class Tracker {
  // Loads model.json and the two graphs that it names from a folder; `progress` gets 0..1 while they load.
  static async load(folder, progress = () => {}) {
    const tracker = new Tracker();
    tracker.model = await (await get(new URL("model.json", folder))).json();
    const {graphs, bytes} = tracker.model, loaded = [0, 0], options = {executionProviders: ["wasm"]};
    const files = await Promise.all(["template", "search"].map((graph, i) => read(new URL(graphs[graph], folder), now => {
      loaded[i] = now;
      progress(Math.min((loaded[0] + loaded[1]) / bytes, 1));
    })));
    tracker.encoder = await ort.InferenceSession.create(files[0], options);
    tracker.searcher = await ort.InferenceSession.create(files[1], options);
    const {mean, std} = tracker.model;  // of values in 0..1
    tracker.table = mean.map((m, c) => Float32Array.from({length: 256}, (_, v) => (v - Math.fround(m * 255)) / Math.fround(std[c] * 255)));
    return tracker;
  }

  // Starts: `frame` has width, height and read(x, y, width, height), which gives RGBA; `box` is x, y, w, h in pixels.
  async init(frame, box) {
    const {template_factor, template_size} = this.model;
    this.box = visiblePart(box, frame);
    const crop = cropAround(this.box, template_factor);
    this.state = await this.encoder.run({template: image(frame, crop, template_size, this.table)});
  }

  // Box, score and whether the target is lost in the next frame, as `Tracker.update` in tracker.py.
  async update(frame) {
    const {search_factor, search_size, config} = this.model;
    const before = clipBox(this.box, frame, config), crop = cropAround(before, search_factor);
    const output = await this.searcher.run({...this.state, search: image(frame, crop, search_size, this.table)});
    const {scores, boxes} = output, previous = [before[2] / crop.side, before[3] / crop.side];
    const {score, box} = select(scores.data, boxes.data, scores.dims.slice(1), previous, config);
    const valid = [score, ...box].every(Number.isFinite), [cx, cy, w, h] = box.map(value => value * crop.side);
    this.box = valid ? clipBox([crop.x + cx - w / 2, crop.y + cy - h / 2, w, h], frame, config) : before;
    return {box: this.box, score: valid ? score : 0, lost: !valid || score < config.lost_threshold};
  }
}

async function get(address) {
  const response = await fetch(address).catch(() => null);
  if (!response || !response.ok) throw new Error(`The file ${address.pathname.split("/").pop()} of this page cannot be loaded.`);
  return response;
}

async function read(address, progress) {
  const response = await get(address), parts = [];
  let size = 0;
  for (const reader = response.body.getReader();;) {
    const {done, value} = await reader.read();
    if (done) break;
    parts.push(value);
    progress(size += value.length);
  }
  const bytes = new Uint8Array(size);
  parts.reduce((offset, part) => { bytes.set(part, offset); return offset + part.length; }, 0);
  return bytes;
}
