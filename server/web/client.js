/**
 * The server's JavaScript client: one ES module without dependencies, for browsers and Node 20+.
 *
 *   import { ImageToImage } from "http://127.0.0.1:8000/client.js";
 *   const server = new ImageToImage({ key: "..." });
 *   const { picture, seed } = await server.imageToImage(
 *     { init_image: file, prompt: "a blue house on snow" },
 *     { onProgress: ({ step, steps }) => console.log(step, steps) },
 *   );
 *
 * Fields have the names of the API. Types: client.d.ts beside this file.
 */

const PATH = "api/generate/basic/imageToImage";
const RUNS = "api/runs/";
const EVENT_STREAM = "text/event-stream";
const BUSY = new Set([409, 429, 502, 503]);

/** Why there is no picture. `fields` has the server's complaint by field name. */
export class ImageToImageError extends Error {
  constructor(message, { status = 0, retryAfter = null, lost = false, requestId = "", ended = false } = {}) {
    super(message);
    this.name = "ImageToImageError";
    this.status = status;
    this.retryAfter = retryAfter;
    this.lost = lost;
    this.requestId = requestId;
    this.ended = ended;
    this.fields = fieldsOf(message);
  }

  /** Whether the same request may succeed if it is sent again later. */
  get mayRetry() {
    if (this.status === 409) return this.retryAfter !== null;
    return this.lost || BUSY.has(this.status);
  }
}

export class ImageToImage {
  #streams = new Map(); // what ends each stream, and the run that it made

  /**
   * @param {object} [options] `url` of the server (by default the one this file came from; what
   *   follows `?` or `#`, as in a page's own address, is left out), `key`,
   *   `retries` after the first try, `maxWait` in seconds for which a Retry-After is honoured,
   *   `patience` in seconds for which a server that names one is asked again, however often,
   *   `silence` in seconds after which a stream counts as lost.
   */
  constructor({ url, key = "", retries = 3, maxWait = 120, patience = 600, silence = 30 } = {}) {
    const base = String(url ?? new URL(".", import.meta.url)).replace(/[?#].*$/s, "");
    this.url = base.endsWith("/") ? base : `${base}/`;
    this.key = key;
    this.retries = retries;
    this.maxWait = maxWait;
    this.patience = patience;
    this.silence = silence;
  }

  /** Make a picture. Resolves to `{picture, seed, filtered, ...}`; rejects with ImageToImageError. */
  async imageToImage(fields, { onProgress = () => {}, onRetry = () => {}, ...options } = {}) {
    for await (const event of this.stream(fields, options)) {
      if (event.type === "result") return event;
      if (event.type === "retry") onRetry(event);
      else onProgress(event);
    }
    throw lostConnection();
  }

  /**
   * Make a picture and yield what happens: `progress` events, `retry` before a pause, at last one
   * `result`. Aborting `signal`, or leaving the loop, cancels the request. Tries that follow have
   * the Idempotency-Key of the first, so that no picture is paid for twice.
   *
   * With a `runId` (a `newKey()`) the run outlives its connection for the server's grace time: it
   * is found again if that is lost, here and by `watch`. Aborting only ends the watching then;
   * `cancel` is what ends the run.
   */
  async *stream(fields, { signal, idempotencyKey = newKey(), runId = "" } = {}) {
    const headers = { "Idempotency-Key": idempotencyKey, ...(runId ? { "X-Run-Id": runId } : {}) };
    yield* this.#events(signal, async (both, before) => {
      // What has ended with an error is there to be found, but only a new request mends it.
      const found = runId && before && !before.ended ? await this.#find(runId, both) : null;
      if (found && aboutAnswer(found).status !== 404) return found;
      return this.#ask(PATH, { method: "POST", headers, body: formOf(fields) }, both);
    }, { runId });
  }

  /** Yield what happens to a run that was begun with this id. Where it is gone: status 404. */
  async *watch(runId, { signal, patience } = {}) {
    yield* this.#events(signal, (both) => this.#find(runId, both), { begins: false, patience });
  }

