/** The seed: drawn in the page before a request goes out, so that none is ever unknown. */

import { randomSeed } from "../../client.js";
import { $, el } from "./dom.js";
import { icon } from "./icons.js";

const NAME = "seed";

/** Add the seed's control to the form; returns `take()`, the seed of a run that begins. */
export function addSeed(form) {
  const place = $("field-seed");
  const element = el("input", { id: NAME, type: "text", inputmode: "numeric", autocomplete: "off", placeholder: "random each time" });
  const dice = el("button", { type: "button", title: "Draw a seed and keep it", "aria-label": "Draw a seed and keep it" }, icon("dice"));
  const lock = el("button", { type: "button", "aria-pressed": "false" });
  let last = null;

  const show = () => {
    const locked = element.value.trim() !== "";
    lock.setAttribute("aria-pressed", String(locked));
    lock.replaceChildren(icon(locked ? "locked" : "open"));
    const says = locked ? "Seed is kept; click for a random one each time" : "Keep the last seed";
    lock.title = says;
    lock.setAttribute("aria-label", says);
  };
  const write = (value) => {
    element.value = value === "0" ? "" : value;
    show();
  };
  element.addEventListener("input", () => {
    show();
    form.changed(NAME);
  });
  dice.addEventListener("click", () => form.set(NAME, randomSeed()));
  lock.addEventListener("click", () => form.set(NAME, element.value.trim() === "" ? (last ?? randomSeed()) : ""));

  const field = form.fields.get(NAME);
  place.append(
    el("label", { for: NAME }, field.label),
    el("div", { class: "row" }, element, dice, lock),
    el("p", { class: "help", id: `${NAME}-help` }, "The same seed and settings give the same picture. A random one is shown with its result."),
  );
  form.add(NAME, { element, get: () => element.value, set: write }, place);
  return {
    take() {
      const typed = element.value.trim();
      last = typed === "" || Number(typed) === 0 ? randomSeed() : Number(typed);
      return last;
    },
  };
}
