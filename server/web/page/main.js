/** The page: puts its parts together. */

import { ImageToImage, newKey } from "../../client.js";
import { Account } from "./account.js";
import { codeFor, LANGUAGES } from "./code.js";
import { creditsText, duration, evaluations, price, Speed } from "./costs.js";
import { showDemo } from "./demo.js";
import { $, announce, copyText, delayed, el, note, showBlob } from "./dom.js";
import { Form } from "./form.js";
import { Grid } from "./grid.js";
import { intake } from "./intake.js";
import { KeptRuns } from "./kept_runs.js";
import { MaskEditor } from "./mask_editor.js";
import { offerSettings } from "./metadata/offer.js";
import { NotTaken, readPicture, thumbnail } from "./picture.js";
import { Results } from "./results.js";
import { Runner, showError } from "./run.js";
import { readFields } from "./schema.js";
import { addSeed } from "./seed.js";
import { Sizes } from "./sizes.js";
import { ResultView, showFrame, showInput, showView } from "./stage.js";
import { local, Pictures, tab } from "./store.js";
import { addStyles } from "./styles.js";
import { ownTab } from "./tabs.js";
import { theme } from "./theme.js";

const FORM = "img2img.form";
const FORM_VERSION = 1;
const SAVE_PAUSE = 300;

