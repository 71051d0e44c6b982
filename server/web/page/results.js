/** The strip of results, kept over reloads. */

import { $, el, note } from "./dom.js";

export class Results {
  /** @param pictures the store @param onOpen called with the record that is chosen */
  constructor(pictures, onOpen) {
    this.pictures = pictures;
    this.onOpen = onOpen;
    this.records = new Map();
    this.current = null;
    $("clear-results").addEventListener("click", () => this.clear());
  }

  async load() {
    for (const record of await this.pictures.results()) this.#show(record);
    this.#count();
    return this;
  }

  get latest() {
    return [...this.records.values()].at(-1) ?? null;
  }

  async add(record, input, current = true) {
    this.#show(record);
    if (current) this.mark(record.id);
    const dropped = await this.pictures.addResult(record, input);
    for (const id of dropped) this.#remove(id);
    if (dropped.length) {
      note($("storage-note"), `Storage is full: the oldest ${dropped.length === 1 ? "result was" : `${dropped.length} results were`} dropped.`);
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
      el("button", { type: "button", class: "delete", "aria-label": `Delete result: ${title}`, title: "Delete", onclick: () => this.delete(record.id) }, "×"),
    );
    item.dataset.url = url;
    this.records.set(record.id, record);
    $("strip").prepend(item);
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
    $("strip-section").hidden = this.records.size === 0;
    $("strip-title").textContent = `Results (${this.records.size})`;
  }

  /** Mark the result that is shown. */
  mark(id) {
    this.current = id;
    for (const item of $("strip").children) item.classList.toggle("current", item.id === `result-${id}`);
  }

  async delete(id) {
    this.#remove(id);
    this.#count();
    await this.pictures.deleteResult(id);
  }

  async clear() {
    if (!window.confirm(`Delete all ${this.records.size} results?`)) return;
    for (const id of [...this.records.keys()]) this.#remove(id);
    this.#count();
    await this.pictures.clearResults();
  }
}
