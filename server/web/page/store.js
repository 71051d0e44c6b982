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

  async #write(store, change) {
    const transaction = await this.#transaction(store, "readwrite");
    const ended = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error ?? new DOMException("", "AbortError"));
    });
    change(transaction.objectStore(store));
    await ended;
  }

  async #put(store, record) {
    if (!this.database) {
      this.memory[store].set(record.id, record);
      return;
    }
    await this.#write(store, (records) => records.put(record));
  }

  async #delete(store, id) {
    if (!this.database) this.memory[store].delete(id);
    else await this.#write(store, (records) => records.delete(id));
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
      await this.deleteResult(oldest.id);
      dropped.push(oldest.id);
    };
    while (kept.length >= MOST_RESULTS) await drop();
    for (;;) {
      try {
        if (input) await this.#put(INPUTS, input);
        await this.#put(RESULTS, record);
        return { dropped, full };
      } catch (error) {
        full = isFull(error);
        if (full && kept.length) await drop();
        else this.#lost(); // It goes into the memory then.
      }
    }
  }

  /** Forget a result, and its input if no other result has it. */
  async deleteResult(id) {
    await this.#delete(RESULTS, id).catch(() => {});
    const wanted = new Set((await this.results()).map(({ input }) => input));
    for (const input of await this.#all(INPUTS).catch(() => [])) {
      if (!wanted.has(input.id)) await this.#delete(INPUTS, input.id).catch(() => {});
    }
  }

  async clearResults() {
    for (const store of [RESULTS, INPUTS]) {
      this.memory[store].clear();
      if (this.database) await this.#write(store, (records) => records.clear()).catch(() => {});
    }
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
      await this.deleteResult(oldest.id);
      this.onTrouble("Storage is full: the oldest result was dropped.");
      await this.saveDraft(id, draft);
    }
  }
}
