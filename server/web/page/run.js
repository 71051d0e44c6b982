/** One run: from the click to the picture in hand, a cancel or an error. */

import { keyProblem } from "./account.js";
import { duration } from "./costs.js";
import { $, announce, el, sentence, swap } from "./dom.js";
import { connection, cutOff, LOST_PATIENCE, LOST_PAUSE, settle, withdraw } from "./withdrawal.js";

const TITLE = "img2img";
const WANTS_KEY = "wants-key";

export class Runner extends EventTarget {
  /** @param client an ImageToImage @param view the ResultView @param runs the KeptRuns */
  constructor(client, view, runs) {
    super();
    this.client = client;
    this.view = view;
    this.runs = runs;
    this.aborter = null;
    this.job = null; // the latest
    this.told = null;
    window.addEventListener("beforeunload", (event) => {
      if (this.running) event.preventDefault();
    });
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && !this.running) document.title = TITLE;
    });
  }

  get running() {
    return this.aborter !== null;
  }

  /** Withdraw the run: the server is told, and nothing is waited for. */
  cancel() {
    if (!this.running) return;
    const { aborter, job } = this;
    this.runs.withdraw(job.id);
    job.cancelling = withdraw(this.client, job.id, aborter);
    this.#ended("Cancelling");
    this.view.end();
    $("form-error").replaceChildren();
    this.tell(job, "Cancelling…");
    this.dispatchEvent(new Event("cancelled"));
  }

  /** Resolve to the result of a run that was cancelled too late, else to null. Its id is kept until
   * the server has said which; rejects where it may have been finished and is not there. */
  async late(job) {
    const heard = await job.cancelling;
    if (heard === null) this.tell(job, "Cancelled here, but the server does not answer. Unless the run finishes first, it is withdrawn.");
    try {
      const { state, result } = await settle(this.client, job.id, heard ?? null);
      if (result) return { ...result, ...job, late: true };
      if (state === null) {
        this.tell(job, "The server does not say whether it was finished before it was cancelled. The next reload asks again.");
        return null;
      }
      this.runs.remove(job.id);
      // What is unknown may be another server's, which had finished it.
      this.tell(job, state === "cancelled" ? "Cancelled; nothing was charged." : "Cancelled.");
      return null;
    } catch (error) {
      this.runs.remove(job.id);
      throw error;
    }
  }

  /** Say what becomes of a run that was cancelled, unless something else is said already. */
  tell(job, text) {
    const place = $("form-error");
    const free = ["", this.told].includes(place.textContent);
    this.told = (this.job ?? job) === job ? text : `The run before: ${text}`;
    announce(this.told);
    if (free) place.textContent = this.told;
  }

  /**
   * Make the picture of `job`: `{id, fields, mask, input, size, seed, values}`, or find that of a run that
   * goes on (`found`). Resolves to the result, which is `late` if it was cancelled too late, or to
   * null where it was cancelled; rejects with what the client says.
   */
  async start(job) {
    if (this.running) this.cancel(); // Two clicks in one moment are one run, the later one.
    const aborter = new AbortController();
    this.aborter = aborter;
    this.job = job;
    swap($("generate"), $("cancel"));
    this.runs.add(job);
    this.view.begin(job.input, job.size, job.values.resize_mode);
    this.milestone = null;
    let firstStep = null;
    try {
      const result = await this.#follow(job, aborter, (event) => {
        if (event.evaluation > 0) firstStep ??= { at: performance.now(), step: event.evaluation };
        this.#progress(event, firstStep);
      });
      if (this.aborter !== aborter) return { ...result, ...job, late: true };
      this.#ended("Done", "✓");
      return { ...result, ...job };
    } catch (error) {
      if (this.aborter !== aborter) return this.late(job);
      if (isOver(job, error)) this.runs.remove(job.id); // else a reload looks for it
      this.view.end();
      this.#ended("Failed", "✕");
      throw error;
    }
  }

  /** The result of a run, which is looked for again for minutes if the connection is lost. */
  async #follow(job, aborter, onProgress) {
    const { signal } = aborter;
    const current = () => this.aborter === aborter;
    let events = job.found ? this.client.watch(job.id, { signal })
      : this.client.stream({ ...job.fields, mask: await job.mask, previews: "true" }, { signal, runId: job.id, idempotencyKey: job.id });
    let heard = performance.now();
    for (job.sent = Boolean(job.found); ; ) {
      try {
        for await (const event of events) {
          if (event.type !== "retry") {
            heard = performance.now();
            job.sent = true;
          }
          if (event.type === "result") return event;
          if (!current()) continue;
          if (event.type === "retry") this.#retry(event, aborter);
          else onProgress(event);
        }
      } catch (error) {
        if (error.status === 404 && job.sent) throw cutOff();
        if (!error.lost || !job.sent || !current() || performance.now() - heard > LOST_PATIENCE) throw error;
      }
      this.#say(null, "No connection to the server. The run is looked for as soon as it is back.", "No connection to the server");
      await connection(LOST_PAUSE, signal);
      events = this.client.watch(job.id, { signal, patience: LOST_PATIENCE / 1000 });
    }
  }

  #progress({ step, steps, evaluation, evaluations, queuePosition, preview, state, stage, seconds_left: left }, first) {
    const phase = state ?? stage;
    if (preview) this.view.preview(preview);
    if (evaluation === 0) {
      const ahead = queuePosition > 0 ? `Queued, ${queuePosition} before you` : PHASES[phase] ?? "Starting";
      this.#say(null, ahead + leftText(left), ahead);
      return;
    }
    if (evaluation >= evaluations) {
      this.#say(1, "Finishing the picture", "Finishing");
      return;
    }
    const own = first && evaluation > first.step
      ? ((performance.now() - first.at) / (evaluation - first.step) / 1000) * (evaluations - evaluation) : null;
    const share = evaluation / evaluations;
    const quarter = Math.floor(share * 4) * 25;
    this.#say(share, `Step ${step} of ${steps}${leftText(left ?? own)}`, `${quarter} percent`);
  }

  async #retry({ seconds, reason, status }, aborter) {
    const why = status === 0 ? "No connection to the server." : sentence(reason);
    for (let left = Math.ceil(seconds); left > 0 && this.aborter === aborter; left -= 1) {
      this.#say(null, `${why} Trying again in ${left} s, with the same seed; nothing is charged twice.`, why);
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }

  #say(fraction, text, milestone) {
    this.view.progress(fraction, text);
    document.title = fraction === null ? `[…] ${TITLE}` : `[${Math.round(fraction * 100)} %] ${TITLE}`;
    if (milestone !== this.milestone) announce(milestone);
    this.milestone = milestone;
  }

  #ended(text, mark = "") {
    this.aborter = null;
    swap($("cancel"), $("generate"));
    document.title = mark && document.hidden ? `${mark} ${TITLE}` : TITLE;
    announce(text);
  }
}