  /**
   * Withdraw a run: "cancelled" (it is not charged), "finished" (too late), or "unknown". Unless it
   * was finished, a `stream` of this client that makes it rejects with status 409.
   */
  async cancel(runId) {
    const request = { method: "DELETE", keepalive: true };
    const { state } = (await envelope(await this.#ask(RUNS + runId, request))).data;
    for (const [ending, made] of this.#streams) {
      if (made !== runId) continue;
      // A finished picture is on its way: a second cancel, told "unknown", must not lose it.
      if (state === "finished") this.#streams.delete(ending);
      else ending.abort(new ImageToImageError("The run was withdrawn", { status: 409, ended: true }));
    }
    return state;
  }

  #find(runId, signal) {
    return this.#ask(RUNS + runId, { cache: "no-store" }, signal);
  }

  /** The events of what `open(signal, error before)` resolves to, opened anew as often as helps; of
   * what it only finds, not `begins`, an end is the end. */
  async *#events(signal, open, { begins = true, runId = "", patience = this.patience } = {}) {
    const ending = new AbortController();
    if (runId) this.#streams.set(ending, runId);
    const both = signal ? AbortSignal.any([signal, ending.signal]) : ending.signal;
    let before = null;
    let failed = 0;
    let busy = 0;
    let busySince = null;
    try {
      for (;;) {
        try {
          yield* this.#read(await open(both, before), both);
          return;
        } catch (error) {
          both.throwIfAborted();
          before = error;
          const again = error instanceof ImageToImageError && error.mayRetry && (begins || !error.ended);
          // What ran until now did not wait, and is not begun without end.
          const isBusy = error.retryAfter > 0 && !error.ended;
          // Under load the server's word is for the next moment; who has asked often waits longer.
          const wait = isBusy ? Math.max(error.retryAfter, Math.min(busy, 30)) : error.retryAfter ?? 2 ** failed;
          if (!again || this.retries <= 0 || wait > this.maxWait) throw error;
          // A server that loads its model, is full, or has the key's other requests or the first try of
          // this one still running, says when to come back: that takes its time, however often it is asked.
          if (isBusy) {
            const now = performance.now() / 1000;
            busySince ??= now;
            busy += 1;
            if (now - busySince + wait > patience) throw error;
          } else {
            if (failed >= this.retries) throw error;
            failed += 1;
            busy = 0;
            busySince = null;
          }
          yield { type: "retry", seconds: wait, reason: error.message, status: error.status };
          await pause(wait, both);
        }
      }
    } finally {
      this.#streams.delete(ending);
      ending.abort();
    }
  }

  /** The key's name, credits and limits. */
  async account({ signal } = {}) {
    return (await envelope(await this.#ask("api/account", { cache: "no-store" }, signal))).data;
  }

  async #ask(path, { headers = {}, ...request }, signal = undefined) {
    checkSendable({ key: this.key, ...headers });
    const all = { Accept: `${EVENT_STREAM}, application/json;q=0.9`, ...headers };
    if (this.key) all.Authorization = this.key;
    return fetch(this.url + path, { ...request, headers: all, signal }).catch((error) => {
      throw signal?.aborted ? error : lostConnection("The server cannot be reached");
    });
  }

  async *#read(response, signal) {
    const said = aboutAnswer(response);
    if (!(response.headers.get("Content-Type") ?? "").startsWith(EVENT_STREAM)) {
      yield { ...finished(await envelope(response)), ...said };
      return;
    }
    for await (const { name, data } of serverEvents(response.body, this.silence, signal)) {
      const value = JSON.parse(data);
      if (name === "result") {
        // The response's own status was 200 when it began, and its headers knew no price.
        const { status = said.status, retry_after: retryAfter = said.retryAfter, credits } = value;
        if (value.code !== 0) throw new ImageToImageError(value.message, { ...said, status, retryAfter, ended: true });
        const paid = credits && { creditsCharged: credits.charged, creditsRemaining: credits.remaining };
        yield { ...finished(value), ...said, ...paid };
        return;
      }
      yield progress(name, value);
    }
    throw lostConnection();
  }
}

/** Make one picture with a client of its own: `imageToImage(fields, {key, onProgress, signal})`. */
export function imageToImage(fields, options = {}) {
  return new ImageToImage(options).imageToImage(fields, options);
}

/** A random seed in 1..4294967295. */
export function randomSeed() {
  const [number] = crypto.getRandomValues(new Uint32Array(1));
  return number || 1;
}

