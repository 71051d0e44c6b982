/** Style presets as thumbnails, which the server's own model made. */

import { $, el } from "./dom.js";

const NAME = "style_preset";

/** Add the style's control to the form. */
export function addStyles(form) {
  const place = $("style-choices");
  const field = form.fields.get(NAME);
  if (!field) {
    $("styles").hidden = true;
    return;
  }
  const changed = () => {
    show();
    form.changed(NAME);
  };
  const choice = (value) => {
    const input = el("input", { type: "radio", name: NAME, value, onchange: changed, autocomplete: "off" });
    const picture = value
      ? el("img", { src: `static/pictures/style-${value}.jpg`, alt: "", width: 112, height: 112, loading: "lazy" })
      : el("span", { class: "none" }, "∅");
    picture.addEventListener("error", () => picture.replaceWith(el("span", { class: "none" }, "?")));
    return el("label", {}, input, picture, el("span", {}, value || "none"));
  };
  const choices = ["", ...field.choices].map(choice);
  place.append(...choices);
  const inputs = choices.map((label) => label.querySelector("input"));
  const get = () => inputs.find((input) => input.checked)?.value ?? "";
  const show = () => ($("style-chosen").textContent = get() || "none");
  const set = (value) => {
    (inputs.find((input) => input.value === value) ?? inputs[0]).checked = true;
    show();
  };
  form.add(NAME, { element: inputs[0], get, set }, $("styles"));
}
