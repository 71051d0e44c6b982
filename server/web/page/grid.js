/** The grid: pictures that differ in one or two settings, made together, kept one by one. */

import { randomSeed } from "../../client.js";
import { axisValues, exampleOf } from "./axis.js";
import { $, announce, download, el } from "./dom.js";
import { gridPicture } from "./grid_picture.js";

const AT_ONCE = 4; // A browser opens six connections to a server; the server batches what it gets.
const CANCEL_PATIENCE = 2000; // until the connections are closed, though the server was not told
const FIRST = ["image_strength", "cfg_scale", "steps", "sampler", "style_preset", "seed"];

export class Grid {
  /** @param page what has the form, the picture, the client and the results */
  constructor(page) {
    this.page = page;
    this.plan = null;
    this.aborter = null;
    this.axes = [this.#axis("x", "Across", "image_strength"), this.#axis("y", "Down", "")];
    this.cost = el("p", { class: "quiet", id: "grid-cost" });
    this.go = el("button", { type: "button", id: "grid-go", class: "primary", onclick: () => this.run() });
    this.stop = el("button", { type: "button", id: "grid-stop", hidden: true, onclick: () => this.cancel() }, "Cancel");
    this.save = el("button", { type: "button", id: "grid-save", hidden: true, onclick: () => this.#save() }, "Download the grid");
    this.said = el("p", { class: "quiet", id: "grid-said", role: "status" });
    this.table = el("table", { id: "grid", hidden: true });
    $("view-grid").append(
      el("div", { class: "axes" }, ...this.axes.map(({ place }) => place)),
      el("div", { class: "actions" }, this.go, this.stop, this.save, this.cost),
      this.said,
      el("div", { class: "table" }, this.table),
    );
    page.form.addEventListener("change", () => this.show());
    window.addEventListener("beforeunload", (event) => this.running && event.preventDefault());
    this.show();
  }

  get running() {
    return this.aborter !== null;
  }

  #axis(id, label, standard) {
    const fields = [...this.page.form.fields.values()].filter(({ name, kind }) =>
      ["integer", "number", "choice"].includes(kind) && !["width", "height"].includes(name));
    fields.sort((a, b) => (FIRST.indexOf(a.name) + 99) % 99 - (FIRST.indexOf(b.name) + 99) % 99);
    const select = el("select", { id: `grid-${id}`, autocomplete: "off", onchange: () => pick() },
      id === "y" ? el("option", { value: "" }, "nothing") : null,
      ...fields.map((field) => el("option", { value: field.name }, field.label)));
    const input = el("input", { id: `grid-${id}-values`, autocomplete: "off", "aria-label": `Values ${label.toLowerCase()}`, "aria-describedby": `grid-${id}-problem`, oninput: () => this.show() });
    const problem = el("p", { class: "problem", id: `grid-${id}-problem` });
    const axis = { select, input, problem, place: el("div", { class: "field" }, el("label", { for: select.id }, label), el("div", { class: "row" }, select, input), problem) };
    const pick = () => {
      const field = this.page.form.fields.get(select.value);
      input.value = field ? exampleOf(field) : "";
      input.hidden = !field;
      if (this.table) this.show();
    };
    select.value = standard;
    pick();
    return axis;
  }

  /** What the axes say: `{axes: [{field, values}]}`, or null with the problem shown. */
  #read() {
    const axes = [];
    let sound = true;
    for (const { select, input, problem } of this.axes) {
      const field = this.page.form.fields.get(select.value);
      const found = field ? axisValues(field, input.value) : { values: [""] };
      problem.textContent = found.problem ? `${found.problem}.` : "";
      input.toggleAttribute("aria-invalid", Boolean(found.problem));
      sound &&= !found.problem;
      axes.push({ field, values: found.values });
    }
    if (sound && axes[0].field === axes[1].field) {
      this.axes[1].problem.textContent = "Both axes vary the same.";
      sound = false;
    }
    return sound ? axes : null;
  }

  /** Show what a click would make and cost. */
  show() {
    const axes = this.#read();
    this.go.disabled = !axes || this.running;
    if (!axes) {
      this.cost.textContent = "";
      return;
    }
    const cells = cellsOf(axes);
    const missing = this.#sameAs(axes) ? this.plan.cells.filter(({ record }) => !record).length : 0;
    const some = missing > 0 && missing < cells.length;
    this.go.textContent = some ? `Make the missing ${missing}` : `Make ${cells.length} picture${cells.length === 1 ? "" : "s"}`;
    this.cost.textContent = this.page.costOf(cells.map(({ values }) => ({ ...this.page.form.values(), ...values })));
  }

  #sameAs(axes) {
    return this.plan && this.plan.key === this.#key(axes);
  }

