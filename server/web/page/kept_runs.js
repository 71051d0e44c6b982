/** The runs of this tab that go on: what is to be known to find them again after a reload. */

import { tab } from "./store.js";

const KEY = "img2img.running";

export class KeptRuns {
  /** `before` has the runs that a reload or a crash cut off: `{id, seed, values, size, cell,
   * withdrawn}`. */
  constructor(tabId) {
    this.tabId = tabId;
    // A tab that was duplicated has the other one's list, whose runs are the other one's.
    this.before = (tab.get(KEY) ?? []).filter((run) => run.tab === tabId);
    this.jobs = new Map();
  }

  /** Keep a job that is to be run; `cell` says that it is one of a grid. */
  add(job, cell = false) {
    this.jobs.set(job.id, { ...job, cell, withdrawn: false });
    this.#save();
  }

  /** A run is to end, but the server has not said yet whether it does. */
  withdraw(id) {
    const job = this.jobs.get(id);
    if (job) this.jobs.set(id, { ...job, withdrawn: true });
    this.#save();
  }

  /** A run has ended, and its picture is in hand if there is one. */
  remove(id) {
    this.jobs.delete(id);
    this.#save();
  }

  /** The pictures of the runs, which are kept with the draft. */
  get pictures() {
    return [...this.jobs.values()].map(({ id, input, maskKept }) => ({ id, input, maskKept }));
  }

  #save() {
    const runs = [...this.jobs.values()].map(({ id, seed, values, size, cell, withdrawn }) =>
      ({ id, tab: this.tabId, seed, values, size, cell, withdrawn }));
    if (runs.length) tab.set(KEY, runs);
    else tab.remove(KEY);
  }
}
