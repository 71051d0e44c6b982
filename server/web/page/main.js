/** The page: puts its parts together. */

import { ImageToImage } from "../../client.js";
import { Account } from "./account.js";
import { Costs } from "./costs.js";
import { showDemo } from "./demo.js";
import { $, announce, base, el, meant, note } from "./dom.js";
import { Draft } from "./draft.js";
import { Form } from "./form.js";
import { Grid } from "./grid.js";
import { Input } from "./input.js";
import { intake, samples } from "./intake.js";
import { KeptRuns } from "./kept_runs.js";
import { Making } from "./making.js";
import { Results } from "./results.js";
import { forgetKeyProblem, Runner } from "./run.js";
import { readFields } from "./schema.js";
import { addSeed } from "./seed.js";
import { ShownResult } from "./shown_result.js";
import { Sizes } from "./sizes.js";
import { ResultView } from "./stage.js";
import { Pictures } from "./store.js";
import { addStyles } from "./styles.js";
import { ownTab } from "./tabs.js";
import { theme } from "./theme.js";

const MODEL_PAUSE = 3000;
// Seconds for which a run waits for a server that names a time to come again: it loads or is full, the key is
// over its limits, or the first try still runs. Someone may cancel it.
const PATIENCE = 3600;

class Page {
  constructor(fields, about, pictures, tabId) {
    this.about = about;
    this.pictures = pictures;
    this.client = new ImageToImage({ url: base, patience: PATIENCE });
    this.form = new Form(fields);
    this.seed = addSeed(this.form);
    addStyles(this.form);
    this.sizes = new Sizes(this.form, about);
    this.account = new Account(this.client);
    this.view = new ResultView();
    this.costs = new Costs(about, this.account, fields);
    this.runs = new KeptRuns(tabId);
    this.runner = new Runner(this.client, this.view, this.runs);
    this.results = new Results(pictures, (record) => this.shown.open(record));
    this.shown = new ShownResult(this);
    this.input = new Input(this.form, this.sizes, about, (values) => this.setValues(values));
    this.making = new Making(this);
    this.draft = new Draft(this, tabId);
    this.grid = new Grid(this);
    this.before = null;
  }

  async begin() {
    showDemo(this.about.demo, this.form);
    this.#nameModel();
    this.form.addEventListener("change", () => {
      this.showCosts();
      this.draft.saveForm();
    });
    this.account.addEventListener("change", () => {
      this.showCosts();
      if (!this.account.needsKey) forgetKeyProblem();
    });
    this.input.addEventListener("change", () => {
      this.showCosts();
      this.draft.saveInput();
    });
    const shownSamples = samples(this.input);
    intake(this.input);
    const restored = this.#restore();
    this.input.after = restored; // What is chosen meanwhile is taken then.
    $("form").addEventListener("submit", (event) => event.preventDefault());
    const pictures = await restored;
    this.#buttons();
    document.addEventListener("keydown", (event) => this.#key(event));
    this.making.findAgain(pictures);
    this.account.refresh();
    this.showCosts();
    await shownSamples;
    document.documentElement.dataset.ready = "true";
  }

  /** Bring back what was here before; resolves to the pictures of the runs that were cut off. */
  async #restore() {
    const pictures = await this.draft.restore();
    await this.results.load();
    if (this.results.latest && !this.input.picture) await this.shown.open(this.results.latest);
    return pictures;
  }

  /** Name the model; while it loads, say so and ask again. */
  async #nameModel() {
    const { about } = this;
    note($("model"), about.model ? `model: ${about.model}` : about.obstacle);
    if (about.model) {
      this.showCosts();
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, MODEL_PAUSE));
    await this.renew();
    this.#nameModel();
  }

  /** Ask anew what the server says of itself: what a picture takes is learned from each run. */
  async renew() {
    Object.assign(this.about, await ask("api/about").catch(() => ({})));
    this.showCosts();
  }

  /** Say what a click costs, and what is not as it was at first. */
  showCosts() {
    const values = [this.form.values()];
    this.sizes.showCosts((width, height) => this.costs.of(values, { width, height }));
    const { size } = this.sizes;
    const parts = size ? [`${size.width}\u00a0×\u00a0${size.height}`, this.costs.of(values, size), this.costs.beyond(values, size)] : [];
    if (this.input.masks.painted) parts.push("only what the mask covers");
    this.grid.show();
    $("cost").textContent = parts.filter(Boolean).join(" · ");
    const moved = [...this.form.fields.values()].filter(
      (field) => $("more-fields").contains(this.form.controls.get(field.name)?.element ?? null)
        && this.form.get(field.name) !== field.standard,
    );
    $("more-changed").textContent = moved.length ? `${moved.length} changed` : "";
  }

  /** Take settings over into the form; what was there can be brought back, and this again. */
  setValues(values, undo = "Undo settings") {
    this.before = this.input.values();
    $("undo-settings").hidden = false;
    $("undo-settings").textContent = undo;
    this.form.setAll(values);
    this.sizes.match();
    announce("Settings taken");
  }

  #buttons() {
    $("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.making.run();
    });
    $("generate").addEventListener("click", (event) => meant(event) || event.preventDefault());
    $("cancel").addEventListener("click", (event) => meant(event) && this.runner.cancel());
    $("reset").addEventListener("click", () => {
      this.setValues(this.input.values());
      this.form.reset();
      this.sizes.choose("native");
    });
    // Where the page's address is not its base, the link would load it anew.
    $("skip").addEventListener("click", (event) => {
      event.preventDefault();
      $("prompt").focus();
    });
    $("undo-settings").addEventListener("click", ({ target }) => {
      this.setValues(this.before, target.textContent.startsWith("Undo") ? "Redo settings" : "Undo settings");
    });
    if (/^(Mac|iP)/.test(navigator.platform)) $("generate").querySelector("kbd").textContent = "⌘ Enter";
  }

  #key(event) {
    if (event.isComposing || event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const generates = event.key === "Enter" && (event.ctrlKey || event.metaKey);
    if (event.repeat) {
      // A key that is held is one click, also where the focus goes on to Cancel; Enter in a field
      // submits the form too.
      if (generates || (event.key === "Enter" && event.target.matches?.("input, button"))) event.preventDefault();
    } else if (generates) {
      event.preventDefault();
      if (event.target.closest?.("#view-grid")) this.grid.run();
      else this.making.run();
    } else if (event.key === "Escape") {
      if (this.runner.running) this.runner.cancel();
      else if (this.grid.running) this.grid.cancel();
    }
  }
}

/** Ask for JSON of the server; the envelope's data where there is one. */
async function ask(path) {
  const response = await fetch(base + path, { cache: "no-store" });
  return (await response.json()).data;
}

async function start() {
  theme();
  const pictures = new Pictures((text) => {
    note($("storage-problem"), text);
    announce(text);
  });
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
