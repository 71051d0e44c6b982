/** The picture to start from and its mask: taken, complained about, and brought back after a slip. */

import { $, announce, holdFocus, note } from "./dom.js";
import { MaskEditor } from "./mask_editor.js";
import { offerSettings } from "./metadata/offer.js";
import { isNoise, NotTaken, readPicture } from "./picture.js";
import { showFrame, showInput, showView } from "./stage.js";

const OWN = new Set(["file", "pasted"]); // kinds that may be any picture
const SERVERS = new Set(["TIFF", "AVIF", "HEIC"]); // what the server reads and a browser may not

export class Input extends EventTarget {
  /** @param about the server's description of itself @param onSettings called with values found in
   *   a picture that are to be used */
  constructor(form, sizes, about, onSettings) {
    super();
    this.form = form;
    this.sizes = sizes;
    this.about = about;
    this.onSettings = onSettings;
    this.picture = null;
    this.masks = new MaskEditor();
    this.before = null;
    this.after = null; // what is waited for before a picture is taken
    this.choice = null; // the last one: whatever was chosen before it comes too late
    this.strength = null; // what is set aside while it starts from noise
    this.masks.addEventListener("change", () => this.#changed());
    this.masks.addEventListener("problem", ({ detail }) => this.complain(detail));
    form.addEventListener("change", ({ detail }) => this.#follow(detail));
    $("remove-picture").addEventListener("click", () => this.replace(null));
    $("undo-picture").addEventListener("click", () => this.undo());
  }

  /** Choose what comes next; returns what `take` is to be told of it. */
  choose() {
    this.choice = {};
    return this.choice;
  }

  /** Take a file as the input, unless another picture was chosen later than it (`choice`). Resolves
   * to whether it was taken. */
  async take(blob, name, kind, choice = this.choose()) {
    this.complain(null);
    try {
      await this.after;
      const picture = await readPicture(blob, name, kind, this.about.max_upload_bytes);
      if (choice !== this.choice) return false;
      this.replace(picture);
      showView("input");
      // Anyone may have written them: where they are not as they should be, the picture is taken alone.
      const settings = OWN.has(kind) && (await offerSettings(picture.blob, this.form, this.onSettings, () => picture === this.picture).catch(console.warn));
      if (picture !== this.picture) return false;
      if (settings?.model) {
        picture.model = settings.model; // It goes along where the picture is kept.
        this.#note();
        this.#changed();
      }
      return true;
    } catch (error) {
      if (!(error instanceof NotTaken)) throw error;
      if (choice !== this.choice) return false;
      showView("input");
      this.complain(error.message);
      return false;
    }
  }

  /** Put a picture, or none, in the place of the one that is there, which can be brought back.
   * `mask` is what MaskEditor.kept gave of it; without it the mask stays where it fits. */
  replace(picture, mask) {
    this.choose();
    if (this.picture) this.before = { picture: this.picture, mask: this.masks.kept };
    this.sizes.expect(picture);
    const refocus = holdFocus();
    this.set(picture, mask);
    const other = this.before && this.before.picture.id !== picture?.id;
    $("undo-picture").hidden = !other;
    $("undo-picture").textContent = other ? `Back to ${this.before.picture.name}` : "";
    refocus(picture ? $("change-picture") : $("undo-picture"), $("pick"));
  }

  /** Start from what a run had: its picture, and exactly its mask or none. */
  restore(picture, mask = null) {
    this.choose();
    if (picture.id !== this.picture?.id) this.replace(picture, mask);
    else this.masks.restore(mask);
  }

  /** Bring back the picture and the mask that were replaced or removed; once more brings on again. */
  undo() {
    if (this.before) this.replace(this.before.picture, this.before.mask);
    showView("input");
  }

  /** Start from this picture, or from none; `mask` as for `replace`. */
  set(picture, mask) {
    const noiseBefore = isNoise(this.picture);
    this.picture = picture;
    if (isNoise(picture)) {
      if (!noiseBefore) this.strength = this.form.get("image_strength");
      this.form.set("image_strength", 0);
    } else if (noiseBefore) this.form.set("image_strength", this.strength);
    this.form.lock("image_strength", isNoise(picture));
    showInput(picture);
    $("found-settings").hidden = true;
    this.masks.setPicture(isNoise(picture) ? null : picture, mask);
    $("mask-open").disabled = !this.masks.mask;
    this.sizes.setPicture(picture);
    this.#note();
    this.#frame();
    this.#changed();
  }

  /** The form's values as they are without noise, for what brings them back. */
  values() {
    const values = this.form.values();
    return isNoise(this.picture) ? { ...values, image_strength: this.strength } : values;
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }

  #note() {
    const { picture } = this;
    const says = [];
    if (isNoise(picture)) says.push("Starts from noise: nothing of a picture stays, so image strength is 0.");
    if (picture && picture.width === null) {
      const why = SERVERS.has(picture.type) ? `${picture.type} pictures, but the server can read them.` : "this picture: it may be damaged.";
      says.push(`This browser cannot show ${why} It is sent all the same.`);
    }
    if (picture?.alpha) says.push("Where it is transparent it counts as white.");
    if (OWN.has(picture?.kind) && this.about.demo && picture.model !== this.about.model) {
      says.push(`The demo model has seen drawings like the samples only; it may not understand a photograph or another drawing. For real pictures: ${this.about.demo.command}`);
    }
    note($("picture-note"), says.join(" "));
    $("picture-note").classList.remove("problem");
  }

  /** Say what is wrong with the input, where the input is. */
  complain(problem) {
    if (!problem) {
      this.#note();
      return;
    }
    note($("picture-note"), problem);
    $("picture-note").classList.add("problem");
    announce(problem);
  }

  /** Say more about the input. */
  addNote(text) {
    note($("picture-note"), `${$("picture-note").textContent} ${text}`.trim());
  }

  #follow(name) {
    if (["width", "height", "resize_mode"].includes(name)) this.#frame();
    if (!isNoise(this.picture) || name !== "image_strength" || this.form.get(name) === "0") return;
    this.strength = this.form.get(name);
    this.form.set(name, 0);
  }

  #frame() {
    showFrame(this.picture, this.sizes.size, this.form.get("resize_mode") || "crop");
  }
}
