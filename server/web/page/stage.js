/** The large view: the input with the frame that is kept, what forms, the result beside its input. */

import { $, announce, holdFocus, note, showBlob } from "./dom.js";
import { keptBox } from "./picture.js";

const VIEWS = ["input", "result", "grid"];
const PREVIEW_PAUSE = 250;
const UNSEEN_RATIO = 1.6; // of the place of a picture that is not shown

/** Show one of the views. */
export function showView(name) {
  const refocus = holdFocus();
  for (const view of VIEWS) {
    $(`view-${view}`).hidden = view !== name;
    $(`show-${view}`).setAttribute("aria-pressed", String(view === name));
  }
  $("input-tools").hidden = name !== "input" || $("input-picture").hidden;
  $("stage-note").hidden = name !== "input";
  $("fit-note").hidden = name !== "input";
  refocus($(`show-${name}`));
}

/** Bring the stage into view where one's own click has put something there that is out of sight. */
export function seeStage() {
  const { top, bottom } = $("stage").getBoundingClientRect();
  if (bottom < 200 || top > window.innerHeight - 200) $("stage").scrollIntoView({ block: "start" });
}

export function shownView() {
  return VIEWS.find((name) => !$(`view-${name}`).hidden);
}

for (const name of VIEWS) $(`show-${name}`).addEventListener("click", () => showView(name));

/** Show the picture to start from, or the place to drop one. */
export function showInput(picture) {
  $("drop").hidden = Boolean(picture);
  $("input-picture").hidden = !picture;
  $("input-tools").hidden = !picture || shownView() !== "input";
  const image = $("input-image");
  const visible = picture && picture.width !== null;
  showBlob(image, visible ? picture.blob : null);
  image.alt = picture ? `Input: ${picture.name}` : "";
  $("easel").classList.toggle("unseen", Boolean(picture) && !visible);
  $("input-picture").style.setProperty("--ratio", visible ? picture.width / picture.height : UNSEEN_RATIO);
  if (visible) {
    image.width = picture.width;
    image.height = picture.height;
  }
  const size = visible ? ` · ${picture.width} × ${picture.height}` : "";
  $("stage-note").textContent = picture ? picture.name + size : "";
}

/** Show which part of the picture stays at this size and fit, and say so. */
export function showFrame(picture, size, fit) {
  const frame = $("frame");
  const known = picture && size && picture.width !== null;
  const box = known && keptBox(picture, size);
  const cut = box && (box.width < 0.995 || box.height < 0.995);
  frame.hidden = !cut || fit !== "crop";
  $("fit-note").textContent = cut ? `${FITS[fit] ?? fit} ${size.width} × ${size.height}` : "";
  if (frame.hidden) return;
  for (const [side, value] of Object.entries(box)) frame.style.setProperty(side, `${value * 100}%`);
}

const FITS = { crop: "cut to", stretch: "stretched to", pad: "with white edges to" };

/** The result's side of the stage. */
export class ResultView {
  constructor() {
    this.slider = $("compare");
    this.slider.addEventListener("input", () => this.#reveal());
    this.slider.addEventListener("keydown", (event) => this.#page(event));
    this.lastPreview = 0;
  }

  #page(event) {
    const by = { PageUp: 10, PageDown: -10 }[event.key];
    if (!by) return;
    event.preventDefault();
    this.slider.value = Number(this.slider.value) + by;
    this.#reveal();
  }

  #reveal() {
    const at = Number(this.slider.value);
    $("result-box").style.setProperty("--at", `${at}%`);
    this.slider.setAttribute("aria-valuetext", `${100 - at} % result`);
  }

  /** A run begins: a box of the result's ratio, with the input dimmed in it. */
  begin(input, { width, height }, fit) {
    this.token = {};
    const refocus = holdFocus();
    this.#box(input, width, height, fit);
    $("result-box").className = "waiting";
    showBlob($("after"), null);
    $("show-result").disabled = false;
    $("run-line").hidden = false;
    $("result-actions").hidden = true;
    note($("result-note"), null);
    refocus($("cancel"));
    this.progress(null, "Sending");
  }

  #box(input, width, height, fit) {
    $("result-box").parentElement.style.setProperty("--ratio", width / height);
    $("before").className = `fit-${fit || "crop"}`;
    showBlob($("before"), input && input.width !== null && input.kind !== "noise" ? input.blob : null);
    $("before").alt = input ? `Input: ${input.name}` : "";
  }

  /** Show how far a run is; `fraction` is null while nobody knows. */
  progress(fraction, text) {
    const bar = $("bar");
    bar.classList.toggle("unknown", fraction === null);
    bar.firstElementChild.style.width = `${(fraction ?? 0) * 100}%`;
    if (fraction === null) bar.removeAttribute("aria-valuenow");
    else bar.setAttribute("aria-valuenow", String(Math.round(fraction * 100)));
    bar.setAttribute("aria-valuetext", text);
    $("run-text").textContent = text;
  }

  /** Show the unfinished picture, decoded before it takes the place of the one before. */
  async preview(blob) {
    const now = performance.now();
    if (now - this.lastPreview < PREVIEW_PAUSE) return;
    this.lastPreview = now;
    const token = this.token;
    if (!(await decodes(blob)) || token !== this.token) return;
    showBlob($("after"), blob);
    $("after").alt = "The picture so far";
    $("result-box").className = "forming";
  }

  /** Show a finished picture beside its input. */
  async finish({ picture, seed, width, height, fit }, input) {
    const token = (this.token = {});
    await decodes(picture);
    if (token !== this.token) return;
    this.#box(input, width, height, fit);
    showBlob($("after"), picture);
    $("after").alt = `Result, seed ${seed}`;
    const beside = $("before").hasAttribute("src");
    $("result-box").className = beside ? "compared" : "alone";
    this.slider.disabled = !beside;
    $("run-line").hidden = true;
    $("result-actions").hidden = false;
    $("show-result").disabled = false;
    this.slider.value = 50;
    this.#reveal();
  }

  /** A run ended without a picture. */
  end() {
    this.token = {};
    $("run-line").hidden = true;
    if ($("result-box").className !== "compared") $("show-result").disabled = true;
    announce("Ended without a picture");
  }
}

async function decodes(blob) {
  const url = URL.createObjectURL(blob);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    return true;
  } catch {
    return false;
  } finally {
    URL.revokeObjectURL(url);
  }
}
