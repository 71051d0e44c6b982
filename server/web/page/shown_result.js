/** The result that is shown, and what can be done with it. */

import { codeFor, fileName, LANGUAGES } from "./code.js";
import { $, base, copyText, el, holdFocus, note } from "./dom.js";
import { showView } from "./stage.js";

const SAID = 2000;

export class ShownResult {
  /** @param page what has the form, the input, the results and the view */
  constructor(page) {
    this.page = page;
    this.record = null;
    this.input = null;
    this.wanted = null; // what was chosen last, which is shown once its input is here
    $("use-as-input").addEventListener("click", () => this.#useAsInput());
    $("use-settings").addEventListener("click", () => this.#useSettings());
    $("use-seed").addEventListener("click", () => page.form.set("seed", this.record.seed));
    this.#codeMenu();
  }

  /** Show a result of the strip, unless a run is shown. */
  async open(record, change = true) {
    this.wanted = record;
    // One that was deleted is shown until another is.
    const here = record === this.record ? this.input : null;
    const input = (await this.page.pictures.input(record.input)) ?? here;
    if (this.page.runner.running || this.wanted !== record) return;
    await this.show(record, input);
    if (change) showView("result");
  }

  /** Show a result beside the input that it was made of, if that is known. */
  async show(record, input) {
    this.record = this.wanted = record;
    this.input = input;
    this.page.results.mark(record.id);
    await this.page.view.finish(record, input);
    if (this.record !== record) return; // Another was opened meanwhile.
    const download = $("download");
    download.download = fileName(record.seed);
    if (this.url) URL.revokeObjectURL(this.url);
    download.href = this.url = URL.createObjectURL(record.picture);
    $("use-seed").textContent = `Seed ${record.seed}`;
    $("use-seed").title = "Keep this seed for the next run";
    const says = [];
    if (record.filtered) says.push("The safety check had this picture blurred.");
    if (record.ignored?.includes("mask")) says.push("This server knows no masks: it made the whole picture anew.");
    note($("result-note"), says.join(" "));
  }

  /** The result becomes the input; the mask stays where it fits. */
  async #useAsInput() {
    const { picture, seed } = this.record;
    await this.page.input.take(picture, fileName(seed), "result");
  }

  /** All that made it: input, mask, settings and seed. */
  #useSettings() {
    const { values, seed, maskKept } = this.record;
    // The input first: sizes go by its shape.
    if (this.input) this.page.input.restore(this.input, maskKept);
    this.page.setValues({ ...values, seed });
  }

  #codeMenu() {
    const menu = $("code");
    for (const [language, label] of Object.entries(LANGUAGES)) {
      menu.querySelector(".sheet").append(el("button", { type: "button", onclick: () => this.#copyCode(language) }, label));
    }
    document.addEventListener("pointerdown", ({ target }) => menu.contains(target) || (menu.open = false));
    menu.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !menu.open) return;
      event.preventDefault();
      menu.open = false;
      menu.querySelector("summary").focus();
    });
  }

  async #copyCode(language) {
    const { client, form, account } = this.page;
    const { values, seed, maskKept } = this.record;
    const fields = { ...form.request(values), seed: String(seed) };
    const needsKey = Boolean(client.key) || account.needsKey;
    const files = { init_image: fileOf(this.input) };
    if (maskKept) files.mask = { file: "mask.png", source: "the mask that was painted in the page, to be saved there under this name" };
    const refocus = holdFocus();
    $("code").open = false;
    refocus($("code").querySelector("summary"));
    if (!(await copyText(codeFor(language, base, fields, files, needsKey), LANGUAGES[language]))) return;
    const summary = $("code").querySelector("summary");
    summary.textContent = "Copied ✓";
    setTimeout(() => (summary.textContent = "Copy as code"), SAID);
  }
}

/** The file of an input, with where it is to be found if the user has none of it. */
function fileOf(input) {
  if (!input?.blob.size) return { file: "input.png", source: "the picture that it was made of, which the page has no more" };
  const { name: file, kind } = input;
  const shipped = `at ${base}static/pictures/${file}`;
  const sources = { sample: shipped, noise: shipped, result: "a result in the page, to be downloaded there", pasted: "a picture that was pasted into the page" };
  return { file, source: sources[kind] };
}