/** Whether there is nothing to be found any more of a run that met `error`. */
function isOver(job, error) {
  if (!job.sent) return !error.lost;
  return Boolean(error.cutOff || error.ended) || (error.status === 409 && !error.mayRetry);
}

const PHASES = { queued: "Queued", encoding: "Reading the picture", denoising: "Starting", decoding: "Finishing" };

function leftText(seconds) {
  return seconds === undefined || seconds === null ? "" : ` · about ${duration(seconds)} left`;
}

/** The time after which a server wants to be asked again, as a sentence to add. */
export function whenAgain({ retryAfter }) {
  return retryAfter > 0 ? ` The server asks to wait ${duration(retryAfter)}.` : "";
}

/** A key was accepted: that one was wanted is not so any more. */
export function forgetKeyProblem() {
  const place = $("form-error");
  if (place.querySelector(`.${WANTS_KEY}`)) place.replaceChildren();
}

/** Show an error under the form: at its fields, or with what can be done about it. */
export function showError(error, form, { hasKey, onKey, onAgain, onInput }) {
  const place = $("form-error");
  const unplaced = [];
  let first = null;
  for (const [name, problem] of Object.entries(error.fields ?? {})) {
    if (name === "init_image" || name === "mask") onInput(`${name === "mask" ? "The mask" : "The picture"} ${problem}`);
    else if (form.complain(name, problem)) first ??= name;
    else unplaced.push(`${name}: ${problem}`);
  }
  const known = Object.keys(error.fields ?? {}).length > unplaced.length;
  if (known) {
    place.replaceChildren(["Not made: see the marked fields.", ...unplaced].join(" "));
    if (first) form.focus(first);
    return;
  }
  const again = el("button", { type: "button", onclick: onAgain }, "Run again with the same seed");
  const says = sentence(error.message) + whenAgain(error);
  if (error.status === 401) {
    const reason = keyProblem(hasKey);
    place.replaceChildren(`${reason} `, el("button", { type: "button", class: WANTS_KEY, onclick: () => onKey(reason) }, "Enter an API key"));
  } else if (error.lost) {
    place.replaceChildren(`${says} Nothing is charged twice. `, again);
  } else if (error.cutOff || [429, 500, 502, 503, 504].includes(error.status)) {
    place.replaceChildren(`${says} `, again);
  } else {
    place.replaceChildren(says);
  }
}
