/** What outlives a reload. The form is kept by tab and for the next visit, pictures in IndexedDB,
 * the key in this tab alone. Where a browser keeps nothing, all goes on in memory and says so. */

/** A storage of JSON values that never throws. */
class Kept {
  constructor(storageOf) {
    this.memory = new Map();
    try {
      this.storage = storageOf();
    } catch {
      this.storage = null;
    }
  }

  get(key) {
    try {
      const text = this.storage?.getItem(key) ?? this.memory.get(key) ?? null;
      return text === null ? null : JSON.parse(text);
    } catch {
      return null;
    }
  }

  set(key, value) {
    const text = JSON.stringify(value);
    this.memory.set(key, text);
    try {
      this.storage?.setItem(key, text);
    } catch {
      // Full or forbidden: the memory has it.
    }
  }

  remove(key) {
    this.memory.delete(key);
    try {
      this.storage?.removeItem(key);
    } catch {
      // As above.
    }
  }
}

export const local = new Kept(() => window.localStorage);
export const tab = new Kept(() => window.sessionStorage);

const DATABASE = "img2img";
const DRAFTS = "drafts";
const RESULTS = "results";
const INPUTS = "inputs"; // of results: several have the same one
const MOST_DRAFTS = 6;
export const MOST_RESULTS = 100;

/** Whether a write failed for want of room; what fails otherwise is not mended by dropping results. */
const isFull = (error) => ["QuotaExceededError", "AbortError"].includes(error?.name);

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** Those of the inputs' ids that none of the results has. */
function unwanted(ids, results) {
  const wanted = new Set([...results].map(({ input }) => input));
  return [...ids].filter((id) => !wanted.has(id));
}

/** Pictures, by IndexedDB. `onTrouble(text)` is told once what is not kept. */
export class Pictures {
  constructor(onTrouble) {
    this.onTrouble = onTrouble;
    this.database = null;
    this.forgets = false;
    this.memory = { [DRAFTS]: new Map(), [RESULTS]: new Map(), [INPUTS]: new Map() };
  }

  async open() {
    try {
      const request = indexedDB.open(DATABASE, 1);
      request.onupgradeneeded = () => {
        for (const store of [DRAFTS, RESULTS, INPUTS]) {
          request.result.createObjectStore(store, { keyPath: "id" });
        }
      };
      const database = (this.database = await done(request));
      database.onversionchange = () => database.close();
    } catch {
      this.#lost();
    }
    return this;
  }

  #lost() {
    if (!this.forgets) this.onTrouble("This browser keeps no pictures: a reload will lose them.");
    this.forgets = true;
    this.database = null;
  }

  /** A transaction; browsers close a database behind a page that sleeps, so it is opened anew. */
  async #transaction(store, mode) {
    try {
      return this.database.transaction(store, mode);
    } catch {
      await this.open();
      return this.database.transaction(store, mode);
    }
  }

  async #all(store) {
    if (!this.database) return [...this.memory[store].values()];
    return done((await this.#transaction(store, "readonly")).objectStore(store).getAll());
  }

  async #write(stores, change) {
    const transaction = await this.#transaction(stores, "readwrite");
    const ended = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error ?? new DOMException("", "AbortError"));
    });
    change(...stores.map((store) => transaction.objectStore(store)));
    await ended;
  }

  async #put(store, record) {
    if (!this.database) {
      this.memory[store].set(record.id, record);
      return;
    }
    await this.#write([store], (records) => records.put(record));
  }

  /** Both at once, or another tab that deletes takes the input for one that nothing has. */
  async #putResult(record, input) {
    if (!this.database) {
      if (input) this.memory[INPUTS].set(input.id, input);
      this.memory[RESULTS].set(record.id, record);
      return;
    }
    await this.#write([RESULTS, INPUTS], (results, inputs) => {
      results.put(record);
      if (input) inputs.put(input);
    });
  }

  async #delete(store, id) {
    if (!this.database) this.memory[store].delete(id);
    else await this.#write([store], (records) => records.delete(id));
  }

  /** Results, oldest first. */
  async results() {
    return (await this.#all(RESULTS).catch(() => [])).sort((a, b) => a.at - b.at);
  }

  /** The input `{id, blob, name, ...}` that a result was made of, or null. */
  async input(id) {
    try {
      if (!this.database) return this.memory[INPUTS].get(id) ?? null;
      return (await done((await this.#transaction(INPUTS, "readonly")).objectStore(INPUTS).get(id))) ?? null;
    } catch {
      return null;
    }
  }

  /** Keep a result and its input; what is full loses the oldest results, never this one. Resolves to
   * the ids that were `dropped`, and whether storage is `full`. */
  async addResult(record, input) {
    const dropped = [];
    let full = false;
    const kept = await this.results();
    const drop = async () => {
      const oldest = kept.shift();
      await this.deleteResults([oldest.id]);
      dropped.push(oldest.id);
    };
    while (kept.length >= MOST_RESULTS) await drop();
    for (;;) {
      try {
        await this.#putResult(record, input);
        return { dropped, full };
      } catch (error) {
        full = isFull(error);
        if (full && kept.length) await drop();
        else this.#lost(); // It goes into the memory then.
      }
    }
  }

  /** Forget these results, and the inputs that no result has any more. Those of other tabs stay. */
  async deleteResults(ids) {
    if (!this.database) {
      const { [RESULTS]: results, [INPUTS]: inputs } = this.memory;
      for (const id of ids) results.delete(id);
      for (const id of unwanted(inputs.keys(), results.values())) inputs.delete(id);
      return;
    }
    await this.#write([RESULTS, INPUTS], (results, inputs) => {
      for (const id of ids) results.delete(id);
      const [left, kept] = [results.getAll(), inputs.getAllKeys()];
      kept.onsuccess = () => {
        for (const id of unwanted(kept.result, left.result)) inputs.delete(id);
      };
    }).catch(() => {});
  }

  /** The picture and mask of a tab, or of the latest one for a tab that is new. */
  async draft(id) {
    const drafts = await this.#all(DRAFTS).catch(() => []);
    const own = drafts.find((draft) => draft.id === id);
    return own ?? drafts.sort((a, b) => b.at - a.at)[0] ?? null;
  }

  async saveDraft(id, draft) {
    try {
      await this.#put(DRAFTS, { ...draft, id, at: Date.now() });
      const drafts = (await this.#all(DRAFTS)).sort((a, b) => b.at - a.at);
      for (const old of drafts.slice(MOST_DRAFTS)) await this.#delete(DRAFTS, old.id);
    } catch (error) {
      // The oldest result makes room; without one, memory has to do.
      const [oldest] = isFull(error) ? await this.results() : [];
      if (!oldest) {
        this.#lost();
        return;
      }
      await this.deleteResults([oldest.id]);
      this.onTrouble("Storage is full: the oldest result was dropped.");
      await this.saveDraft(id, draft);
    }
  }
}
