/** The request's fields as the server's OpenAPI document describes them: ranges and defaults are
 * written nowhere else. */

import { base } from "./dom.js";

const PATH = "/api/generate/basic/imageToImage";
/** Fields that the page has its own controls for, or sends by itself. */
const OWN = new Set(["previews"]);
const LABELS = {
  prompt: "Prompt",
  negative_prompt: "Negative prompt",
  image_strength: "Image strength",
  cfg_scale: "CFG scale",
  clip_guidance_preset: "CLIP guidance",
  sampler: "Sampler",
  seed: "Seed",
  steps: "Steps",
  style_preset: "Style",
  resize_mode: "Fit",
  width: "Width",
  height: "Height",
};

const ASIDE = " An addition to the hosted service's fields.";

/** A field: `{name, label, kind, minimum, maximum, step, choices, standard, required, help}`. */
function fieldOf(name, schema, required) {
  const kind = schema.enum ? "choice" : schema.type;
  return {
    name,
    kind,
    label: LABELS[name] ?? name.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase()),
    minimum: schema.minimum,
    maximum: schema.maximum,
    step: schema.multipleOf ?? (kind === "integer" ? 1 : schema.maximum <= 1 ? 0.01 : 0.1),
    choices: schema.enum,
    standard: schema.default === undefined ? "" : String(schema.default),
    maxLength: schema.maxLength,
    required,
    help: (schema.description ?? "").replace(ASIDE, "").replaceAll("init_image", "the picture").replace(/^Left out: /, "Automatic: "),
  };
}

/** All text fields by name, in the document's order. */
export async function readFields() {
  const response = await fetch(`${base}openapi.json`);
  const document_ = await response.json();
  const path = document_.paths[PATH];
  const schema = path.post.requestBody.content["multipart/form-data"].schema;
  const fields = new Map();
  for (const [name, property] of Object.entries(schema.properties)) {
    if (property.format === "binary" || OWN.has(name)) continue;
    fields.set(name, fieldOf(name, property, schema.required.includes(name)));
  }
  return fields;
}

/** Why a text is no value of this field, in words, or null. Blank ones count as left out. */
export function problemOf(field, text) {
  const value = text.trim();
  if (value === "") return field.required ? `${field.label} is required` : null;
  if (field.kind === "integer" || field.kind === "number") {
    const number = Number(value);
    const range = `${field.minimum} to ${field.maximum}`;
    if (!Number.isFinite(number)) return `${value} is not a number from ${range}`;
    if (field.kind === "integer" && !Number.isInteger(number)) return `${value} is not a whole number`;
    if (number < field.minimum || number > field.maximum) return `${value} is not from ${range}`;
    if (field.step > 1 && number % field.step) return `${value} is no multiple of ${field.step}`;
  }
  const { length } = [...value]; // Not in halves of pairs, as a text's own length is.
  if (field.maxLength && length > field.maxLength) {
    return `${length} characters is over ${field.maxLength}`;
  }
  return null;
}
