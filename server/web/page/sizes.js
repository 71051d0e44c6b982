/** The size of the picture to make: chips by the input's aspect ratio, or two sides by hand. */

import { $, el, note } from "./dom.js";

const SCALES = [
  ["native", 1, "The model's own size"],
  ["larger", 1.5, "Larger"],
  ["largest", 2, "Largest"],
];
const BLANK = ["", ""]; // The server takes the picture's own size.

export class Sizes {
  #mode;

  /** @param form the Form @param about the server's description of itself */
  constructor(form, about) {
    this.form = form;
    this.about = about;
    this.picture = null; // its shape, where that is known
    this.unknown = false; // a picture of a shape that this browser cannot tell
    const { minimum, maximum, step } = form.fields.get("width");
    this.sides = { minimum, maximum, step };
    this.chips = el("div", { class: "chips" });
    this.width = this.#side("width", "Width");
    this.height = this.#side("height", "Height");
    this.lock = el("input", { type: "checkbox", id: "lock-ratio", checked: true, autocomplete: "off" });
    const swap = el("button", { type: "button", "aria-label": "Swap width and height", title: "Swap width and height", onclick: () => this.swap() }, "⇄");
    this.custom = el("div", { class: "row custom", hidden: true }, this.width, swap, this.height, el("label", { class: "switch" }, this.lock, " ratio"));
    const place = $("sizes");
    place.append(this.chips, this.custom, el("p", { class: "help hidden", id: "width-help" }), el("p", { class: "help hidden", id: "height-help" }));
    for (const side of [this.width, this.height]) {
      form.add(side.id, { element: side, get: () => side.value, set: (value) => (side.value = value) }, place);
    }
    this.mode = "native";
    this.#drawChips();
    form.addEventListener("change", ({ detail }) => {
      if (["width", "height"].includes(detail)) this.#follow();
    });
  }

  /** The chip that has the size: the one that is `wanted`, or while that is not offered a stand-in. */
  get mode() {
    return this.#mode;
  }

  set mode(mode) {
    this.#mode = this.wanted = mode;
  }

  #side(id, label) {
    const { minimum: min, maximum: max, step } = this.sides;
    const element = el("input", { id, type: "number", min, max, step, "aria-label": label, autocomplete: "off" });
    // Or a wheel that is meant to scroll would change it.
    element.addEventListener("wheel", () => element.blur(), { passive: true });
    element.addEventListener("input", () => {
      this.mode = "custom";
      this.#keepRatio(element);
      this.form.changed(id);
    });
    return element;
  }

  #keepRatio(element) {
    const typed = Number(element.value);
    if (!this.lock.checked || !typed || !this.picture) return;
    const ratio = this.picture.width / this.picture.height;
    const other = element === this.width ? this.height : this.width;
    other.value = this.#nearest(element === this.width ? typed / ratio : typed * ratio);
  }

  #nearest(side) {
    const { minimum, maximum, step } = this.sides;
    return Math.min(Math.max(Math.floor(side / step + 0.5) * step, minimum), maximum);
  }

  /** The size that the server would choose by itself. */
  #pictures(picture) {
    const { minimum, maximum } = this.sides;
    const [shorter, longer] = [picture.width, picture.height].sort((a, b) => a - b);
    const scale = Math.min(Math.max(1, minimum / shorter), maximum / longer);
    return [this.#nearest(picture.width * scale), this.#nearest(picture.height * scale)];
  }

  /** The allowed size nearest to the ratio and to the area of a square of `side`. */
  #near(ratio, side) {
    const { minimum, maximum, step } = this.sides;
    let best = null;
    for (let width = minimum; width <= maximum; width += step) {
      for (let height = minimum; height <= maximum; height += step) {
        const distance =
          Math.abs(Math.log(width / height / ratio)) + 0.25 * Math.abs(Math.log((width * height) / side ** 2));
        if (!best || distance < best.distance - 1e-9) best = { width, height, distance };
      }
    }
    return [best.width, best.height];
  }

  #drawChips() {
    const ratio = this.picture ? this.picture.width / this.picture.height : 1;
    const side = this.about.native_side;
    const offered = SCALES.map(([mode, scale, title]) => [mode, title, this.#near(ratio, side * scale)]);
    if (this.picture) offered.push(["picture", "The picture's own size", this.#pictures(this.picture)]);
    if (this.unknown) offered.unshift(["server", "The picture's own size, which the server knows", BLANK]);
    const seen = new Set();
    this.offered = offered.filter(([, , size]) => !seen.has(size.join()) && seen.add(size.join()));
    // What the server takes where no size is sent.
    const standard = (this.picture ? this.#pictures(this.picture) : BLANK).join();
    const chip = (mode, title, text) => {
      const input = el("input", { type: "radio", name: "size", value: mode, autocomplete: "off", onchange: () => this.choose(mode) });
      return el("label", { class: "chip", title }, input, el("span", {}, ...text));
    };
    this.chips.replaceChildren(
      ...this.offered.map(([mode, title, size]) => {
        const [width, height] = size;
        const text = width === "" ? ["as the picture"] : [`${width} × ${height}`, el("small", { "data-size": `${width}x${height}` })];
        return chip(mode, title, size.join() === standard ? [...text, el("small", {}, "API default")] : text);
      }),
      chip("custom", "Another size", ["Other"]),
    );
    this.#follow();
  }

  /** Use the picture's ratio, or a square without one; sizes chosen by hand stay. */
  setPicture(picture) {
    this.unknown = picture?.width === null;
    this.picture = this.unknown ? null : picture;
    this.#drawChips();
    if (this.mode !== "custom") this.choose(this.wanted);
  }

  /** A picture is newly taken: where its shape is unknown the server goes by it, unless a size was
   * chosen. */
  expect(picture) {
    if (picture?.width === null && this.mode === "native") this.mode = "server";
  }

  /** Take a mode's size. */
  choose(mode) {
    const found = this.offered.find(([name]) => name === mode) ?? (mode === "custom" ? null : this.offered[0]);
    this.wanted = mode;
    this.#mode = found ? found[0] : "custom";
    if (found) {
      [this.width.value, this.height.value] = found[2];
      this.form.changed("width");
      this.form.changed("height");
    }
    this.#follow();
    if (!found && mode === "custom") this.custom.hidden = false;
  }

  swap() {
    [this.width.value, this.height.value] = [this.height.value, this.width.value];
    this.mode = "custom";
    this.form.changed("width");
    this.form.changed("height");
  }

  /** Show which chip the two sides are. */
  #follow() {
    if (!this.offered) return;
    for (const input of this.chips.querySelectorAll("input")) input.checked = input.value === this.mode;
    this.custom.hidden = this.mode !== "custom";
  }

  /** Sides set from elsewhere: the chip that has them, else "Other". */
  match() {
    const size = [this.width.value, this.height.value].map((side) => (side === "" ? side : Number(side))).join();
    this.mode = this.offered.find(([, , offered]) => offered.join() === size)?.[0] ?? "custom";
    this.#follow();
  }

  /** Write what each size costs beside it. */
  showCosts(textOf) {
    for (const small of this.chips.querySelectorAll("[data-size]")) {
      const [width, height] = small.dataset.size.split("x").map(Number);
      note(small, textOf(width, height));
    }
  }

  /** The size to make, or null while a side is blank or wrong. */
  get size() {
    const size = { width: Number(this.width.value), height: Number(this.height.value) };
    return size.width > 0 && size.height > 0 ? size : null;
  }
}
