/** Values along an axis of a grid, in the syntax of A1111's X/Y/Z plot. */

import { problemOf } from "./schema.js";

const NUMBER = String.raw`([+-]?\d*\.?\d+)`;
const RANGE = new RegExp(String.raw`^${NUMBER}\s*-\s*${NUMBER}(?:\s*\(\s*${NUMBER}\s*\)|\s*\[\s*(\d+)\s*\])?$`);
const MOST = 100;

/** Texts between commas, quoted ones whole; trimmed, empty ones dropped. */
export function listed(text) {
  const parts = [...text.matchAll(/\s*(?:"((?:[^"]|"")*)"|([^,]*))\s*(?:,|$)/g)];
  return parts.map(([, quoted, plain]) => (quoted?.replaceAll('""', '"') ?? plain).trim()).filter(Boolean);
}

/** `1-5`, `1-5 (+2)`, `0.2-0.8 [4]` as numbers; one number as itself; null for neither. */
function numbers(text, whole) {
  const found = RANGE.exec(text);
  if (!found) return text !== "" && Number.isFinite(Number(text)) ? [Number(text)] : null;
  const [from, to] = [Number(found[1]), Number(found[2])];
  if (found[4] !== undefined) {
    const count = Math.min(Number(found[4]), MOST);
    const at = (index) => (count === 1 ? from : from + ((to - from) * index) / (count - 1));
    return Array.from({ length: count }, (_, index) => (whole ? Math.trunc(at(index) + 1e-9) : at(index)));
  }
  const step = found[3] === undefined ? (to < from ? -1 : 1) : Number(found[3]);
  if (step === 0 || step > 0 !== to > from) return from === to ? [from] : null;
  const count = Math.floor((to - from) / step + 1e-9) + 1;
  return Array.from({ length: Math.min(count, MOST + 1) }, (_, index) => from + index * step);
}

/** `{values}` as texts for `field`, each once, or `{problem}`. */
export function axisValues(field, text) {
  const values = [];
  for (const part of listed(text)) {
    if (field.kind === "choice") {
      const choice = ["", ...field.choices].find((name) => (name || "none").toLowerCase() === part.toLowerCase());
      if (choice === undefined) return { problem: `${part} is none of ${field.choices.join(", ")}` };
      values.push(choice);
      continue;
    }
    const found = numbers(part, field.kind === "integer");
    if (!found) return { problem: `${part} is neither a number nor a range` };
    for (const number of found) {
      const value = String(Number(number.toFixed(4)));
      // -1 and 0 are seeds to be drawn: each once, for all cells.
      const problem = field.name === "seed" && ["-1", "0"].includes(value) ? null : problemOf(field, value);
      if (problem) return { problem };
      values.push(value);
    }
  }
  const unique = [...new Set(values)];
  if (!unique.length) return { problem: "has no values" };
  if (unique.length > MOST) return { problem: `has over ${MOST} values` };
  return { values: unique };
}

/** What to write for a field, as an example and as a first value. */
export function exampleOf(field) {
  if (field.kind === "choice") return field.choices.slice(0, 3).join(", ");
  return { image_strength: "0.2-0.8 [4]", cfg_scale: "3-11 (+4)", steps: "10-30 (+10)", seed: "1-4" }[field.name]
    ?? `${field.minimum}-${field.maximum} [3]`;
}
