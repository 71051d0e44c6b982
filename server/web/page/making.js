/** Making pictures: what is sent, what comes of it, what a reload cut off. */

import { newKey } from "../../client.js";
import { $, holdFocus } from "./dom.js";
import { isNoise, shownSize, thumbnail } from "./picture.js";
import { showError } from "./run.js";
import { seeStage, showView } from "./stage.js";

const NOT_SENT = "Not sent";
const saysNotSent = () => $("form-error").textContent.startsWith(NOT_SENT);

export class Making {
  /** @param page what has the form, the input, the seed, the runner, the runs and the results */
  constructor(page) {
    this.page = page;
    page.runner.addEventListener("cancelled", () => this.#showBefore());
    for (const part of [page.form, page.input]) part.addEventListener("change", () => this.#renewNotSent());
    $("form").addEventListener("input", () => saysNotSent() || $("form-error").replaceChildren());
  }

  /** Run what the form says, or `again` what a run that was cut off had. */
  async run(again = null) {
    const { page } = this;
    const refocus = holdFocus();
    $("form-error").replaceChildren();
    refocus($("generate"), $("cancel"));
    if (again) {
      if (again.input.blob.size > 0) page.input.restore(again.input, again.maskKept); // else it is lost
      page.form.setAll(again.values);
      page.sizes.match();
    }
    if (!this.ready()) return;
    const job = this.job(again?.seed ?? page.seed.take());
    // The same id is the same Idempotency-Key: what was paid for is not paid for again.
    if (again?.id) job.id = again.id;
    seeStage();
    const error = await this.#follow(job);
    // It was another picture or mask then.
    if (again?.id && error?.status === 409 && error.retryAfter === null) this.run({ ...again, id: null });
    else if (error) this.#failed(error, job);
  }

  /** Run a job, or watch one that goes on, and keep its picture. Resolves to what went wrong. */
  #follow(job) {
    const { page } = this;
    const running = page.runner.start(job);
    showView("result");
    page.results.mark(null);
    page.draft.save(); // with the picture and the mask of the run
    return this.#take(job, running);
  }

  /** Keep what `running` resolves to, if that is a picture. Resolves to what went wrong. */
  async #take(job, running) {
    const { page } = this;
    try {
      const result = await running;
      if (!result) return null;
      if (result.late) page.runner.tell(job, "It was finished already, and is among the results.");
      await this.keep(job, result, !job.cell);
      this.letGo(job.id);
      page.account.refresh();
      page.renew();
      return null;
    } catch (error) {
      return error;
    }
  }

  /** The picture of a run is in hand: nobody will come back for it. */
  letGo(id) {
    this.page.runs.remove(id);
    if (this.page.about.run_grace) this.page.client.cancel(id).catch(() => {});
  }

  /** Find what a reload or a crash cut off. Cells of a grid go to the strip. */
  async findAgain(pictures) {
    const { input, runs, runner, grid } = this.page;
    for (const run of runs.before) {
      const kept = pictures.find(({ id }) => id === run.id) ?? { input: input.picture, maskKept: input.masks.kept };
      const from = kept.input ?? { id: newKey(), kind: "noise", name: "the input, which is lost", blob: new Blob() };
      const job = { ...run, input: from, maskKept: kept.maskKept, found: true };
      const failed = (error) => error && !run.cell && this.#failed(error, job);
      if (run.withdrawn) {
        runs.add(job, run.cell);
        runs.withdraw(job.id);
        this.#take(job, runner.late(job)).then(failed);
      } else if (run.cell) grid.find(job);
      else this.#follow(job).then(failed);
    }
  }

  /** Whether all is there that a run needs; what is not is said at its place. */
  ready() {
    const { form, input } = this.page;
    const fits = form.check();
    if (!input.picture) {
      showView("input");
      input.complain("A picture is needed: drop one, choose one, take a sample, or start from noise.");
    }
    const ready = fits && Boolean(input.picture);
    if (!ready) $("form-error").textContent = this.#notSent();
    return ready;
  }

  /** Why nothing is sent as things are, or nothing. */
  #notSent() {
    const { form, input } = this.page;
    if (!input.picture) return `${NOT_SENT}: there is no picture to start from.`;
    return form.sound ? "" : `${NOT_SENT}: see the marked fields.`;
  }

  /** What was wrong may be right now. What still is wrong is not told to a screen reader once more. */
  #renewNotSent() {
    const says = this.#notSent();
    if (saysNotSent() && $("form-error").textContent !== says) $("form-error").textContent = says;
  }

  /** What a run starts from now, whatever is done to the input before it is sent; `mask` is promised. */
  start() {
    const { input, sizes } = this.page;
    const { picture } = input;
    const size = sizes.size ?? { width: picture.width ?? 512, height: picture.height ?? 512 };
    const mask = input.masks.file();
    // That it cannot be written is told by who awaits it, which may be later, or nobody.
    mask.catch(() => {});
    return { input: picture, maskKept: input.masks.kept, mask, size };
  }

  /** What to send for these values, beside the mask, and what is to be known of it. */
  job(seed, from = this.start(), wanted = this.page.form.values()) {
    const values = isNoise(from.input) ? { ...wanted, image_strength: "0" } : wanted;
    const fields = { ...this.page.form.request(values), seed, init_image: from.input.blob };
    return { id: newKey(), fields, values, seed, ...from };
  }

  /** Keep a result in the strip, and `show` it unless a later run has begun. */
  async keep(job, { picture, filtered, ignored }, show = true) {
    const { seed, size, values, input, maskKept } = job;
    const { results, runner, shown } = this.page;
    const shows = () => show && (runner.job ?? job) === job;
    const record = {
      id: newKey(), at: Date.now(), picture, thumbnail: await thumbnail(picture),
      seed, ...size, ...(await shownSize(picture)), values, input: input.id, maskKept, fit: values.resize_mode, filtered, ignored,
    };
    await results.add(record, input, shows());
    if (shows()) await shown.show(record, input);
    return record;
  }

  #failed(error, job) {
    const { page } = this;
    const later = page.runner.running; // Then it is of the run before, which was cancelled.
    if (page.shown.record && !later) page.shown.open(page.shown.record, false);
    else if (!later) showView("input");
    showError(error, page.form, {
      hasKey: Boolean(page.client.key),
      onKey: (reason) => page.account.ask(reason),
      onAgain: () => this.run(job),
      onInput: (problem) => {
        showView("input");
        page.input.complain(problem);
      },
    });
  }

  #showBefore() {
    const { shown } = this.page;
    if (shown.record) shown.open(shown.record, false);
    else showView("input");
  }
}
