/** The mask editor over the input: what is painted is made anew, and what is seen is what is sent. */

import { $, delayed, download, el } from "./dom.js";
import { icon } from "./icons.js";
import { Mask } from "./mask.js";
import { greyPng } from "./png.js";

const CHECKER = 6;
const MOST_ZOOM = 12;

export class MaskEditor extends EventTarget {
  constructor() {
    super();
    this.mask = null;
    this.version = 0;
    this.tool = "brush";
    this.size = { brush: 50, eraser: 50 };
    this.zoom = { scale: 1, x: 0, y: 0 };
    this.pointers = new Map();
    this.last = null;
    this.canvas = el("canvas", { id: "mask", "aria-hidden": "true" });
    this.circle = el("div", { id: "brush-circle", "aria-hidden": "true", hidden: true });
    $("frame").before(this.canvas);
    this.desk = $("input-picture");
    this.desk.append(this.circle);
    this.changed = delayed(() => this.dispatchEvent(new Event("change")), 200);
    this.#toolbar();
    this.#listen();
  }

  /** Whether the editor's tools are out. */
  get isOpen() {
    return !$("mask-tools").hidden;
  }

  toggle(open = !this.isOpen) {
    $("mask-tools").hidden = !open;
    $("mask-open").setAttribute("aria-pressed", String(open));
    this.desk.classList.toggle("editing", open);
    if (open) {
      this.desk.tabIndex = 0;
      this.desk.setAttribute("role", "application");
      this.desk.setAttribute("aria-label", "Mask editor: B brush, E eraser, H hand, brackets for the size, Ctrl+Z undo, Tab leaves");
      this.desk.scrollIntoView({ block: "nearest" });
    } else {
      for (const name of ["tabindex", "role", "aria-label"]) this.desk.removeAttribute(name);
      this.circle.hidden = true;
      this.fit();
    }
  }

  /** A new picture with the mask that was `kept` of it, or with none (null). Where nothing is said of
   * a mask (undefined), the one that is there stays if the shape is the same. */
  setPicture(picture, kept) {
    const before = this.mask;
    this.mask = picture?.width ? new Mask(picture.width, picture.height) : null;
    this.fit();
    if (this.mask) {
      const size = Math.round(Math.min(picture.width, picture.height) / 8);
      this.size = { brush: size, eraser: size };
      const shape = ({ width, height }) => width / height;
      const same = before && Math.abs(shape(before.picture) / shape(picture) - 1) < 0.01;
      if (kept && kept.picture.width === picture.width && kept.picture.height === picture.height) this.mask = Mask.of(kept);
      else if (kept === undefined && same && !before.empty) this.mask.take(before);
      this.canvas.width = this.mask.width;
      this.canvas.height = this.mask.height;
      this.#paint();
    } else if (this.isOpen) this.toggle(false);
    this.canvas.hidden = !this.mask;
    this.version += 1;
    this.#show();
  }

  /** Whether there is a mask, so that only what it covers is made anew. */
  get painted() {
    return Boolean(this.mask && !this.mask.empty);
  }

  /** The mask as it is now as a black and white PNG, or null where nothing is painted. */
  async file() {
    if (!this.painted) return null;
    const { width, height } = this.mask.picture;
    try {
      return await greyPng(this.mask.pixels(), width, height);
    } catch (error) {
      throw new Error(`The mask cannot be written: ${error.message}`);
    }
  }

  get kept() {
    return this.painted ? this.mask.kept() : null;
  }

  /** Exactly the mask that was `kept` of this picture, or none; it can be undone. */
  restore(kept) {
    const bits = this.kept?.bits ?? [];
    const wanted = kept?.bits ?? [];
    if (bits.length === wanted.length && bits.every((byte, at) => byte === wanted[at])) return;
    this.#change((mask) => (kept ? mask.take(Mask.of(kept)) : mask.clear()));
  }

  // Tools

