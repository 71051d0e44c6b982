/** What is said where the model is the one that ships: what it knows, and how to get another. */

import { $, el } from "./dom.js";

/** Say it, and offer its words as chips that write into the prompt. */
export function showDemo(demo, form) {
  if (!demo) return;
  const { things, colours, backgrounds, command } = demo;
  $("demo").replaceChildren(
    el("strong", {}, "Demo model."),
    ` It knows ${things.length} things, ${colours.length} colours and ${backgrounds.length} backgrounds, nothing else. For real pictures: `,
    el("code", {}, command),
  );
  $("demo").hidden = false;
  const chip = (word, group) => el("button", { type: "button", class: "word", onclick: () => take(word, group) }, word);
  const row = (title, words, group) =>
    el("p", { role: "group", "aria-label": title }, ...words.map((word) => chip(word, group)));
  const groups = { colours, things, backgrounds: backgrounds.map(phrase) };
  $("chips").append(
    row("Colours it knows", colours, groups.colours),
    row("Things it knows", things, groups.things),
    row("Backgrounds it knows", groups.backgrounds, groups.backgrounds),
  );
  $("chips").hidden = false;

  /** Put a word in the place of one of its group, or at the place it has in "a red house on grass". */
  function take(word, group) {
    const prompt = form.get("prompt").trim();
    if (group !== groups.backgrounds) form.set("prompt", placed(prompt, word, group, groups));
    else {
      const there = backgrounds.map(place).find((one) => one.test(prompt));
      form.set("prompt", there ? prompt.replace(there, word) : `${prompt} ${word}`.trim());
    }
  }
}

/** A background as prompts say it, in the words that the model was taught by. */
function phrase(background) {
  const phrases = {
    sky: "in the sky", night: "at night", grass: "on the grass", desert: "in the desert",
    ocean: "on the ocean", snow: "on snow", sunset: "at sunset", plain: "on a plain background",
  };
  return phrases[background] ?? `on ${background}`;
}

const place = (background) => new RegExp(`\\b(?:on|in|at)(?: (?:a|an|the))? ${background}(?: background)?\\b`);

function placed(prompt, word, group, groups) {
  const own = group.find((other) => new RegExp(`\\b${other}\\b`).test(prompt));
  if (own) return prompt.replace(new RegExp(`\\b${own}\\b`), word);
  const article = /^[aeiou]/.test(word) ? "an" : "a";
  if (group === groups.colours) {
    const thing = groups.things.find((other) => new RegExp(`\\b${other}\\b`).test(prompt));
    if (!thing) return `${article} ${word} ${prompt}`.trim();
    return prompt.replace(new RegExp(`(?:\\b(?:a|an) )?\\b${thing}\\b`), `${article} ${word} ${thing}`);
  }
  const colour = groups.colours.find((other) => new RegExp(`\\b${other}\\b`).test(prompt));
  if (colour) return prompt.replace(new RegExp(`\\b${colour}\\b`), `${colour} ${word}`);
  return `${article} ${word} ${prompt}`.trim();
}
