/** The strip of results, kept over reloads. */

import { $, comes, el, holdFocus, meant, note } from "./dom.js";
import { MOST_RESULTS } from "./store.js";

export class Results {
  /** @param pictures the store @param onOpen called with the record that is chosen */
  constructor(pictures, onOpen) {
    this.pictures = pictures;
    this.onOpen = onOpen;
    this.records = new Map();
    this.current = null;
    this.gone = [];
    $("clear-results").addEventListener("click", () => this.clear());
    $("undo-delete").addEventListener("click", () => this.undo());
  }

  async load() {
    for (const record of await this.pictures.results()) this.#show(record);
    this.#count();
    return this;
  }

  get latest() {
    return [...this.records.values()].sort((a, b) => a.at - b.at).at(-1) ?? null;
  }

  async add(record, input, current = true) {
    this.#show(record);
    if (current) this.mark(record.id);
    const { dropped, full } = await this.pictures.addResult(record, input);
    for (const id of dropped) this.#remove(id);
    if (dropped.length) {
      const oldest = `the oldest ${dropped.length === 1 ? "result was" : `${dropped.length} results were`} dropped.`;
      note($("storage-note"), full ? `Storage is full: ${oldest}` : `${MOST_RESULTS} results are kept: ${oldest}`);
    }
    this.#count();
  }

  #show(record) {
    const url = URL.createObjectURL(record.thumbnail);
    const title = `${record.values.prompt} · seed ${record.seed}`;
    const item = el(
      "li",
      { id: `result-${record.id}` },
      el("button", { type: "button", title, "aria-label": `Show result: ${title}`, onclick: () => this.onOpen(record) },
        el("img", { src: url, alt: "", loading: "lazy" })),
      el("button", { type: "button", class: "delete", "aria-label": `Delete result: ${title}`, title: "Delete", onclick: (event) => meant(event) && this.delete(record.id) }, "×"),
    );
    item.dataset.url = url;
    item.dataset.at = record.at;
    this.records.set(record.id, record);
    const older = [...$("strip").children].find(({ dataset }) => Number(dataset.at) <= record.at);
    $("strip").insertBefore(item, older ?? null);
  }

  #remove(id) {
    const item = $(`result-${id}`);
    if (item) {
      URL.revokeObjectURL(item.dataset.url);
      item.remove();
    }
    this.records.delete(id);
  }

  #count() {
    $("strip-section").hidden = this.records.size === 0 && this.gone.length === 0;
    $("strip-title").textContent = `Results (${this.records.size})`;
    $("clear-results").hidden = this.records.size === 0;
    $("undo-delete").hidden = this.gone.length === 0;
  }

  /** Mark the result that is shown. */
  mark(id) {
    this.current = id;
    for (const item of $("strip").children) item.classList.toggle("current", item.id === `result-${id}`);
  }

  /** Delete a result; the last deletion can be undone. */
  async delete(id) {
    await this.#take([this.records.get(id)]);
  }

  async clear() {
    if (!window.confirm(`Delete all ${this.records.size} results?`)) return;
    await this.#take([...this.records.values()]);
  }

  async #take(records) {
    const inputs = new Map();
    for (const { input } of records) if (!inputs.has(input)) inputs.set(input, await this.pictures.input(input));
    this.gone = records.map((record) => ({ record, input: inputs.get(record.input) }));
    const refocus = holdFocus();
    const { nextElementSibling: next, previousElementSibling: previous } = $(`result-${records[0].id}`) ?? {};
    for (const { id } of records) this.#remove(id);
    for (const button of $("strip").querySelectorAll(".delete")) comes(button);
    this.#count();
    refocus((next ?? previous)?.querySelector(".delete"), $("undo-delete"));
    await this.pictures.deleteResults(records.map(({ id }) => id));
  }

  /** Bring back what was deleted last. */
  async undo() {
    const back = this.gone;
    const refocus = holdFocus();
    this.gone = [];
    for (const { record, input } of back) await this.add(record, input, false);
    this.mark(this.current);
    refocus($(`result-${back[0]?.record.id}`)?.querySelector("button"));
  }
}
