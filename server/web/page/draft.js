/** What a reload, a crash or a slip must not lose: the form, the grid's axes, the picture, its mask, runs that
 * go on. */

import { delayed } from "./dom.js";
import { isNoise } from "./picture.js";
import { local, tab } from "./store.js";

const FORM = "img2img.form";
const FORM_VERSION = 2;
const NOISES_STRENGTH = 1; // In this version the strength from noise, 0, was kept in the place of the form's own.
const PAUSE = 300;

export class Draft {
  /** @param page what has the form, the sizes, the input, the runs and the store of pictures */
  constructor(page, tabId) {
    this.page = page;
    this.tabId = tabId;
    this.saveForm = delayed(() => this.#saveForm(), PAUSE);
    this.saveInput = delayed(() => this.save(), PAUSE);
    window.addEventListener("pagehide", () => {
      this.saveForm.now();
      this.saveInput.now();
    });
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) return;
      this.saveForm.now();
      this.saveInput.now();
    });
    // What this browser does not keep is not lost unasked.
    window.addEventListener("beforeunload", (event) => {
      if (page.pictures.forgets && (page.input.picture || page.results.latest)) event.preventDefault();
    });
  }

  #saveForm() {
    const { sizes, input, grid } = this.page;
    const kept = { version: FORM_VERSION, mode: sizes.wanted, values: input.values(), axes: grid.kept };
    tab.set(FORM, kept);
    local.set(FORM, kept);
  }

  /** Keep the picture, the mask and those of the runs now. */
  save() {
    const { input, runs, pictures } = this.page;
    pictures.saveDraft(this.tabId, { picture: input.picture, mask: input.masks.kept, running: runs.pictures });
  }

  /** Bring back what this tab had, or the last visit for a tab that is new; returns the pictures of
   * the runs that were cut off. */
  async restore() {
    const { form, sizes, input, pictures } = this.page;
    const kept = tab.get(FORM) ?? local.get(FORM);
    if ([NOISES_STRENGTH, FORM_VERSION].includes(kept?.version)) {
      form.setAll(kept.values);
      sizes.mode = kept.mode;
      this.page.grid.restore(kept.axes ?? []);
    }
    // From here on what is typed is not overwritten.
    const draft = await pictures.draft(this.tabId);
    if (kept?.version === NOISES_STRENGTH && isNoise(draft?.picture) && Number(form.get("image_strength")) === 0) {
      form.set("image_strength", form.fields.get("image_strength").standard);
    }
    if (draft?.picture) input.set(draft.picture, draft.mask);
    else sizes.setPicture(null);
    return draft?.running ?? [];
  }
}
