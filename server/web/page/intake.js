/** Where pictures come from: the file dialog, a drop anywhere, a paste, samples, noise. */

import { $, el } from "./dom.js";

/** Connect all of them to the page. */
export async function intake(page) {
  const file = $("file");
  const pick = () => file.click();
  $("pick").addEventListener("click", pick);
  $("change-picture").addEventListener("click", pick);
  file.addEventListener("change", () => {
    takeFirst(page, [...file.files]);
    file.value = "";
  });
  dropping(page);
  document.addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    const text = event.clipboardData?.getData("text/plain");
    const typing = event.target.closest?.("textarea, input");
    if (!files.length || (typing && text)) return;
    event.preventDefault();
    takeFirst(page, files);
  });
  $("noise").addEventListener("click", () => fromServer(page, "blank.png", "noise", {}));
  await samples(page);
}

function dropping(page) {
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
    takeFirst(page, [...event.dataTransfer.files]);
  });
}

async function takeFirst(page, files) {
  if (!files.length) return;
  const [first, ...others] = files;
  await page.take(first, first.name || "pasted.png", "file");
  if (others.length) page.addInputNote(`Not taken: ${others.map(({ name }) => name).join(", ")}.`);
}

async function fromServer(page, file, kind, details) {
  const response = await fetch(new URL(`static/pictures/${file}`, document.baseURI));
  await page.take(await response.blob(), file, kind, details);
}

async function samples(page) {
  const response = await fetch(new URL("static/pictures/samples.json", document.baseURI));
  for (const { file, shows, prompt, width, height } of await response.json()) {
    const take = async () => {
      await fromServer(page, file, "sample", {});
      if (page.form.get("prompt").trim() === "") page.form.set("prompt", prompt);
    };
    $("samples").append(
      el("li", {}, el("button", { type: "button", onclick: take, title: shows },
        el("img", { src: `static/pictures/${file}`, alt: shows, width, height, loading: "lazy" }))),
    );
  }
}
