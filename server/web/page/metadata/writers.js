/** What each program writes into its pictures, as one shape:
 * `{writer, prompt, negative, steps, sampler, scheduler, cfg, seed, width, height, denoising, rest}`.
 * `rest` has what has no place there, by name. Everything is a text or a number of a stranger's. */

const own = (object, key) => (object && typeof object === "object" && Object.hasOwn(object, key) ? object[key] : undefined);
const plain = (value) => (["string", "number"].includes(typeof value) ? value : undefined);

/** JSON as Python writes it, with NaN. A string that is not closed is one match too, to the text's end:
 * else one is looked for from each of its quotes, which takes the square of its length. */
function json(text) {
  try {
    return JSON.parse(text.replace(/"(?:\\.?|[^"\\]+)*"?|-?\bInfinity\b|\bNaN\b/gs, (found) => (found.startsWith('"') ? found : "null")));
  } catch {
    return null;
  }
}

/** The settings in a picture's texts, or null. */
export function settingsIn(texts) {
  const parameters = texts.get("parameters") ?? texts.get("UserComment") ?? "";
  const scheme = texts.get("fooocus_scheme") ?? texts.get("MakerNote");
  if (texts.has("invokeai_metadata")) return invokeai(json(texts.get("invokeai_metadata")));
  const graph = texts.get("prompt") ?? ["Make", "Model", "ImageDescription", "UserComment"]
    .map((name) => /^prompt:(.*)$/is.exec(texts.get(name) ?? "")?.[1]).find(Boolean);
  if (graph) return comfyui(json(graph));
  if (texts.has("Comment") && texts.has("Description")) return novelai(texts.get("Description"), json(texts.get("Comment")));
  if (parameters.trimStart().startsWith("{")) {
    const value = json(parameters);
    if (own(value, "sui_image_params")) return swarmui(value.sui_image_params);
    return value && (scheme === "fooocus" || own(value, "guidance_scale") !== undefined) ? fooocus(value) : null;
  }
  return parameters ? a1111(parameters) : null;
}

