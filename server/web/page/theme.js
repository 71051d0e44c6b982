/** Light, dark, or as the system has it. */

import { $ } from "./dom.js";
import { icon } from "./icons.js";
import { local } from "./store.js";

const KEY = "img2img.theme";
const NAMES = ["as the system", "light", "dark"];
const SIGNS = ["system", "light", "dark"];

/** Apply the kept choice, and let the button change it. */
export function theme() {
  let at = Math.max(0, NAMES.indexOf(local.get(KEY)));
  const show = () => {
    const name = NAMES[at];
    if (at === 0) delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    $("theme").replaceChildren(icon(SIGNS[at]));
    $("theme").title = `Colours: ${name}`;
    $("theme").setAttribute("aria-label", `Colours: ${name}`);
  };
  $("theme").addEventListener("click", () => {
    at = (at + 1) % NAMES.length;
    local.set(KEY, NAMES[at]);
    show();
  });
  show();
}
