// The labels of a photo, a byte a pixel: drawn, painted, filled, and each change taken back.

const MOST_REMEMBERED = 256 * 2 ** 20; // bytes of former and later labels
export const UNKNOWN = 255;

export class Painter {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.changed = changed;
    this.colours = new Uint32Array(256); // as ImageData has them: red in the lowest byte
    this.hidden = new Set();
    this.locked = false; // while other labels are on their way
    this.load(new Uint8Array(1), 1, 1);
  }

  load(labels, width, height) {
    [this.labels, this.width, this.height] = [labels, width, height];
    [this.canvas.width, this.canvas.height] = [width, height];
    [this.past, this.future] = [[], []];
    this.before = null;
    this.dirty = false;
    this.draw();
  }

  colour(label, [red, green, blue]) {
    this.colours[label] = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  }

  show(label, shown) {
    this.hidden[shown ? "delete" : "add"](label);
    this.draw();
  }

  // The background is never drawn; unknown pixels are hatched.
  draw(left = 0, top = 0, right = this.width, bottom = this.height) {
    if (right <= left || bottom <= top) return;
    const table = this.colours.slice();
    table[0] = 0;
    for (const label of this.hidden) table[label] = 0;
    const image = this.context.createImageData(right - left, bottom - top);
    const out = new Uint32Array(image.data.buffer);
    const step = Math.max(2, Math.round(Math.min(this.width, this.height) / 120));
    let place = 0;
    for (let y = top; y < bottom; y++) {
      let at = y * this.width + left;
      for (let x = left; x < right; x++, at++, place++) {
        const label = this.labels[at];
        out[place] = table[label];
        if (label === UNKNOWN && Math.floor((x + y) / step) % 2) out[place] = out[place] && 0xff555555;
      }
    }
    this.context.putImageData(image, left, top);
  }

  begin() {
    this.before = this.labels.slice();
    this.area = [this.width, this.height, 0, 0];
  }

  // A round dab at every pixel of the way from one place to another.
  stroke(from, to, diameter, label) {
    const radius = diameter / 2;
    const steps = Math.max(1, Math.ceil(Math.hypot(to.x - from.x, to.y - from.y) / Math.max(1, radius / 2)));
    for (let step = 0; step <= steps; step++) {
      const share = step / steps;
      this.dab(from.x + (to.x - from.x) * share, from.y + (to.y - from.y) * share, radius, label);
    }
    const reach = radius + 1;
    this.touched(
      Math.min(from.x, to.x) - reach, Math.min(from.y, to.y) - reach,
      Math.max(from.x, to.x) + reach, Math.max(from.y, to.y) + reach,
    );
  }

  dab(x, y, radius, label) {
    const near = Math.max(radius, 0.5) ** 2;
    for (let row = Math.max(0, Math.floor(y - radius)); row <= Math.min(this.height - 1, y + radius); row++) {
      const rest = near - (row + 0.5 - y) ** 2;
      if (rest < 0) continue;
      const half = Math.sqrt(rest);
      const first = Math.max(0, Math.ceil(x - half - 0.5));
      const last = Math.min(this.width - 1, Math.floor(x + half - 0.5));
      if (last >= first) this.labels.fill(label, row * this.width + first, row * this.width + last + 1);
    }
    if (radius <= 0.5 && x >= 0 && y >= 0 && x < this.width && y < this.height) {
      this.labels[Math.floor(y) * this.width + Math.floor(x)] = label;
    }
  }

  // All pixels of one label that hang together with the one that was pointed at.
  fill(x, y, label) {
    const { labels, width, height } = this;
    const start = Math.floor(y) * width + Math.floor(x);
    const former = labels[start];
    if (x < 0 || y < 0 || x >= width || y >= height || former === label) return;
    const open = [start];
    while (open.length) {
      const at = open.pop();
      if (labels[at] !== former) continue;
      const row = Math.floor(at / width) * width;
      let [first, last] = [at, at];
      while (first > row && labels[first - 1] === former) first--;
      while (last < row + width - 1 && labels[last + 1] === former) last++;
      labels.fill(label, first, last + 1);
      for (const other of [row - width, row + width]) {
        if (other < 0 || other >= width * height) continue;
        let inside = false;
        for (let column = first - row; column <= last - row; column++) {
          const same = labels[other + column] === former;
          if (same && !inside) open.push(other + column);
          inside = same;
        }
      }
    }
    this.touched(0, 0, width, height);
  }

  // All pixels of a label, wherever they are.
  replace(former, label) {
    for (let at = 0; at < this.labels.length; at++) if (this.labels[at] === former) this.labels[at] = label;
    this.touched(0, 0, this.width, this.height);
  }

  touched(left, top, right, bottom) {
    const [a, b] = [Math.max(0, Math.floor(left)), Math.max(0, Math.floor(top))];
    const [c, d] = [Math.min(this.width, Math.ceil(right)), Math.min(this.height, Math.ceil(bottom))];
    const [e, f, g, h] = this.area;
    this.area = [Math.min(a, e), Math.min(b, f), Math.max(c, g), Math.max(d, h)];
    this.draw(a, b, c, d);
  }

  end() {
    if (!this.before) return;
    const [left, top, right, bottom] = this.area;
    const before = this.before;
    this.before = null;
    if (right <= left || bottom <= top) return;
    const change = { area: this.area, before: cut(before, this.width, this.area), after: cut(this.labels, this.width, this.area) };
    if (change.before.every((label, place) => label === change.after[place])) return;
    this.past.push(change);
    this.future = [];
    let bytes = this.past.reduce((sum, one) => sum + 2 * one.before.length, 0);
    while (bytes > MOST_REMEMBERED && this.past.length > 1) bytes -= 2 * this.past.shift().before.length;
    this.dirty = true;
    this.changed();
  }

  undo() {
    this.turn(this.past, this.future, "before");
  }

  redo() {
    this.turn(this.future, this.past, "after");
  }

  turn(from, to, which) {
    const change = from.pop();
    if (!change || this.before) return;
    const [left, top, right, bottom] = change.area;
    const across = right - left;
    for (let row = top; row < bottom; row++) {
      this.labels.set(change[which].subarray((row - top) * across, (row - top + 1) * across), row * this.width + left);
    }
    to.push(change);
    this.dirty = true;
    this.draw(left, top, right, bottom);
    this.changed();
  }

  // How many pixels each label has.
  counts() {
    const counts = new Array(256).fill(0);
    for (const label of this.labels) counts[label]++;
    return counts;
  }
}

function cut(labels, width, [left, top, right, bottom]) {
  const across = right - left;
  const out = new Uint8Array(across * (bottom - top));
  for (let row = top; row < bottom; row++) {
    out.set(labels.subarray(row * width + left, row * width + right), (row - top) * across);
  }
  return out;
}