class Page {
  constructor(fields, about, pictures, tabId) {
    this.about = about;
    this.pictures = pictures;
    this.tabId = tabId;
    this.client = new ImageToImage({ url: document.baseURI });
    this.form = new Form(fields);
    this.seed = addSeed(this.form);
    addStyles(this.form);
    this.sizes = new Sizes(this.form, about);
    this.account = new Account(this.client);
    this.view = new ResultView();
    this.speed = new Speed(about.model);
    this.runs = new KeptRuns(tabId);
    this.runner = new Runner(this.client, this.view, this.speed, this.runs);
    this.results = new Results(pictures, (record) => this.open(record));
    this.picture = null;
    this.grid = null;
    this.masks = new MaskEditor();
    this.shown = null;
    this.undo = null;
    this.saveForm = delayed(() => this.#saveForm(), SAVE_PAUSE);
    this.saveDraft = delayed(() => this.#saveDraft(), SAVE_PAUSE);
  }

  async begin() {
    showDemo(this.about.demo, this.form);
    this.#nameModel();
    this.form.addEventListener("change", ({ detail }) => this.#changed(detail));
    this.account.addEventListener("change", () => this.#costs());
    this.masks.addEventListener("change", () => this.saveDraft());
    this.runner.addEventListener("cancelled", ({ detail }) => this.#cancelled(detail));
    this.#buttons();
    this.#keys();
    this.grid = new Grid(this);
    await intake(this);
    const draft = await this.#restore();
    await this.results.load();
    if (this.results.latest && !this.picture) await this.open(this.results.latest);
    this.#findRuns(draft?.running ?? []);
    this.account.refresh();
    this.#costs();
    document.documentElement.dataset.ready = "true";
  }

  /** Name the model; while it loads, say so and ask again. */
  async #nameModel() {
    note($("model"), this.about.model ? `model: ${this.about.model}` : this.about.obstacle);
    if (this.about.model) return;
    await new Promise((resolve) => setTimeout(resolve, 3000));
    this.about = (await ask("api/about").catch(() => null)) ?? this.about;
    this.#nameModel();
  }

  // The picture to start from

  /** Take a file as the input. */
  async take(blob, name, kind, details = {}) {
    this.complainInput(null);
    try {
      const picture = await readPicture(blob, name, kind, this.about.max_upload_bytes);
      this.setPicture({ ...picture, ...details });
      showView("input");
      $("found-settings").hidden = true;
      if (kind === "file") await offerSettings(blob, this.form, (values) => this.setValues(values));
    } catch (error) {
      if (!(error instanceof NotTaken)) throw error;
      showView("input");
      this.complainInput(error.message);
    }
  }

  setPicture(picture, mask = null) {
    const noiseBefore = this.picture?.kind === "noise";
    this.picture = picture;
    if (picture?.kind === "noise") this.form.set("image_strength", 0);
    else if (noiseBefore) this.form.set("image_strength", this.form.fields.get("image_strength").standard);
    showInput(picture);
    this.masks.setPicture(picture?.kind === "noise" ? null : picture, mask);
    $("mask-open").disabled = !this.masks.mask;
    if (picture && picture.width === null) this.sizes.setUnknown();
    else this.sizes.setPicture(picture);
    this.#noteInput();
    this.#frame();
    this.saveDraft();
  }

  #noteInput() {
    const { picture } = this;
    const says = [];
    if (picture?.kind === "noise") says.push("Starts from noise: nothing of a picture stays, so image strength is 0.");
    if (picture && picture.width === null) says.push(`This browser cannot show ${picture.type} pictures. It is sent all the same; the server can read it.`);
    if (picture?.kind === "file" && this.about.demo) {
      says.push(`The demo model has seen drawings like the samples only, and will not understand this picture. For real pictures: ${this.about.demo.command}`);
    }
    note($("picture-note"), says.join(" "));
    $("picture-note").classList.remove("problem");
  }

  /** Say what is wrong with the input, where the input is. */
  complainInput(problem) {
    if (!problem) {
      this.#noteInput();
      return;
    }
    note($("picture-note"), problem);
    $("picture-note").classList.add("problem");
    announce(problem);
  }

  /** Say more about the input. */
  addInputNote(text) {
    note($("picture-note"), `${$("picture-note").textContent} ${text}`.trim());
  }

  #frame() {
    const says = showFrame(this.picture, this.sizes.size, this.form.get("resize_mode") || "crop");
    $("frame").title = says || "The part that is kept";
  }

  // The form

  #changed(name) {
    if (["width", "height", "resize_mode"].includes(name)) this.#frame();
    if (name === "image_strength" && this.picture?.kind === "noise" && Number(this.form.get(name)) !== 0) {
      this.form.set(name, 0);
      return;
    }
    this.#costs();
    this.saveForm();
  }

  /** Credits, where the key has any, and seconds for pictures of these values, in words. */
  costOf(all, size = this.sizes.size) {
    if (!size) return "";
    const sum = (each) => all.reduce((total, values) => total + each(values), 0);
    const parts = [];
    if (this.account.credits) {
      parts.push(`${creditsText(sum(({ steps }) => price(this.about.price, size.width, size.height, Number(steps))))} credits`);
    }
    const count = ({ steps, image_strength: strength, sampler }) => evaluations(Number(steps), Number(strength), sampler);
    const seconds = sum((values) => this.speed.seconds(size.width * size.height, count(values)) ?? NaN);
    if (!Number.isNaN(seconds)) parts.push(`~${duration(seconds)}`);
    return parts.join(" · ");
  }

  #costs() {
    const values = [this.form.values()];
    this.sizes.showCosts((width, height) => this.costOf(values, { width, height }));
    const { size } = this.sizes;
    const parts = size ? [`${size.width} × ${size.height}`, this.costOf(values)] : [];
    this.grid?.show();
    $("cost").textContent = parts.filter(Boolean).join(" · ");
    const moved = [...this.form.fields.values()].filter(
      (field) => $("more-fields").contains(this.form.controls.get(field.name)?.element ?? null)
        && this.form.get(field.name) !== field.standard,
    );
    $("more-changed").textContent = moved.length ? `${moved.length} changed` : "";
  }

  /** Take settings over into the form; what was there can be brought back. */
  setValues(values) {
    this.undo = this.form.values();
    $("undo-settings").hidden = false;
    this.form.setAll(values);
    this.sizes.match();
    announce("Settings taken");
  }

  // Runs

  /** Run what the form says, or `again` what a run that was cut off had. */
  async run(again = null) {
    $("form-error").replaceChildren();
    if (again) {
      this.form.setAll(again.values);
      this.sizes.match();
    }
    if (!this.ready()) return;
    if (this.runner.running) this.runner.cancel();
    const job = this.job(again?.seed ?? this.seed.take(), await this.masks.file());
    // The same id is the same Idempotency-Key: what was paid for is not paid for again.
    if (again?.id) job.id = again.id;
    const error = await this.#follow(job);
    // It was another picture or mask then.
    if (again?.id && error?.status === 409 && error.retryAfter === null) this.run({ ...again, id: null });
    else if (error) this.#failed(error);
  }

