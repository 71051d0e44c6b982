/** The API key, kept in this tab, and what it has. */

import { $, holdFocus, note, sentence } from "./dom.js";
import { tab } from "./store.js";

const KEY = "img2img.key";

/** What is wrong with the key, for someone at the page: the server's words are for programs. */
export function keyProblem(hasKey) {
  return hasKey ? "This server does not know the API key." : "This server asks for an API key.";
}

export class Account extends EventTarget {
  /** @param client an ImageToImage, whose key is set here */
  constructor(client) {
    super();
    this.client = client;
    client.key = tab.get(KEY) ?? "";
    this.credits = null;
    this.concurrency = null;
    this.needsKey = false;
    const dialog = $("key-dialog");
    $("key-button").addEventListener("click", () => this.ask());
    $("key-close").addEventListener("click", () => dialog.close());
    $("key-forget").addEventListener("click", () => this.#use(""));
    $("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#use($("key").value.trim());
    });
  }

  /** Open the dialog, with a reason if there is one. */
  ask(reason = "") {
    note($("key-said"), reason);
    $("key").value = this.client.key;
    const refocus = holdFocus(); // What it was opened by may be gone when it is closed.
    $("key-dialog").addEventListener("close", () => refocus($("generate")), { once: true });
    if (!$("key-dialog").open) $("key-dialog").showModal();
    $("key").focus();
  }

  async #use(key) {
    this.client.key = key;
    if (key) tab.set(KEY, key);
    else tab.remove(KEY);
    $("key").value = key;
    const problem = await this.refresh();
    if (this.client.key !== key) return;
    note($("key-said"), problem);
    if (!problem) $("key-dialog").close();
  }

  /** Ask what the key has; returns why that is not known, or null. */
  async refresh() {
    const { key } = this.client;
    let problem = null;
    try {
      const account = await this.client.account();
      if (this.client.key !== key) return null; // Of this one another call tells.
      this.credits = account.credits;
      this.concurrency = account.limits.concurrency;
      this.needsKey = false;
      $("key-button").textContent = account.credits
        ? `${account.credits.balance} credits`
        : this.client.key ? account.name : "API key";
    } catch (error) {
      if (this.client.key !== key) return null;
      problem = error.status === 401 ? keyProblem(Boolean(this.client.key)) : sentence(error.message);
      this.credits = null;
      this.needsKey = error.status === 401;
      $("key-button").textContent = this.needsKey ? "Key needed" : "API key";
    }
    $("key-button").classList.toggle("wanted", this.needsKey);
    this.dispatchEvent(new Event("change"));
    return problem;
  }
}
