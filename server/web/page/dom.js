/** Small helpers for the document. */

/** The server's address, under which all that it has is found: that of the page may say more (`?...`, `#...`). */
export const base = new URL(".", document.baseURI).href;

/** The element with this id. */
export const $ = (id) => document.getElementById(id);

/** A new element: attributes by name, `on...` as listeners, texts and elements inside. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Show `text` in an element that is hidden while it has none. */
export function note(element, text) {
  element.textContent = text ?? "";
  element.hidden = !text;
}

/** Mark a control whose value is `wrong`, for the eye and for screen readers. */
export function markWrong(control, wrong) {
  if (wrong) control.setAttribute("aria-invalid", "true");
  else control.removeAttribute("aria-invalid");
}

/** A text as a sentence, with its capital and its stop. */
export function sentence(text) {
  const whole = text.trim().replace(/^\p{Ll}/u, (first) => first.toUpperCase());
  return /[.!?…]$/.test(whole) ? whole : `${whole}.`;
}

/** Tell a screen reader, politely. */
export function announce(text) {
  $("status").textContent = text;
}

/** Call before what has the focus may hide, go or be disabled; the function that comes back is called
 * after it, with the elements that take the focus over then: the first one that is there to be used. */
export function holdFocus() {
  const held = document.activeElement;
  const usable = (element) => element?.checkVisibility() && !element.disabled;
  return (...next) => {
    const now = document.activeElement;
    const elsewhere = now !== held && now !== document.body && usable(now);
    if (held === document.body || elsewhere || usable(held)) return;
    next.find(usable)?.focus();
  };
}

const SWAP_PAUSE = 400;
const swapped = new WeakMap();

/** Note that a button comes now to where another one was. */
export function comes(button) {
  swapped.set(button, performance.now());
}

/** Show a button in the place of another one. */
export function swap(gone, shown) {
  if (shown.hidden) comes(shown);
  const refocus = holdFocus();
  gone.hidden = true;
  shown.hidden = false;
  refocus(shown);
}

/** Whether a click is meant for its button: a hand that was on its way to the one that was in its
 * place, or clicks twice, means that one. Keys are always meant. */
export function meant({ detail, currentTarget }) {
  return detail === 0 || !(performance.now() - swapped.get(currentTarget) < SWAP_PAUSE);
}

/** Call `work` a while after the last of many calls; `.now()` does it at once if one waits. */
export function delayed(work, milliseconds) {
  let timer = null;
  const later = () => {
    clearTimeout(timer);
    timer = setTimeout(later.now, milliseconds, true);
  };
  later.now = () => {
    if (timer === null) return;
    clearTimeout(timer);
    timer = null;
    work();
  };
  return later;
}

const shown = new WeakMap();

/** Show a blob in an image; the URL of the one before it is given back. */
export function showBlob(image, blob) {
  const before = shown.get(image);
  if (before?.blob === blob && blob) return;
  if (before) URL.revokeObjectURL(before.url);
  if (!blob) {
    shown.delete(image);
    image.removeAttribute("src");
    return;
  }
  const url = URL.createObjectURL(blob);
  shown.set(image, { blob, url });
  image.src = url;
}

/** Save a blob as a file. */
export function download(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = el("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 30_000);
}

/** Copy a text; where a page by plain HTTP may not, show it selected. */
export async function copyText(text, title = "Copy") {
  try {
    await navigator.clipboard.writeText(text);
    announce("Copied");
    return true;
  } catch {
    const dialog = $("text-dialog");
    $("text-title").textContent = `${title}: press Ctrl+C`;
    $("text-shown").value = text;
    $("text-close").onclick = () => dialog.close();
    dialog.showModal();
    $("text-shown").select();
    return false;
  }
}