  /** Run a job, or watch one that goes on, and keep its picture. Resolves to what went wrong. */
  async #follow(job) {
    this.last = { id: job.id, seed: job.seed, values: job.values };
    const running = this.runner.start(job);
    showView("result");
    this.results.mark(null);
    this.#saveDraft(); // with the picture and the mask of the run
    try {
      const result = await running;
      if (!result) return null;
      if (result.late) $("form-error").textContent = "It was finished already, and is among the results.";
      await this.keep(job, result, !this.runner.running);
      this.letGo(job.id);
      this.account.refresh();
      this.#costs();
      return null;
    } catch (error) {
      return error;
    }
  }

  /** The picture of a run is in hand: nobody will come back for it. */
  letGo(id) {
    this.runs.remove(id);
    if (this.about.run_grace) this.client.cancel(id).catch(() => {});
  }

  /** Find what a reload or a crash cut off. Cells of a grid go to the strip. */
  async #findRuns(pictures) {
    for (const run of this.runs.before) {
      const kept = pictures.find(({ id }) => id === run.id) ?? { input: this.picture, maskKept: this.masks.kept };
      const input = kept.input ?? { id: newKey(), kind: "noise", name: "the input, which is lost", blob: new Blob() };
      const job = { ...run, input, maskKept: kept.maskKept, found: true };
      if (run.cell) this.grid.find(job);
      else this.#follow(job).then((error) => error && this.#failed(error));
    }
  }

  /** Whether all is there that a run needs; what is not is said at its place. */
  ready() {
    const fits = this.form.check();
    if (!this.picture) {
      showView("input");
      this.complainInput("A picture is needed: drop one, choose one, take a sample, or start from noise.");
      $("form-error").textContent = "Not sent: there is no picture to start from.";
    } else if (!fits) $("form-error").textContent = "Not sent: see the marked fields.";
    return fits && Boolean(this.picture);
  }

  /** What to send for these values, and what is to be known of it. */
  job(seed, mask, values = this.form.values()) {
    const fields = { ...this.form.request(values), seed, previews: "true", init_image: this.picture.blob };
    if (mask) fields.mask = mask;
    const size = this.sizes.size ?? { width: this.picture.width ?? 512, height: this.picture.height ?? 512 };
    return { id: newKey(), fields, values, size, seed, input: this.picture, maskKept: this.masks.kept };
  }

  /** Keep a result in the strip, and show it. */
  async keep({ seed, size, values, input, maskKept }, { picture, filtered, ignored }, show = true) {
    const record = {
      id: newKey(), at: Date.now(), picture, thumbnail: await thumbnail(picture),
      seed, ...size, values, input: input.id, maskKept, fit: values.resize_mode, filtered, ignored,
    };
    await this.results.add(record, input, show);
    if (show) await this.#show(record, input);
    return record;
  }

  #failed(error) {
    if (!this.shown) showView("input");
    else this.open(this.shown);
    showError(error, this.form, {
      onKey: (reason) => this.account.ask(reason),
      onAgain: () => this.run(this.last),
      onInput: (problem) => {
        showView("input");
        this.complainInput(problem);
      },
    });
  }

  #cancelled(text) {
    $("form-error").textContent = text;
    if (this.shown) this.open(this.shown, false);
    else showView("input");
  }

  // Results

  /** Show a result of the strip. */
  async open(record, change = true) {
    const input = await this.pictures.input(record.input);
    if (this.runner.running) return;
    await this.#show(record, input);
    if (change) showView("result");
  }

  async #show(record, input) {
    this.shown = record;
    this.shownInput = input;
    this.results.mark(record.id);
    await this.view.finish(record, input);
    const download = $("download");
    download.download = `img2img-${record.seed}.png`;
    if (this.downloadUrl) URL.revokeObjectURL(this.downloadUrl);
    download.href = this.downloadUrl = URL.createObjectURL(record.picture);
    $("use-seed").textContent = `Seed ${record.seed}`;
    $("use-seed").title = "Keep this seed for the next run";
    const says = [];
    if (record.filtered) says.push("The safety check had this picture blurred.");
    if (record.ignored?.includes("mask")) says.push("This server knows no masks: it made the whole picture anew.");
    note($("result-note"), says.join(" "));
  }

  /** The result becomes the input; the mask stays where it fits. */
  async #useAsInput() {
    const { picture, seed } = this.shown;
    await this.take(picture, `result-${seed}.png`, "result");
  }

  #useSettings() {
    const { values, seed } = this.shown;
    this.setValues({ ...values, seed });
    if (this.shownInput) this.setPicture(this.shownInput, this.shown.maskKept);
  }

  #copyCode(language) {
    const { values, seed } = this.shown;
    const fields = { ...this.form.request(values), seed: String(seed) };
    const files = { init_image: this.shownInput?.name ?? "input.png" };
    if (this.shown.maskKept) files.mask = "mask.png";
    const needsKey = Boolean(this.client.key) || this.account.needsKey;
    copyText(codeFor(language, document.baseURI.replace(/[^/]*$/, ""), fields, files, needsKey), LANGUAGES[language]).then(
      (copied) => copied && ($("code").querySelector("summary").textContent = "Copied ✓"),
    );
    setTimeout(() => ($("code").querySelector("summary").textContent = "Copy as code"), 2000);
    $("code").open = false;
  }

  // Keeping

  #saveForm() {
    const kept = { version: FORM_VERSION, mode: this.sizes.mode, values: this.form.values() };
    tab.set(FORM, kept);
    local.set(FORM, kept);
  }

  #saveDraft() {
    this.pictures.saveDraft(this.tabId, { picture: this.picture, mask: this.masks.kept, running: this.runs.pictures });
  }

  async #restore() {
    const kept = tab.get(FORM) ?? local.get(FORM);
    const draft = await this.pictures.draft(this.tabId);
    if (kept?.version === FORM_VERSION) {
      this.form.setAll(kept.values);
      this.sizes.mode = kept.mode;
    }
    if (draft?.picture) this.setPicture(draft.picture, draft.mask);
    else this.sizes.setPicture(null);
    return draft;
  }

  // Buttons and keys

  #buttons() {
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.run();
    });
    $("cancel").addEventListener("click", () => this.runner.cancel());
    $("use-as-input").addEventListener("click", () => this.#useAsInput());
    $("use-settings").addEventListener("click", () => this.#useSettings());
    $("use-seed").addEventListener("click", () => this.form.set("seed", this.shown.seed));
    $("remove-picture").addEventListener("click", () => this.setPicture(null));
    $("reset").addEventListener("click", () => {
      this.setValues(this.form.values());
      this.form.reset();
      this.sizes.choose("native");
    });
    $("undo-settings").addEventListener("click", () => {
      const before = this.undo;
      this.setValues(before);
      $("undo-settings").hidden = true;
    });
    const sheet = $("code").querySelector(".sheet");
    for (const [language, label] of Object.entries(LANGUAGES)) {
      sheet.append(el("button", { type: "button", onclick: () => this.#copyCode(language) }, label));
    }
    window.addEventListener("pagehide", () => {
      this.saveForm.now();
      this.saveDraft.now();
    });
    document.addEventListener("visibilitychange", () => document.hidden && this.saveForm.now());
  }

  #keys() {
    document.addEventListener("keydown", (event) => {
      if (event.isComposing || event.defaultPrevented) return;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        if (event.target.closest?.("#view-grid")) this.grid.run();
        else this.run();
      } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
        if (this.runner.running) this.runner.cancel();
        else if (this.grid.running) this.grid.cancel();
      }
    });
  }
}

/** Ask for JSON of the server; the envelope's data where there is one. */
async function ask(path) {
  const response = await fetch(new URL(path, document.baseURI), { cache: "no-store" });
  return (await response.json()).data;
}

async function start() {
  theme();
  const pictures = new Pictures((text) => note($("storage-note"), text));
  const [fields, about, tabId] = await Promise.all([readFields(), ask("api/about"), ownTab(), pictures.open()]);
  await new Page(fields, about, pictures, tabId).begin();
}

start().catch((error) => {
  console.error(error);
  $("banners").append(
    el("p", { class: "banner error", role: "alert" }, "The server cannot be reached, so its settings are not known. ",
      el("button", { type: "button", onclick: () => window.location.reload() }, "Try again")),
  );
});