/** A new Idempotency-Key. crypto.randomUUID is missing where a page came by plain HTTP. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Events of a text/event-stream body, whatever the chunks in which it comes. */
export async function* serverEvents(body, silence = 30, signal = undefined) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let pending = [];
  let event = { name: "message", data: [] };
  try {
    for (;;) {
      const { done, value } = await readWithin(reader, silence, signal);
      if (done) return;
      const text = decoder.decode(value, { stream: true });
      if (!text.includes("\n")) {
        pending.push(text); // A picture is one line of megabytes: joined once, at its end.
        continue;
      }
      const lines = (pending.join("") + text).split("\n");
      pending = [lines.pop()];
      for (const line of lines) {
        const said = line.replace(/\r$/, "");
        if (said === "") {
          if (event.data.length) yield { name: event.name, data: event.data.join("\n") };
          event = { name: "message", data: [] };
        } else if (said.startsWith("event:")) event.name = said.slice(6).trim();
        else if (said.startsWith("data:")) event.data.push(said.slice(5).replace(/^ /, ""));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function readWithin(reader, seconds, signal) {
  let timer;
  const silent = new Promise((_, reject) => {
    timer = setTimeout(() => reject(lostConnection()), seconds * 1000);
  });
  try {
    return await Promise.race([reader.read(), silent]);
  } catch (error) {
    signal?.throwIfAborted();
    throw error instanceof ImageToImageError ? error : lostConnection();
  } finally {
    clearTimeout(timer);
  }
}

/** A header takes Latin-1 alone: fetch fails by any other as by a connection that is lost. */
function checkSendable(values) {
  for (const [name, value] of Object.entries(values)) {
    const odd = /[^\t\x20-\x7e\x80-\xff]/u.exec(value)?.[0].codePointAt(0).toString(16).toUpperCase();
    if (odd) throw new ImageToImageError(`${name}: its character U+${odd.padStart(4, "0")} cannot be sent`);
  }
}

function lostConnection(message = "The connection was lost before the picture came") {
  return new ImageToImageError(message, { lost: true });
}

async function envelope(response) {
  const said = aboutAnswer(response);
  const text = await response.text().catch(() => {
    throw lostConnection();
  });
  let answer;
  try {
    answer = JSON.parse(text);
  } catch {
    const status = response.status;
    throw new ImageToImageError(`The answer is none of this server's: HTTP ${status}`, said);
  }
  if (answer.code !== 0) throw new ImageToImageError(String(answer.message), said);
  return answer;
}

function aboutAnswer(response) {
  const { headers } = response;
  return {
    // A server may be set to answer failures with 200, for clients that read `code` alone.
    status: Number(headers.get("X-Status") ?? response.status),
    retryAfter: secondsOf(headers.get("Retry-After") ?? ""),
    requestId: headers.get("X-Request-ID") ?? "",
    model: decoded(headers.get("X-Model") ?? ""),
    ignored: (headers.get("X-Ignored-Fields") ?? "").split(", ").filter(Boolean).map(decoded),
    replayed: headers.get("Idempotency-Replayed") === "true",
    creditsCharged: headers.get("X-Credits-Charged"),
    creditsRemaining: headers.get("X-Credits-Remaining"),
  };
}

/** A percent-encoded text of a header. Not by decodeURIComponent, which throws where one is cut. */
function decoded(text) {
  const bytes = text.replace(/%([0-9A-F]{2})/gi, (_, hex) => String.fromCharCode(Number.parseInt(hex, 16)));
  return new TextDecoder().decode(Uint8Array.from(bytes, (letter) => letter.charCodeAt(0)));
}

/** The seconds of a Retry-After, which may be a date in any of HTTP's three forms too, or null. */
function secondsOf(header) {
  const asctime = /^[A-Z][a-z]{2} [A-Z]/.test(header);
  const date = asctime ? `${header} GMT` : / GMT$/.test(header) ? header : null;
  const seconds = date === null ? Number.parseFloat(header) : (Date.parse(date) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.max(seconds, 0) : null;
}

function finished({ data }) {
  const picture = blobOf(data.image, "image/png");
  return { type: "result", picture, seed: data.seed, filtered: data.filtered === true };
}

function progress(name, { queue_position: queuePosition, preview, ...rest }) {
  const event = { ...rest, type: name, queuePosition: queuePosition ?? 0 };
  if (preview) event.preview = blobOf(preview, "image/png");
  return event;
}

function blobOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0))], { type });
}

function formOf(fields) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) {
    if (value === null || value === undefined || value === "") continue;
    if (value instanceof Blob) form.append(name, value, value.name || `${name}.png`);
    else if (ArrayBuffer.isView(value) || value instanceof ArrayBuffer) {
      form.append(name, new Blob([value]), `${name}.png`);
    } else form.append(name, String(value));
  }
  return form;
}

/** `{steps: "5 is not in 10..50"}` of `steps: 5 is not in 10..50; ...`. */
function fieldsOf(message) {
  const fields = {};
  for (const part of message.split(/; (?=[a-z_]+(?:, [a-z_]+)*: )/)) {
    const found = /^([a-z_]+(?:, [a-z_]+)*): (.*)$/s.exec(part);
    if (found) for (const name of found[1].split(", ")) fields[name] = found[2];
  }
  return fields;
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    signal.throwIfAborted();
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, seconds * 1000);
    signal.addEventListener("abort", stop, { once: true });
  });
}
