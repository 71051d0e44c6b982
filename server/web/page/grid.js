/** The grid: pictures that differ in one or two settings, made together, kept one by one. */

import { randomSeed } from "../../client.js";
import { keyProblem } from "./account.js";
import { axisValues, exampleOf } from "./axis.js";
import { $, announce, download, el, markWrong, meant, swap } from "./dom.js";
import { gridPicture } from "./grid_picture.js";
import { isNoise } from "./picture.js";
import { whenAgain } from "./run.js";
import { settle, withdraw } from "./withdrawal.js";

const AT_ONCE = 4; // A browser opens six connections to a server; the server batches what it gets.
const FIRST = ["image_strength", "cfg_scale", "steps", "sampler", "style_preset", "seed"];

export class Grid {
  /** @param page what has the form, the picture, the client and the results */
  constructor(page) {
    this.page = page;
    this.plan = null;
    this.round = null; // one per click, until all is made or it is cancelled
    this.axes = [this.#axis("x", "Across", "image_strength"), this.#axis("y", "Down", "")];
    this.cost = el("p", { class: "quiet", id: "grid-cost" });
    this.go = el("button", { type: "button", id: "grid-go", class: "primary", onclick: (event) => meant(event) && this.run() });
    this.stop = el("button", { type: "button", id: "grid-stop", hidden: true, onclick: (event) => meant(event) && this.cancel() }, "Cancel");
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
    return this.round !== null;
  }

  #axis(id, label, standard) {
    const fields = [...this.page.form.fields.values()].filter(({ name, kind }) =>
      ["integer", "number", "choice"].includes(kind) && !["width", "height"].includes(name));
    fields.sort((a, b) => (FIRST.indexOf(a.name) + 99) % 99 - (FIRST.indexOf(b.name) + 99) % 99);
    const select = el("select", { id: `grid-${id}`, autocomplete: "off", "aria-describedby": `grid-${id}-problem`, onchange: () => this.#choose(axis, select.value) },
      id === "y" ? el("option", { value: "" }, "nothing") : null,
      ...fields.map((field) => el("option", { value: field.name }, field.label)));
    const input = el("input", { id: `grid-${id}-values`, autocomplete: "off", "aria-label": `Values ${label.toLowerCase()}`, "aria-describedby": `grid-${id}-problem`, oninput: () => this.#changed() });
    const problem = el("p", { class: "problem", id: `grid-${id}-problem` });
    const axis = { select, input, problem, place: el("div", { class: "field" }, el("label", { for: select.id }, label), el("div", { class: "row" }, select, input), problem) };
    this.#pick(axis, standard);
    return axis;
  }

  /** Have an axis vary a field by these values, at first by an example. */
  #pick({ select, input }, name, values = null) {
    select.value = name;
    const field = this.page.form.fields.get(name);
    input.value = values ?? (field ? exampleOf(field) : "");
    input.hidden = !field;
  }

  #choose(axis, name) {
    this.#pick(axis, name);
    this.#changed();
  }

  #changed() {
    this.show();
    this.page.draft.saveForm();
  }

  /** What the axes are, for `restore` after a reload. */
  get kept() {
    return this.axes.map(({ select, input }) => [select.value, input.value]);
  }

  restore(kept) {
    for (const [index, [name, values]] of kept.entries()) {
      const axis = this.axes[index];
      if ([...axis.select.options].some(({ value }) => value === name)) this.#pick(axis, name, values);
    }
    this.show();
  }

