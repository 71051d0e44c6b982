/** Price and seconds of a picture before it is asked for. Figures and units have a no-break space between. */

/** Tenths of a credit, as server/accounts/pricing.py reckons them, with the server's figures. */
export function price({ least, most, least_work, most_work }, width, height, steps) {
  const span = most_work - least_work;
  const work = width * height * steps - least_work;
  return least + Math.floor((2 * (most - least) * work + span) / (2 * span));
}

export const creditsText = (tenths) => `${Math.floor(tenths / 10)}.${tenths % 10}\u00a0credits`;

/** Evaluations that a run takes, but for samplers that evaluate twice. */
export function evaluations(steps, strength, sampler) {
  const run = Math.max(1, Math.floor(steps * (1 - strength) + 1e-9));
  return /DPM_2|HEUN|2S_/.test(sampler) ? 2 * run : run;
}

/** Seconds of a picture alone on the server's device, by its predictions for some sizes: between them in
 * proportion, beyond them as the nearest. Null where there are none. */
export function secondsOf(costs, pixels, count) {
  if (!costs?.length) return null;
  const after = costs.findIndex((one) => one.pixels >= pixels);
  const high = costs[after < 0 ? costs.length - 1 : after];
  const low = after > 0 ? costs[after - 1] : high;
  const total = (one) => count * one.evaluation + one.rest;
  if (low === high) return (total(high) * pixels) / high.pixels;
  const share = (pixels - low.pixels) / (high.pixels - low.pixels);
  return total(low) + share * (total(high) - total(low));
}

/** What a click costs, in words. */
export class Costs {
  /** @param about the server's description of itself @param account the Account @param fields the
   *   form's, by name */
  constructor(about, account, fields = new Map()) {
    this.about = about;
    this.account = account;
    this.fields = fields;
  }

  /** Credits, where the key has any, and seconds for a picture of each of these values. */
  of(all, size) {
    if (!size) return "";
    const parts = [];
    const tenths = this.#tenths(all, size);
    if (!Number.isNaN(tenths)) parts.push(creditsText(tenths));
    const count = (values) => evaluations(this.#number(values, "steps"), this.#number(values, "image_strength"), values.sampler)
      * (1 + (this.about.guidance[values.clip_guidance_preset] ?? 0));
    const seconds = sum(all, (values) => secondsOf(this.about.costs, size.width * size.height, count(values)) ?? NaN);
    if (!Number.isNaN(seconds)) parts.push(seconds < 1 ? duration(seconds) : `~${duration(seconds)}`);
    return parts.join(" · ");
  }

  /** That the key has less than these pictures cost, in words; nothing where it has enough. */
  beyond(all, size) {
    const left = Math.round(10 * this.account.credits?.balance);
    return size && this.#tenths(all, size) > left ? `more than the ${creditsText(left)} left` : "";
  }

  #tenths(all, { width, height }) {
    if (!this.account.credits) return NaN;
    return sum(all, (values) => price(this.about.price, width, height, this.#number(values, "steps")));
  }

  /** A field's number; what is blank is not sent, and so has the server's default. */
  #number(values, name) {
    return Number(values[name].trim() || this.fields.get(name)?.standard);
  }
}

const sum = (all, each) => all.reduce((total, values) => total + each(values), 0);

/** `3 s`, `1 min 20 s`. */
export function duration(seconds) {
  if (seconds < 1) return "under 1\u00a0s";
  const whole = Math.round(seconds);
  if (whole < 90) return `${whole}\u00a0s`;
  return `${Math.floor(whole / 60)}\u00a0min ${whole % 60}\u00a0s`;
}