  #key(axes) {
    return JSON.stringify([axes.map(({ field, values }) => [field?.name, values]), this.page.form.values(), this.page.picture?.id]);
  }

  /** Make all cells, or those that are missing of the same grid. */
  async run() {
    const axes = this.#read();
    if (!axes || this.running || !this.page.ready()) return;
    if (!this.#sameAs(axes) || this.plan.cells.every(({ record }) => record)) this.#draw(axes);
    const aborter = (this.aborter = new AbortController());
    this.#state();
    const mask = await this.page.masks.file();
    const waiting = this.plan.cells.filter(({ record }) => !record);
    const limit = this.page.account.concurrency ?? AT_ONCE;
    const work = async () => {
      for (let cell = waiting.shift(); cell && this.aborter === aborter; cell = waiting.shift()) {
        await this.#make(cell, mask, aborter.signal);
      }
    };
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, limit) }, work));
    if (this.aborter === aborter) this.aborter = null;
    this.#state();
    this.page.account.refresh();
  }

  cancel() {
    const { aborter } = this;
    this.aborter = null;
    const told = this.plan.cells.filter(({ run }) => run).map(({ run }) => this.page.client.cancel(run).catch(() => {}));
    const patience = new Promise((resolve) => setTimeout(resolve, CANCEL_PATIENCE));
    Promise.race([Promise.all(told), patience]).then(() => aborter?.abort());
    for (const cell of this.plan.cells) if (!cell.record) cell.place.replaceChildren("–");
    this.#state();
  }

  /** Find a cell's run that a reload cut off; its picture goes to the strip. */
  async find(job) {
    this.page.runs.add(job, true);
    try {
      for await (const event of this.page.client.watch(job.id)) {
        if (event.type === "result") await this.page.keep(job, event, false);
      }
    } catch {
      // It is gone: the grid makes it again.
    }
    this.page.letGo(job.id);
  }

  async #make(cell, mask, signal) {
    const { place } = cell;
    const say = (text) => place.replaceChildren(text);
    say("Waiting");
    const job = this.page.job(cell.seed, mask, { ...this.page.form.values(), ...this.plan.values, ...cell.values, seed: String(cell.seed) });
    delete job.fields.previews;
    cell.run = job.id;
    this.page.runs.add(job, true);
    const current = () => this.aborter?.signal === signal;
    try {
      const result = await this.page.client.imageToImage(job.fields, {
        signal, runId: job.id, idempotencyKey: job.id,
        onProgress: ({ step, steps, evaluation }) => current() && say(evaluation ? `${step} / ${steps}` : "Queued"),
        onRetry: ({ reason }) => current() && say(reason),
      });
      // Also one that was finished as it was cancelled: it is paid for.
      cell.record = await this.page.keep(job, result, false);
      const image = el("img", { alt: cell.label, src: URL.createObjectURL(cell.record.thumbnail) });
      place.replaceChildren(el("button", { type: "button", "aria-label": `Show ${cell.label}`, onclick: () => this.page.open(cell.record) }, image));
      this.page.letGo(job.id);
    } catch (error) {
      this.page.runs.remove(job.id);
      if (current()) place.replaceChildren(el("span", { class: "problem" }, error.message));
    }
    cell.run = null;
    this.#state();
  }

  /** An empty table with its labels, and the cells to fill. */
  #draw(axes) {
    const [across, down] = axes;
    const cells = cellsOf(axes);
    const drawn = new Map();
    const seed = Number(this.page.form.get("seed")) || randomSeed();
    for (const cell of cells) {
      const asked = cell.values.seed;
      if (asked !== undefined && Number(asked) <= 0 && !drawn.has(asked)) drawn.set(asked, randomSeed());
      cell.seed = asked === undefined ? seed : (drawn.get(asked) ?? Number(asked));
      cell.place = el("td", {}, "–");
      cell.label = axes.filter(({ field }) => field).map(({ field }) => `${field.label} ${cell.values[field.name] || "none"}`).join(", ");
    }
    const head = el("tr", {}, el("td", { class: "corner" }), ...across.values.map((value) => el("th", { scope: "col" }, `${across.field.label}: ${value || "none"}`)));
    const rows = down.values.map((value, row) => el("tr", {},
      down.field ? el("th", { scope: "row" }, `${down.field.label}: ${value || "none"}`) : el("td", { class: "corner" }),
      ...cells.slice(row * across.values.length, (row + 1) * across.values.length).map(({ place }) => place)));
    this.table.replaceChildren(el("thead", {}, head), el("tbody", {}, ...rows));
    this.table.hidden = false;
    this.plan = { axes, cells, values: this.page.form.values(), key: this.#key(axes) };
  }

  #state() {
    const cells = this.plan?.cells ?? [];
    const made = cells.filter(({ record }) => record).length;
    this.stop.hidden = !this.running;
    this.save.hidden = made === 0 || this.running;
    this.said.textContent = cells.length ? `${made} of ${cells.length} made` : "";
    if (!this.running) announce(this.said.textContent);
    this.show();
  }

  async #save() {
    download(await gridPicture(this.plan), "grid.png");
  }
}

/** `{values: {name: text}}` of each cell, row by row. */
function cellsOf([across, down]) {
  return down.values.flatMap((second) => across.values.map((first) => ({
    values: { [across.field.name]: first, ...(down.field ? { [down.field.name]: second } : {}) },
  })));
}