  /** From noise there is nothing to vary the strength of: no axis has it then. */
  #followInput() {
    const noise = isNoise(this.page.input.picture);
    for (const axis of this.axes) {
      const { options } = axis.select;
      const strength = [...options].find(({ value }) => value === "image_strength");
      strength.disabled = noise;
      const taken = this.axes.map(({ select }) => select.value);
      if (noise && strength.selected) this.#pick(axis, [...options].find(({ disabled, value }) => !disabled && !taken.includes(value)).value);
    }
  }

  /** What the axes say: `{axes: [{field, values}]}`, or null with the problem shown. */
  #read() {
    const axes = [];
    let sound = true;
    for (const { select, input, problem } of this.axes) {
      const field = this.page.form.fields.get(select.value);
      const found = field ? axisValues(field, input.value) : { values: [""] };
      problem.textContent = found.problem ? `${found.problem}.` : "";
      markWrong(input, found.problem);
      markWrong(select, false);
      sound &&= !found.problem;
      axes.push({ field, values: found.values });
    }
    if (sound && axes[0].field === axes[1].field) {
      this.axes[1].problem.textContent = "Both axes vary the same.";
      markWrong(this.axes[1].select, true);
      sound = false;
    }
    return sound ? axes : null;
  }

  /** Show what a click would make and cost. */
  show() {
    this.#followInput();
    const axes = this.#read();
    this.go.disabled = !axes;
    if (!axes) {
      this.go.textContent = "Make pictures";
      this.cost.textContent = "";
      return;
    }
    const cells = cellsOf(axes);
    const missing = this.#sameAs(axes) ? this.plan.cells.filter(({ record }) => !record).length : 0;
    const some = missing > 0 && missing < cells.length;
    this.go.textContent = some ? `Make the missing ${missing}` : `Make ${cells.length} picture${cells.length === 1 ? "" : "s"}`;
    const wanted = some || this.running ? this.plan.cells.filter(({ record }) => !record) : cells;
    const common = this.running ? this.plan.values : this.page.form.values();
    const { costs, sizes } = this.page;
    const all = wanted.map(({ values }) => ({ ...common, ...values }));
    const cost = costs.of(all, sizes.size);
    // What runs may be set aside already of what the key has.
    if (this.running) this.cost.textContent = cost && `${cost} left`;
    else this.cost.textContent = [cost, costs.beyond(all, sizes.size)].filter(Boolean).join(" · ");
  }

  #sameAs(axes) {
    return this.plan && this.plan.key === this.#key(axes);
  }

  #key(axes) {
    return JSON.stringify([axes.map(({ field, values }) => [field?.name, values]), this.page.form.values(), this.page.input.picture?.id, this.page.input.masks.version]);
  }

  /** Make all cells, or those that are missing of the same grid. */
  async run() {
    const axes = this.#read();
    if (!axes || this.running || !this.page.making.ready()) return;
    if (!this.#sameAs(axes) || this.plan.cells.every(({ record }) => record)) this.#draw(axes);
    const round = (this.round = {});
    this.#state();
    // All cells start from the same, whatever is done to the input meanwhile.
    const from = this.page.making.start();
    const waiting = this.plan.cells.filter(({ record }) => !record);
    for (const { looking } of waiting) looking?.abort(); // It is asked for again.
    const limit = this.page.account.concurrency ?? AT_ONCE;
    const work = async () => {
      for (let cell = waiting.shift(); cell; cell = waiting.shift()) {
        await cell.making; // What was cancelled may turn out to be finished.
        if (this.round !== round) return;
        if (!cell.record) await (cell.making = this.#make(cell, from, round));
      }
    };
    await Promise.all(Array.from({ length: Math.min(AT_ONCE, limit) }, work));
    if (this.round === round) this.round = null;
    this.#state();
    this.page.account.refresh();
    this.page.renew();
  }

  cancel() {
    this.round = null;
    for (const cell of this.plan.cells) {
      const { aborter, job, record, place } = cell;
      if (aborter && !cell.looking) {
        this.page.runs.withdraw(job.id);
        cell.looking = new AbortController();
        cell.cancelling = withdraw(this.page.client, job.id, aborter);
      }
      if (!record) place.replaceChildren("–");
    }
    this.#state();
  }

  /** Find a cell's run that a reload cut off; its picture goes to the strip. */
  async find(job) {
    this.page.runs.add(job, true);
    try {
      for await (const event of this.page.client.watch(job.id)) {
        if (event.type === "result") await this.page.making.keep(job, event, false);
      }
    } catch (error) {
      // Unless it is gone or failed, the server may have it: the next reload looks for it again.
      if (error.status !== 404 && !error.ended) return;
    }
    this.page.making.letGo(job.id);
  }

  async #make(cell, from, round) {
    const { place } = cell;
    const say = (text) => place.replaceChildren(text);
    say("Waiting");
    // One that was lost may be paid for: it is asked for under the same id and Idempotency-Key.
    const again = Boolean(cell.job);
    cell.job ??= this.page.making.job(cell.seed, from, { ...this.plan.values, ...cell.values, seed: String(cell.seed) });
    const { job } = cell;
    cell.aborter = new AbortController();
    this.page.runs.add(job, true);
    const current = () => this.round === round;
    try {
      const result = await this.page.client.imageToImage({ ...job.fields, mask: await job.mask }, {
        signal: cell.aborter.signal, runId: job.id, idempotencyKey: job.id,
        onProgress: ({ step, steps, evaluation }) => current() && say(evaluation ? `${step} / ${steps}` : "Queued"),
        onRetry: ({ reason }) => current() && say(reason),
      });
      // Also one that was finished as it was cancelled: it is paid for.
      await this.#put(cell, result);
    } catch (error) {
      cell.aborter = null;
      if (cell.looking) await this.#settle(cell);
      else if (!error.mayRetry) this.#forget(cell);
      if (again && error.status === 409 && !error.mayRetry && current()) return this.#make(cell, from, round); // It was withdrawn.
      if (current()) place.replaceChildren(el("span", { class: "problem" }, error.message + whenAgain(error)));
      if (current() && error.status === 401) {
        this.cancel(); // The others would meet the same.
        this.page.account.ask(keyProblem(Boolean(this.page.client.key)));
      }
    }
    cell.aborter = cell.looking = null;
    this.#state();
  }

  /** Show the picture of a cell, and keep it. */
  async #put(cell, result) {
    cell.record = await this.page.making.keep(cell.job, result, false);
    const src = URL.createObjectURL(cell.record.thumbnail);
    const image = el("img", { alt: cell.label, src, onload: () => URL.revokeObjectURL(src) });
    cell.place.replaceChildren(el("button", { type: "button", "aria-label": `Show ${cell.label}`, onclick: () => this.page.shown.open(cell.record) }, image));
    this.page.making.letGo(cell.job.id);
  }

  /** Find out what became of a cell that was cancelled, until it is asked for again: then its id, and
   * with that its Idempotency-Key, is the same unless the server has said that it was not charged. */
  async #settle(cell) {
    try {
      const { state, result } = await settle(this.page.client, cell.job.id, await cell.cancelling, cell.looking.signal);
      if (result) await this.#put(cell, result);
      else if (state) this.#forget(cell);
    } catch (error) {
      if (!error.cutOff) throw error;
      this.page.runs.remove(cell.job.id);
    }
  }

  #forget(cell) {
    this.page.runs.remove(cell.job.id);
    cell.job = null;
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
    if (this.running) swap(this.go, this.stop);
    else swap(this.stop, this.go);
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