/** Bounded, for anyone may have written the text: without ends, matching takes the square of its length. */
const PAIR = /(\w[\w \-/]{1,80}):\s{0,20}("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)/g;
const LONGEST_LINE = 100_000;
const TAKEN = new Set(["Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Denoising strength"]);
/** Said of the picture, not needed to make it again. */
const IDLE = new Set(["Version", "Model", "Model hash", "Filtered"]);

function a1111(text) {
  const lines = text.trim().split("\n");
  const pairs = new Map([...lines.at(-1).slice(0, LONGEST_LINE).matchAll(PAIR)].map(([, key, value]) => [key, unquoted(value)]));
  if (pairs.size < 3) pairs.clear();
  else lines.pop();
  const at = lines.findIndex((line) => line.trimStart().startsWith("Negative prompt:"));
  const prompt = (at < 0 ? lines : lines.slice(0, at)).join("\n").trim();
  const negative = at < 0 ? "" : lines.slice(at).join("\n").trimStart().slice("Negative prompt:".length).trim();
  if (!pairs.size && !negative) return null; // Some text, but none of these programs'.
  const [width, height] = (pairs.get("Size") ?? "").split("x");
  const rest = Object.fromEntries([...pairs].filter(([key]) => !TAKEN.has(key) && !IDLE.has(key)));
  const version = pairs.get("Version") ?? "";
  return {
    writer: version.startsWith("img2img-server") ? "this server" : "A1111's format",
    prompt, negative, rest, width, height, steps: pairs.get("Steps"), sampler: pairs.get("Sampler"),
    scheduler: pairs.get("Schedule type"), cfg: pairs.get("CFG scale"), seed: pairs.get("Seed"),
    denoising: pairs.get("Denoising strength"), model: pairs.get("Model"),
  };
}

function unquoted(value) {
  if (!value.startsWith('"')) return value.trim();
  const text = json(value);
  return typeof text === "string" ? text : value;
}

function picked(writer, value, names, idle = []) {
  if (!value || typeof value !== "object") return null;
  const settings = { writer, rest: {} };
  const used = new Set(idle);
  for (const [ours, theirs] of Object.entries(names)) {
    used.add(theirs);
    const found = plain(own(value, theirs));
    if (found !== undefined) settings[ours] = found;
  }
  for (const key of Object.keys(value)) if (!used.has(key) && value[key] !== null) settings.rest[key] = value[key];
  return settings;
}

function fooocus(value) {
  const settings = picked("Fooocus", value, {
    prompt: "prompt", negative: "negative_prompt", steps: "steps", cfg: "guidance_scale",
    sampler: "sampler", scheduler: "scheduler", seed: "seed", model: "base_model",
  }, ["resolution", "version", "metadata_scheme", "created_by", "base_model_hash", "full_prompt", "full_negative_prompt"]);
  const size = /^\((\d+), (\d+)\)$/.exec(plain(own(value, "resolution")) ?? "");
  return { ...settings, width: size?.[1], height: size?.[2] };
}

function invokeai(value) {
  const settings = picked("InvokeAI", value, {
    prompt: "positive_prompt", negative: "negative_prompt", seed: "seed", steps: "steps", cfg: "cfg_scale",
    sampler: "scheduler", width: "width", height: "height", denoising: "strength",
  }, ["app_version", "generation_mode", "model", "rand_device", "positive_style_prompt", "negative_style_prompt", "canvas_v2_metadata", "init_image"]);
  if (settings?.sampler?.endsWith?.("_k")) {
    settings.sampler = settings.sampler.slice(0, -2);
    settings.scheduler = "Karras";
  }
  if (settings) settings.model = plain(own(own(value, "model"), "name"));
  return settings;
}

function swarmui(value) {
  const settings = picked("SwarmUI", value, {
    prompt: "prompt", negative: "negativeprompt", seed: "seed", steps: "steps", cfg: "cfgscale",
    sampler: "sampler", scheduler: "scheduler", width: "width", height: "height",
    denoising: "initimagecreativity", model: "model",
  }, ["swarm_version", "date", "generation_time"]);
  return settings;
}

function novelai(description, value) {
  const settings = picked("NovelAI", value, {
    prompt: "prompt", negative: "uc", seed: "seed", steps: "steps", cfg: "scale", sampler: "sampler",
    width: "width", height: "height", denoising: "strength",
  });
  return settings && { ...settings, prompt: settings.prompt ?? description, rest: {} };
}

const DEEPEST = 24;

/** ComfyUI's graph of nodes: what its sampler was given. */
function comfyui(graph) {
  const node = (link) => (Array.isArray(link) ? own(graph, plain(link[0])) : undefined);
  const inputs = (of) => own(of, "inputs") ?? {};
  const samplers = Object.keys(graph ?? {}).filter((id) => own(inputs(own(graph, id)), "positive") && own(inputs(own(graph, id)), "steps") !== undefined);
  if (!samplers.length) return null;
  const [id] = samplers;
  const given = inputs(own(graph, id));

  const text = (link, depth = 0) => {
    const from = node(link);
    if (!from || depth > DEEPEST) return undefined;
    for (const key of ["text", "string", "value", "text_g"]) {
      const value = own(inputs(from), key);
      if (typeof value === "string") return value;
      if (Array.isArray(value)) return text(value, depth + 1);
    }
    for (const key of ["conditioning", "conditioning_1", "positive"]) {
      const value = own(inputs(from), key);
      if (Array.isArray(value)) return text(value, depth + 1);
    }
    return undefined;
  };
  const number = (key, depth = 0) => {
    const value = own(given, key);
    if (!Array.isArray(value)) return plain(value);
    const from = inputs(node(value));
    return depth > DEEPEST ? undefined : plain(own(from, "value") ?? own(from, key) ?? own(from, "seed"));
  };
  const size = Object.values(graph).map(inputs).find((of) => plain(own(of, "width")) !== undefined && plain(own(of, "height")) !== undefined);
  const rest = {};
  for (const each of Object.values(graph)) {
    const kind = String(plain(own(each, "class_type")));
    if (/lora|controlnet|ipadapter/i.test(kind)) rest[kind.slice(0, 60)] = "";
  }
  return {
    writer: "ComfyUI", rest, prompt: text(own(given, "positive")), negative: text(own(given, "negative")),
    seed: number("seed") ?? number("noise_seed"), steps: number("steps"), cfg: number("cfg"),
    sampler: plain(own(given, "sampler_name")), scheduler: plain(own(given, "scheduler")), denoising: number("denoise"),
    width: plain(own(size, "width")), height: plain(own(size, "height")),
    note: samplers.length > 1 ? `It has ${samplers.length} samplers; node ${id.slice(0, 20)} was read.` : undefined,
  };
}
