/** What is said where the model is the one that ships: what it knows, and how to get another. */

import { $, el, holdFocus } from "./dom.js";
import { local } from "./store.js";
import { phrase, placed } from "./wording.js";

const DISMISSED = "img2img.demo-dismissed";

/** Say it, and offer its words as buttons that write into the prompt. */
export function showDemo(demo, form) {
  if (!demo) return;
  const { things, colours, backgrounds, command } = demo;
  $("demo").prepend(
    el("strong", {}, "Demo model."),
    ` It draws one of ${things.length} things, in ${colours.length} colours on ${backgrounds.length} backgrounds. For real pictures: `,
    el("code", {}, command),
  );
  $("demo").hidden = local.get(DISMISSED) === true;
  $("demo-close").addEventListener("click", ({ detail }) => {
    local.set(DISMISSED, true);
    const refocus = holdFocus();
    $("demo").hidden = true;
    // By keyboard alone: at a tap a phone would open its own.
    if (detail === 0) refocus($("prompt"));
  });
  const take = (word, group) => {
    const { start, end, text } = placed(form.get("prompt"), word, group, demo);
    form.type("prompt", start, end, text);
  };
  const row = (title, words, group) => {
    const buttons = words.map((word) => el("button", { type: "button", class: "word", onclick: () => take(word, group) }, word));
    return oneStop(el("p", { role: "toolbar", "aria-label": title }, ...buttons), buttons);
  };
  $("chips").append(
    row("Colours it knows", colours, "colours"),
    row("Things it knows", things, "things"),
    row("Backgrounds it knows", backgrounds.map(phrase), "backgrounds"),
  );
  $("chips").hidden = false;
}

/** Let Tab stop at a row of buttons once; arrows, Home and End go on in it. */
function oneStop(row, buttons) {
  const stopAt = (at) => buttons.forEach((button, index) => (button.tabIndex = index === at ? 0 : -1));
  stopAt(0);
  row.addEventListener("focusin", ({ target }) => stopAt(buttons.indexOf(target)));
  row.addEventListener("keydown", (event) => {
    const at = buttons.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    buttons.at(to % buttons.length).focus();
  });
  return row;
}
