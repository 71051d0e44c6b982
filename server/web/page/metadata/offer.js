/** Settings found in a picture: offered, never taken unasked, and undone by one click. */

import { $, el, holdFocus } from "../dom.js";
import { textsOf } from "./texts.js";
import { translated } from "./translate.js";
import { settingsIn } from "./writers.js";

/** Look into a picture and offer what is there, if it is `wanted()` still; `take(values)` sets the
 * form. Resolves to the settings, or null. */
export async function offerSettings(blob, form, take, wanted) {
  const place = $("found-settings");
  place.hidden = true;
  const settings = settingsIn(await textsOf(blob));
  if (!settings || !wanted()) return settings;
  const { values, notes } = translated(settings, form.fields);
  if (values.prompt === undefined && values.seed === undefined && values.steps === undefined) return settings;
  const { prompt, seed, ...others } = values;
  const parts = { All: values, "Prompt only": { prompt, negative_prompt: values.negative_prompt }, "All but the seed": { prompt, ...others } };
  const button = ([label, part]) => el("button", { type: "button", onclick: () => {
    take(Object.fromEntries(Object.entries(part).filter(([, value]) => value !== undefined)));
    said.textContent = label === "Prompt only" ? "Taken." : ["Taken.", ...notes].join(" ");
  } }, label);
  const shown = prompt ? `“${prompt.length > 90 ? `${prompt.slice(0, 90)}…` : prompt}”` : "";
  const dismiss = () => {
    const refocus = holdFocus();
    place.hidden = true;
    refocus($("change-picture"));
  };
  const said = el("p", { class: "help", role: "status" });
  place.replaceChildren(
    el("p", {}, `This picture has settings (${settings.writer}) ${shown}`),
    el("p", { class: "actions" }, "Use: ", ...Object.entries(parts).filter(([label]) => seed || label !== "All but the seed").map(button),
      el("button", { type: "button", class: "plain", onclick: dismiss }, "Dismiss")),
    said,
  );
  place.hidden = false;
  return settings;
}