  #toolbar() {
    const button = (id, name, label, action) => {
      const made = el("button", { type: "button", id: `mask-${id}`, title: label, "aria-label": label, onclick: action }, icon(name));
      return made;
    };
    this.slider = el("input", { type: "range", min: 0, max: 100, id: "mask-size", "aria-label": "Brush size", autocomplete: "off", oninput: () => this.#setSize(this.#sizeAt(Number(this.slider.value))) });
    const file = el("input", { type: "file", class: "hidden", tabindex: -1, "aria-label": "Mask file", onchange: () => this.#load(file) });
    $("mask-tools").append(
      button("brush", "brush", "Brush (B)", () => this.#take("brush")),
      button("eraser", "eraser", "Eraser (E)", () => this.#take("eraser")),
      button("hand", "hand", "Hand (H)", () => this.#take("hand")),
      el("label", { class: "row size" }, el("span", { id: "mask-size-text", class: "quiet" }), this.slider),
      button("undo", "undo", "Undo (Ctrl+Z)", () => this.undo()),
      button("redo", "redo", "Redo (Ctrl+Shift+Z)", () => this.redo()),
      button("invert", "invert", "Invert (Shift+V)", () => this.#change((mask) => mask.invert())),
      button("clear", "clear", "Clear", () => this.#change((mask) => mask.clear())),
      button("fit", "fit", "Whole picture (Ctrl+0)", () => this.fit()),
      button("out", "minus", "Zoom out (Alt+wheel)", () => this.#zoomBy(1 / 1.5)),
      button("in", "plus", "Zoom in (Alt+wheel)", () => this.#zoomBy(1.5)),
      button("save", "save", "Save the mask", async () => this.mask && download(await greyPng(this.mask.pixels(), this.mask.picture.width, this.mask.picture.height), "mask.png")),
      button("load", "load", "Load a mask", () => file.click()),
      file,
      el("p", { class: "help" }, "Paint what is to be made anew; the rest is kept."),
    );
    $("mask-open").addEventListener("click", () => this.toggle());
  }

  #take(tool) {
    this.tool = tool;
    this.#show();
  }

  #show() {
    for (const tool of ["brush", "eraser", "hand"]) $(`mask-${tool}`).setAttribute("aria-pressed", String(tool === this.tool));
    const size = this.size[this.tool];
    if (size) {
      this.slider.value = this.#placeOf(size);
      $("mask-size-text").textContent = `${size} px`;
      this.slider.setAttribute("aria-valuetext", `${size} pixels`);
    }
    this.slider.disabled = !size;
    $("mask-undo").disabled = !this.mask?.past.length;
    $("mask-redo").disabled = !this.mask?.future.length;
    const { painted } = this;
    $("mask-open").textContent = painted ? "Mask ●" : "Mask";
    $("mask-open").title = painted ? "Only what is painted is made anew" : "Paint what is to be made anew";
    this.desk.dataset.tool = this.tool;
  }

  get #largest() {
    return this.mask ? Math.max(64, Math.max(this.mask.picture.width, this.mask.picture.height) / 2) : 600;
  }

  #sizeAt(place) {
    return Math.max(1, Math.round(1 + (this.#largest - 1) * (place / 100) ** 2));
  }

  #placeOf(size) {
    return 100 * Math.sqrt((size - 1) / (this.#largest - 1));
  }

  #setSize(size) {
    if (!this.size[this.tool]) return;
    this.size[this.tool] = Math.min(Math.max(1, Math.round(size)), Math.round(this.#largest));
    this.#show();
    this.#moveCircle();
  }

  #grow(steps) {
    const size = this.size[this.tool] ?? 1;
    this.#setSize(size + steps * Math.max(1, Math.round(size / 10)));
  }

  #change(change) {
    if (!this.mask) return;
    change(this.mask);
    this.#paint();
    this.#touched();
  }

  #touched() {
    this.version += 1;
    this.#show();
    this.changed();
  }

  undo() {
    this.#change((mask) => mask.undo());
  }

  redo() {
    this.#change((mask) => mask.redo());
  }

  async #load(file) {
    const [chosen] = file.files;
    const { mask: wanted } = this;
    file.value = "";
    if (!chosen || !wanted) return;
    this.#complain(null);
    try {
      const bitmap = await createImageBitmap(chosen);
      if (this.mask !== wanted) return; // It is another picture's now.
      const { width, height } = wanted;
      const canvas = new OffscreenCanvas(width, height);
      const context = canvas.getContext("2d");
      context.drawImage(bitmap, 0, 0, width, height);
      const pixels = context.getImageData(0, 0, width, height).data;
      const data = Uint8Array.from({ length: width * height }, (_, at) => Number(pixels[4 * at] * (pixels[4 * at + 3] / 255) >= 128));
      this.#change((mask) => mask.take({ width, height, data }));
    } catch {
      this.#complain(`${chosen.name} is no picture that this browser can read.`);
    }
  }

  #complain(problem) {
    this.dispatchEvent(new CustomEvent("problem", { detail: problem }));
  }

  // Pointers: each is mapped through the rectangle that the mask has now

  #place(event) {
    const box = this.canvas.getBoundingClientRect();
    const { width, height } = this.mask.picture;
    return { x: ((event.clientX - box.left) / box.width) * width, y: ((event.clientY - box.top) / box.height) * height };
  }

  #listen() {
    const { desk } = this;
    desk.addEventListener("pointerdown", (event) => this.#down(event));
    desk.addEventListener("pointermove", (event) => this.#move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) desk.addEventListener(end, (event) => this.#up(event));
    desk.addEventListener("pointerleave", () => (this.circle.hidden = true));
    desk.addEventListener("contextmenu", (event) => this.isOpen && event.preventDefault());
    desk.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    desk.addEventListener("keydown", (event) => this.#key(event));
  }

  #down(event) {
    if (!this.isOpen || !this.mask || (event.button !== 0 && event.button !== 5)) return;
    event.preventDefault();
    this.desk.focus({ preventScroll: true });
    try {
      this.desk.setPointerCapture(event.pointerId);
    } catch {
      // A pointer that is gone already.
    }
    this.pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (event.pointerType === "touch" && this.pointers.size === 2) {
      this.#abandon(); // Two fingers move and zoom; what the first one began was no stroke.
      return;
    }
    if (this.tool === "hand" || this.pointers.size > 1) return;
    const erase = this.tool === "eraser" || event.altKey || (event.buttons & 32) !== 0;
    this.mask.begin();
    this.last = { point: this.#place(event), value: erase ? 0 : 1, id: event.pointerId };
    this.#stroke(this.last.point);
  }

  #stroke(point) {
    const size = this.size[this.tool] ?? this.size.brush;
    this.#paint(this.mask.draw(this.last.point, point, size, this.last.value));
    this.last.point = point;
  }

  #move(event) {
    this.#moveCircle(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.clientX, y: event.clientY };
    if (this.last?.id === event.pointerId) {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.#stroke(this.#place(each));
    } else if (this.tool === "hand" && this.pointers.size === 1) {
      this.#pan(now.x - before.x, now.y - before.y);
    } else if (this.pointers.size === 2) {
      this.#pinch(event.pointerId, before, now);
    }
    this.pointers.set(event.pointerId, now);
  }

  #pinch(id, before, now) {
    const [other] = [...this.pointers].filter(([key]) => key !== id).map(([, point]) => point);
    const distance = (point) => Math.hypot(point.x - other.x, point.y - other.y) || 1;
    this.#zoomBy(distance(now) / distance(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
    this.#pan((now.x - before.x) / 2, (now.y - before.y) / 2);
  }

  #up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.last?.id !== event.pointerId) return;
    this.last = null;
    this.mask.end();
    this.#touched();
  }

  #abandon() {
    if (!this.last) return;
    this.last = null;
    this.mask.end();
    this.mask.undo();
    this.mask.future.pop();
    this.#paint();
  }

  #moveCircle(event = this.lastMove) {
    this.lastMove = event;
    const show = event && this.isOpen && this.mask && this.tool !== "hand" && event.pointerType !== "touch";
    this.circle.hidden = !show;
    if (!show) return;
    const box = this.canvas.getBoundingClientRect();
    const desk = this.desk.getBoundingClientRect();
    const size = (this.size[this.tool] * box.width) / this.mask.picture.width;
    Object.assign(this.circle.style, {
      width: `${size}px`, height: `${size}px`,
      left: `${event.clientX - desk.left - size / 2}px`, top: `${event.clientY - desk.top - size / 2}px`,
    });
  }

  #wheel(event) {
    if (!this.isOpen || !(event.ctrlKey || event.metaKey || event.altKey)) return; // A plain wheel scrolls.
    event.preventDefault();
    if (event.altKey) this.#zoomBy(Math.exp(-event.deltaY / 400), event.clientX, event.clientY);
    else this.#grow(event.deltaY < 0 ? 1 : -1);
  }

