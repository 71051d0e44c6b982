/** Another program's settings as values of our form, and what could not be taken, in words. */

const SAMPLERS = {
  DDIM: ["ddim", "ddim_sampler"],
  DDPM: ["ddpm"],
  K_DPMPP_2M: ["dpm++ 2m", "dpmpp_2m", "k_dpmpp_2m"],
  K_DPMPP_2S_ANCESTRAL: ["dpm++ 2s a", "dpmpp_2s_ancestral", "k_dpmpp_2s_ancestral"],
  K_DPM_2: ["dpm2", "dpm_2", "kdpm_2", "k_dpm_2"],
  K_DPM_2_ANCESTRAL: ["dpm2 a", "dpm_2_ancestral", "kdpm_2_a", "kdpm_2_ancestral", "k_dpm_2_ancestral"],
  K_EULER: ["euler", "k_euler"],
  K_EULER_ANCESTRAL: ["euler a", "euler_a", "euler_ancestral", "k_euler_ancestral"],
  K_HEUN: ["heun", "k_heun"],
  K_LMS: ["lms", "k_lms"],
};
const OURS = new Map(Object.entries(SAMPLERS).flatMap(([ours, names]) => names.map((name) => [name, ours])));
const PLAIN_SCHEDULES = new Set(["", "automatic", "normal", "uniform"]);
const LONGEST_NOTE = 60;

const short = (value) => {
  const text = String(value);
  return text.length > LONGEST_NOTE ? `${text.slice(0, LONGEST_NOTE)}…` : text;
};

/** `{values, notes}` for the form's `fields`. */
export function translated(settings, fields) {
  const values = {};
  const notes = settings.note ? [settings.note] : [];
  const text = (name, value) => {
    if (typeof value !== "string") return;
    const most = fields.get(name)?.maxLength ?? Infinity;
    values[name] = value.slice(0, most);
    if (value.length > most) notes.push(`${fields.get(name).label} was cut to ${most} characters.`);
  };
  const number = (name, value) => {
    if (value === undefined || value === "") return;
    const field = fields.get(name);
    const found = Number(value);
    if (!field || !Number.isFinite(found)) {
      notes.push(`${field?.label ?? name} ${short(value)} is no number.`);
      return;
    }
    const grid = field.step >= 1 ? field.step : 1e-6;
    const fitted = Math.min(Math.max(Math.round(found / grid) * grid, field.minimum), field.maximum);
    values[name] = String(Number(fitted.toFixed(6)));
    if (Number(values[name]) !== found) notes.push(`${field.label} ${short(value)} became ${values[name]}.`);
  };
  text("prompt", settings.prompt);
  text("negative_prompt", settings.negative ?? "");
  // The texts have their style in them, and what is not named was not used.
  values.style_preset = "";
  if (fields.has("clip_guidance_preset")) values.clip_guidance_preset = fields.get("clip_guidance_preset").standard;
  number("steps", settings.steps);
  number("cfg_scale", settings.cfg);
  number("width", settings.width);
  number("height", settings.height);
  if (settings.denoising !== undefined && settings.denoising !== "") number("image_strength", Number((1 - Number(settings.denoising)).toFixed(6)));
  seed(settings.seed, fields, values, notes);
  sampler(settings, values, notes);
  if (settings.rest.Tiling === "True" && fields.get("style_preset")?.choices?.includes("tile-texture")) {
    notes.push("It was made to tile; only the style tile-texture does that.");
    delete settings.rest.Tiling;
  }
  if (settings.rest["CLIP guidance"] && fields.get("clip_guidance_preset")?.choices?.includes(settings.rest["CLIP guidance"])) {
    values.clip_guidance_preset = settings.rest["CLIP guidance"];
    delete settings.rest["CLIP guidance"];
  }
  const left = Object.keys(settings.rest);
  if (left.length) notes.push(`Not taken: ${short(left.slice(0, 12).join(", "))}.`);
  if (settings.model && settings.writer !== "this server") notes.push(`It was made with the model ${short(settings.model)}.`);
  if (/<lora:/i.test(values.prompt ?? "")) notes.push("<lora:...> in a prompt does nothing here.");
  return { values, notes };
}

function seed(value, fields, values, notes) {
  if (value === undefined || value === "") return;
  const { maximum } = fields.get("seed");
  const text = String(value).trim();
  if (/^\d+$/.test(text) && Number(text) >= 1 && Number(text) <= maximum) values.seed = text;
  else notes.push(`Seed ${short(text)} is not from 1 to ${maximum}, so the picture cannot be made again.`);
}

function sampler({ sampler: name, scheduler }, values, notes) {
  let plain = String(name ?? "").trim().toLowerCase();
  let schedule = String(scheduler ?? "").trim().toLowerCase();
  const suffix = / (karras|exponential|polyexponential|sgm uniform)$/.exec(plain);
  if (suffix) {
    plain = plain.slice(0, suffix.index);
    schedule = suffix[1];
  }
  if (plain) {
    if (OURS.has(plain)) values.sampler = OURS.get(plain);
    else notes.push(`Sampler ${short(name)} is none of this server's.`);
  }
  if (!PLAIN_SCHEDULES.has(schedule)) notes.push(`The ${short(schedule)} schedule is none of this server's.`);
}
