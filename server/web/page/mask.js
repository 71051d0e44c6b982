/** A mask as a bitmap of ours: 1 is made anew, 0 is kept. No canvas is read back, for browsers that
 * guard their users' privacy add noise to what a page reads. */

const MOST_STEPS = 100;
const LONGEST = 2048; // More than the largest picture that is made; a phone's photo has 4,000.

export class Mask {
  /** An empty mask of an upright picture of `width` x `height` pixels. */
  constructor(width, height) {
    this.picture = { width, height };
    this.scale = Math.min(1, LONGEST / Math.max(width, height));
    this.width = Math.max(1, Math.round(width * this.scale));
    this.height = Math.max(1, Math.round(height * this.scale));
    this.data = new Uint8Array(this.width * this.height);
    this.past = [];
    this.future = [];
    this.open = null;
  }

  get empty() {
    return !this.data.includes(1);
  }

  // Drawing, in the picture's pixels. A stroke is one step of undo.

  begin() {
    this.open = { before: this.data.slice(), box: null };
  }

  /** Draw from one point to the next with a round brush of `size`; returns the box that changed. */
  draw(from, to, size, value) {
    const s = this.scale;
    const radius = Math.max(0.5, (size * s) / 2);
    const [ax, ay, bx, by] = [from.x * s, from.y * s, to.x * s, to.y * s];
    const box = this.#clipped(Math.min(ax, bx) - radius, Math.min(ay, by) - radius, Math.max(ax, bx) + radius, Math.max(ay, by) + radius);
    const [dx, dy] = [bx - ax, by - ay];
    const length = dx * dx + dy * dy || 1;
    for (let y = box.top; y < box.bottom; y += 1) {
      for (let x = box.left; x < box.right; x += 1) {
        const [px, py] = [x + 0.5 - ax, y + 0.5 - ay];
        const t = Math.min(1, Math.max(0, (px * dx + py * dy) / length));
        if ((px - t * dx) ** 2 + (py - t * dy) ** 2 <= radius * radius) this.data[y * this.width + x] = value;
      }
    }
    this.open.box = union(this.open.box, box);
    return box;
  }

  end() {
    const { before, box } = this.open;
    this.open = null;
    if (box && box.right > box.left && box.bottom > box.top) this.#remember(box, before);
  }

  clear() {
    this.#whole(() => this.data.fill(0));
  }

  invert() {
    this.#whole(() => this.data.forEach((value, at) => (this.data[at] = 1 - value)));
  }

  /** Take over another bitmap of any size. */
  take({ width, height, data }) {
    this.#whole(() => {
      for (let y = 0; y < this.height; y += 1) {
        const row = Math.floor(((y + 0.5) * height) / this.height) * width;
        for (let x = 0; x < this.width; x += 1) {
          this.data[y * this.width + x] = data[row + Math.floor(((x + 0.5) * width) / this.width)];
        }
      }
    });
  }

  #whole(change) {
    const before = this.data.slice();
    change();
    this.#remember({ left: 0, top: 0, right: this.width, bottom: this.height }, before);
  }

  #clipped(left, top, right, bottom) {
    return {
      left: Math.max(0, Math.floor(left)), top: Math.max(0, Math.floor(top)),
      right: Math.min(this.width, Math.ceil(right)), bottom: Math.min(this.height, Math.ceil(bottom)),
    };
  }

  // Undo: of each step the bits before it, in the box that it changed

  #remember(box, before) {
    this.past.push({ box, bits: packed(before, this.width, box) });
    if (this.past.length > MOST_STEPS) this.past.shift();
    this.future = [];
  }

  undo() {
    return this.#swap(this.past, this.future);
  }

  redo() {
    return this.#swap(this.future, this.past);
  }

  #swap(from, to) {
    const step = from.pop();
    if (!step) return false;
    to.push({ box: step.box, bits: packed(this.data, this.width, step.box) });
    unpack(step.bits, this.data, this.width, step.box);
    return true;
  }

  // Keeping

  /** As plain data, an eighth of a byte a pixel. */
  kept() {
    const box = { left: 0, top: 0, right: this.width, bottom: this.height };
    return { picture: this.picture, bits: packed(this.data, this.width, box) };
  }

  static of({ picture, bits }) {
    const mask = new Mask(picture.width, picture.height);
    unpack(bits, mask.data, mask.width, { left: 0, top: 0, right: mask.width, bottom: mask.height });
    return mask;
  }

  /** Black and white, a byte a pixel, in the picture's own size. */
  pixels() {
    const { width, height } = this.picture;
    const pixels = new Uint8Array(width * height);
    for (let y = 0; y < height; y += 1) {
      const row = Math.min(this.height - 1, Math.floor(((y + 0.5) * this.height) / height)) * this.width;
      for (let x = 0; x < width; x += 1) {
        const column = Math.min(this.width - 1, Math.floor(((x + 0.5) * this.width) / width));
        if (this.data[row + column]) pixels[y * width + x] = 255;
      }
    }
    return pixels;
  }
}

function union(a, b) {
  if (!a) return b;
  return {
    left: Math.min(a.left, b.left), top: Math.min(a.top, b.top),
    right: Math.max(a.right, b.right), bottom: Math.max(a.bottom, b.bottom),
  };
}

function packed(data, width, { left, top, right, bottom }) {
  const bits = new Uint8Array(Math.ceil(((right - left) * (bottom - top)) / 8));
  let at = 0;
  for (let y = top; y < bottom; y += 1) {
    for (let x = left; x < right; x += 1, at += 1) if (data[y * width + x]) bits[at >> 3] |= 1 << (at & 7);
  }
  return bits;
}

function unpack(bits, data, width, { left, top, right, bottom }) {
  let at = 0;
  for (let y = top; y < bottom; y += 1) {
    for (let x = left; x < right; x += 1, at += 1) data[y * width + x] = (bits[at >> 3] >> (at & 7)) & 1;
  }
}