  #key(event) {
    if (!this.isOpen || event.target !== this.desk || event.isComposing) return;
    const control = event.ctrlKey || event.metaKey;
    const action = control
      ? { KeyZ: () => (event.shiftKey ? this.redo() : this.undo()), KeyY: () => this.redo(), Digit0: () => this.fit() }[event.code]
      : {
          KeyB: () => this.#take("brush"), KeyE: () => this.#take("eraser"), KeyH: () => this.#take("hand"),
          BracketLeft: () => this.#grow(-1), BracketRight: () => this.#grow(1),
          KeyV: event.shiftKey ? () => this.#change((mask) => mask.invert()) : undefined,
        }[event.code];
    if (!action) return;
    event.preventDefault();
    action();
  }

  // Zoom: the easel is moved and scaled in the desk, which cuts it off

  fit() {
    this.zoom = { scale: 1, x: 0, y: 0 };
    this.#applyZoom();
  }

  #zoomBy(factor, clientX, clientY) {
    const desk = this.desk.getBoundingClientRect();
    const [x, y] = [(clientX ?? desk.left + desk.width / 2) - desk.left, (clientY ?? desk.top + desk.height / 2) - desk.top];
    const scale = Math.min(MOST_ZOOM, Math.max(1, this.zoom.scale * factor));
    const by = scale / this.zoom.scale;
    this.zoom = { scale, x: x - by * (x - this.zoom.x), y: y - by * (y - this.zoom.y) };
    if (scale === 1) this.zoom = { scale: 1, x: 0, y: 0 };
    this.#applyZoom();
  }

  #pan(dx, dy) {
    if (this.zoom.scale === 1) return;
    this.zoom.x += dx;
    this.zoom.y += dy;
    this.#applyZoom();
  }

  #applyZoom() {
    const { scale, x, y } = this.zoom;
    const easel = $("easel");
    easel.style.transformOrigin = `${-easel.offsetLeft}px ${-easel.offsetTop}px`;
    easel.style.transform = scale === 1 ? "" : `translate(${x}px, ${y}px) scale(${scale})`;
    this.#moveCircle();
  }

  /** Paint a box of the mask: two greys in squares, which no picture has by chance. */
  #paint(box = { left: 0, top: 0, right: this.mask.width, bottom: this.mask.height }) {
    const [width, height] = [box.right - box.left, box.bottom - box.top];
    if (width <= 0 || height <= 0) return;
    const cell = Math.max(2, Math.round((CHECKER * this.mask.width) / 600));
    const image = new ImageData(width, height);
    for (let y = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1) {
        const [px, py] = [box.left + x, box.top + y];
        if (!this.mask.data[py * this.mask.width + px]) continue;
        const grey = (Math.floor(px / cell) + Math.floor(py / cell)) % 2 ? 235 : 60;
        image.data.set([grey, grey, grey, 175], 4 * (y * width + x));
      }
    }
    this.canvas.getContext("2d").putImageData(image, box.left, box.top);
  }
}

