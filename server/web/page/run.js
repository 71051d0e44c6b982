/** One run: from the click to the picture in hand, a cancel or an error. */

import { $, announce, el } from "./dom.js";
import { duration, evaluations } from "./costs.js";
import { tab } from "./store.js";

const CUT_OFF = "img2img.running";
const TITLE = "img2img";

/** The run that a reload or a crash cut off in this tab, or null; asked for once. */
export function takeCutOff() {
  const run = tab.get(CUT_OFF);
  tab.remove(CUT_OFF);
  return run;
}

export class Runner extends EventTarget {
  /** @param client an ImageToImage @param view the ResultView @param speed a Speed */
  constructor(client, view, speed) {
    super();
    this.client = client;
    this.view = view;
    this.speed = speed;
    this.aborter = null;
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

  /** Withdraw the run; its connection ends at once, and the server drops it. */
  cancel() {
    if (!this.running) return;
    const { aborter } = this;
    this.#ended("Cancelled; nothing was charged.");
    aborter.abort();
  }

  /**
   * Make the picture of `job`: `{fields, input, size, seed, values}`. Resolves to the result, or to
   * null where it was cancelled; rejects with what the client says.
   */
  async start(job) {
    this.aborter?.abort(); // Two clicks in one moment are one run, the later one.
    const aborter = new AbortController();
    this.aborter = aborter;
    $("generate").hidden = true;
    $("cancel").hidden = false;
    tab.set(CUT_OFF, { seed: job.seed, values: job.values });
    this.view.begin(job.input, job.size, job.values.resize_mode);
    this.milestone = null;
    const began = performance.now();
    let firstStep = null;
    try {
      const result = await this.client.imageToImage(job.fields, {
        signal: aborter.signal,
        onProgress: (event) => {
          if (this.aborter !== aborter) return;
          if (event.evaluation > 0) firstStep ??= { at: performance.now(), step: event.evaluation };
          this.#progress(event, firstStep);
        },
        onRetry: (event) => this.#retry(event, aborter),
      });
      if (this.aborter !== aborter) return null;
      this.#learn(job, began, firstStep);
      this.#ended("Done", "✓");
      return { ...result, ...job };
    } catch (error) {
      if (this.aborter !== aborter) return null; // Cancelled: said already.
      this.view.end();
      this.#ended("Failed", "✕");
      throw error;
    }
  }

  #learn(job, began, firstStep) {
    // What was queued tells nothing of the speed.
    const from = firstStep ? firstStep.at : began;
    const { steps, image_strength: strength, sampler } = job.values;
    const count = evaluations(Number(steps), Number(strength), sampler);
    const counted = firstStep ? count - firstStep.step : count;
    if (counted < 1) return;
    const seconds = (performance.now() - from) / 1000;
    this.speed.learn(job.size.width * job.size.height, counted, seconds);
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
    const why = status === 0 ? "No connection to the server" : `The server says: ${reason}`;
    for (let left = Math.ceil(seconds); left > 0 && this.aborter === aborter; left -= 1) {
      this.#say(null, `${why}. Trying again in ${left} s, with the same seed; nothing is charged twice.`, why);
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
    tab.remove(CUT_OFF);
    $("generate").hidden = false;
    $("cancel").hidden = true;
    document.title = mark && document.hidden ? `${mark} ${TITLE}` : TITLE;
    announce(text);
    if (text.startsWith("Cancelled")) {
      this.view.end();
      this.dispatchEvent(new CustomEvent("cancelled", { detail: text }));
    }
  }
}

const PHASES = { queued: "Queued", encoding: "Reading the picture", denoising: "Starting", decoding: "Finishing" };

function leftText(seconds) {
  return seconds === undefined || seconds === null ? "" : ` · about ${duration(seconds)} left`;
}

/** Show an error under the form: at its fields, or with what can be done about it. */
export function showError(error, form, { onKey, onAgain, onInput }) {
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
  if (error.status === 401) {
    place.replaceChildren(`${error.message} `, el("button", { type: "button", onclick: () => onKey(error.message) }, "Enter an API key"));
  } else if (error.lost) {
    place.replaceChildren(`${error.message}; nothing is charged twice. `, again);
  } else if ([429, 500, 502, 503, 504].includes(error.status)) {
    place.replaceChildren(`${error.message} `, again);
  } else {
    place.replaceChildren(error.message);
  }
}
