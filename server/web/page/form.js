/** The form: a control for each field of the API, their values as texts, errors at the control. */

import { $, el, markWrong } from "./dom.js";
import { problemOf } from "./schema.js";

const PLACES = { prompt: "field-prompt", negative_prompt: "field-negative", image_strength: "field-strength" };
/** Fields with controls of their own: sizes.js, seed.js, styles.js. */
const ELSEWHERE = new Set(["width", "height", "seed", "style_preset"]);

export class Form extends EventTarget {
  /** Build the controls of `fields`, a Map by name. */
  constructor(fields) {
    super();
    this.fields = fields;
    this.controls = new Map();
    for (const field of fields.values()) {
      if (ELSEWHERE.has(field.name)) continue;
      const place = $(PLACES[field.name] ?? "") ?? $("more-fields").appendChild(el("div", { class: "field" }));
      this.add(field.name, buildControl(field, place, () => this.changed(field.name)), place);
    }
  }

  /** Take over a control `{element, get, set}` in `place`, where its problem will be shown. */
  add(name, control, place) {
    const problem = el("p", { class: "problem", id: `${name}-problem`, hidden: true });
    place.append(problem);
    control.element.setAttribute("aria-describedby", `${name}-help ${name}-problem`);
    this.controls.set(name, { ...control, problem, place });
    control.set(this.fields.get(name)?.standard ?? "");
  }

  /** Say that a value has changed. */
  changed(name) {
    this.complain(name, null);
    this.dispatchEvent(new CustomEvent("change", { detail: name }));
  }

  get(name) {
    return this.controls.get(name)?.get() ?? "";
  }

  /** Set a value as if it had been typed. */
  set(name, value) {
    const control = this.controls.get(name);
    if (!control) return;
    control.set(String(value ?? ""));
    this.changed(name);
  }

  /** Replace a part of a text as if it had been typed: the browser's own undo brings it back. */
  type(name, start, end, text) {
    const { element } = this.controls.get(name);
    const held = document.activeElement;
    element.focus({ preventScroll: true });
    element.setSelectionRange(start, end);
    // An old command, but the only one that undo knows of.
    if (!document.execCommand("insertText", false, text)) {
      element.setRangeText(text, start, end, "end");
      this.changed(name);
    }
    // Safari gives a clicked button no focus, and a phone opens its keyboard for the field's.
    if (held && held !== document.body) held.focus({ preventScroll: true });
    else element.blur();
  }

  /** Let a field with an input of its own be changed by settings alone, or by hand too. */
  lock(name, locked) {
    for (const input of this.controls.get(name).place.querySelectorAll("input")) input.disabled = locked;
  }

  /** All values as texts by name. */
  values() {
    return Object.fromEntries([...this.controls.keys()].map((name) => [name, this.get(name)]));
  }

  /** Set values; a field that is not among them keeps its own. */
  setAll(values) {
    for (const name of this.controls.keys()) if (name in values) this.set(name, values[name]);
  }

  /** All values as the server has them by default, prompts and size left alone. */
  reset() {
    for (const [name, field] of this.fields) {
      if (!["prompt", "negative_prompt", "width", "height"].includes(name)) this.set(name, field.standard);
    }
  }

  /** What to send: only what differs from the server's own defaults. */
  request(values = this.values()) {
    const request = {};
    for (const [name, field] of this.fields) {
      const value = (values[name] ?? "").trim();
      if (value !== "" && value !== field.standard) request[name] = value;
    }
    return request;
  }

  /** Whether no control is marked. */
  get sound() {
    return [...this.controls.values()].every(({ problem }) => problem.hidden);
  }

  /** Complain about every value that the server would refuse; return whether there is none. */
  check() {
    let first = null;
    for (const [name, field] of this.fields) {
      const problem = problemOf(field, this.get(name));
      this.complain(name, problem);
      first ??= problem && name;
    }
    if (first) this.focus(first);
    return !first;
  }

  /** Show `problem` at the field's control, or none; return whether the field is known. */
  complain(name, problem) {
    const control = this.controls.get(name);
    if (!control) return false;
    control.problem.textContent = problem ?? "";
    control.problem.hidden = !problem;
    markWrong(control.element, problem);
    return true;
  }

  /** Show a field with its problem, wherever it is folded away. */
  focus(name) {
    const { element, place, problem } = this.controls.get(name);
    for (let fold = place.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    element.focus();
    problem.scrollIntoView({ block: "nearest" });
  }
}

function help(field) {
  return el("p", { class: "help", id: `${field.name}-help` }, field.help);
}

function buildControl(field, place, changed) {
  if (field.kind === "choice") return buildChoice(field, place, changed);
  if (field.kind === "boolean") return buildSwitch(field, place, changed);
  if (field.kind === "integer" || field.kind === "number") return buildNumber(field, place, changed);
  return buildText(field, place, changed);
}

function buildText(field, place, changed) {
  const rows = field.name === "prompt" ? 3 : 1;
  const element = el("textarea", { id: field.name, rows, oninput: changed, autocomplete: "off", spellcheck: "true" });
  const says = help(field);
  says.classList.add("hidden"); // The label says as much to those who see it.
  place.append(el("label", { for: field.name }, field.label), element, says);
  return { element, get: () => element.value, set: (value) => (element.value = value) };
}

function buildChoice(field, place, changed) {
  const element = el("select", { id: field.name, onchange: changed, autocomplete: "off" });
  if (field.standard === "") element.append(el("option", { value: "" }, "automatic"));
  for (const choice of field.choices) element.append(el("option", { value: choice }, choice));
  place.append(el("label", { for: field.name }, field.label), element, help(field));
  const set = (value) => {
    element.value = value;
    if (element.selectedIndex < 0) element.value = field.standard;
  };
  return { element, get: () => element.value, set };
}

function buildSwitch(field, place, changed) {
  const element = el("input", { type: "checkbox", id: field.name, onchange: changed, autocomplete: "off" });
  place.append(el("label", { class: "switch" }, element, ` ${field.label}`), help(field));
  return { element, get: () => String(element.checked), set: (value) => (element.checked = value === "true") };
}

function buildNumber(field, place, changed) {
  const { minimum: min, maximum: max, step } = field;
  const element = el("input", { type: "text", inputmode: "decimal", id: field.name, class: "number", autocomplete: "off" });
  const slider = el("input", { type: "range", min, max, step, "aria-label": `${field.label}, slider`, autocomplete: "off" });
  // Many write 0,5; in a whole number a comma may set off thousands.
  const get = () => (field.kind === "number" ? element.value.replace(/^(\s*\d*),(\d+\s*)$/, "$1.$2") : element.value);
  element.addEventListener("input", () => {
    const value = get();
    if (Number.isFinite(Number(value))) slider.value = value.trim() === "" ? field.standard : value;
    changed();
  });
  slider.addEventListener("input", () => {
    element.value = slider.value;
    changed();
  });
  const row = el("div", { class: "row" }, el("label", { for: field.name }, field.label), element);
  place.append(row, slider);
  if (field.name === "image_strength") place.append(el("p", { class: "ends", "aria-hidden": "true" }, el("span", {}, "new picture"), el("span", {}, "keep mine")));
  place.append(help(field));
  const set = (value) => {
    element.value = value;
    slider.value = value === "" ? field.standard : value;
  };
  return { element, get, set };
}
