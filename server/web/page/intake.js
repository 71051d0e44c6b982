/** Where pictures come from: the file dialog, a drop anywhere, a paste, samples, noise. */

import { $, base, el } from "./dom.js";

/** Connect all of them to the Input. */
export function intake(input) {
  const file = $("file");
  const pick = () => file.click();
  $("pick").addEventListener("click", pick);
  $("change-picture").addEventListener("click", pick);
  file.addEventListener("change", () => {
    takeFirst(input, [...file.files]);
    file.value = "";
  });
  dropping(input);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    const text = event.clipboardData?.getData("text/plain");
    const typing = event.target.closest?.("textarea, input");
    if (!files.length || (typing && text)) return;
    event.preventDefault();
    takeFirst(input, files, "pasted");
  });
  $("noise").addEventListener("click", () => fromServer(input, "blank.png", "noise"));
}

function dropping(input) {
  const files = (event) => event.dataTransfer?.types.includes("Files");
  let depth = 0;
  const mark = (by) => {
    depth = by === 0 ? 0 : Math.max(0, depth + by);
    document.body.classList.toggle("dropping", depth > 0);
  };
  window.addEventListener("dragenter", (event) => files(event) && mark(1));
  window.addEventListener("dragleave", (event) => files(event) && mark(-1));
  window.addEventListener("dragover", (event) => {
    if (!files(event)) return; // Text goes into fields as everywhere.
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  window.addEventListener("drop", (event) => {
    if (!files(event)) return;
    event.preventDefault();
    mark(0);
    takeFirst(input, [...event.dataTransfer.files]);
  });
}

async function takeFirst(input, files, kind = "file") {
  if (!files.length) return;
  const [first, ...others] = files;
  const taken = await input.take(first, first.name || "pasted.png", kind);
  if (taken && others.length) input.addNote(`Not taken: ${others.map(({ name }) => name).join(", ")}.`);
}

const shipped = (file) => fetch(`${base}static/pictures/${file}`);

/** Take a picture that the server ships; return whether it was taken. */
async function fromServer(input, file, kind) {
  const choice = input.choose();
  const response = await shipped(file).catch(() => null);
  const blob = response?.ok ? await response.blob().catch(() => null) : null;
  if (blob) return input.take(blob, file, kind, choice);
  if (choice === input.choice) input.complain(`${file} did not come: the server cannot be reached.`);
  return false;
}

/** Show the samples; without them the page is none the worse. */
export async function samples(input) {
  const list = await shipped("samples.json").then((response) => response.json()).catch(() => []);
  for (const { file, shows, prompt, width, height } of list) {
    const take = async () => {
      const taken = await fromServer(input, file, "sample");
      if (taken && input.form.get("prompt").trim() === "") input.form.set("prompt", prompt);
    };
    $("samples").append(
      el("li", {}, el("button", { type: "button", onclick: take, title: shows },
        el("img", { src: `static/pictures/${file}`, alt: shows, width, height, loading: "lazy" }))),
    );
  }
}
