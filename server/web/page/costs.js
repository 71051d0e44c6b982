/** Price and seconds of a picture before it is asked for. */

import { local } from "./store.js";

const KEY = "img2img.speed";

/** Tenths of a credit, as server/accounts/pricing.py reckons them, with the server's figures. */
export function price({ least, most, least_work, most_work }, width, height, steps) {
  const span = most_work - least_work;
  const work = width * height * steps - least_work;
  return least + Math.floor((2 * (most - least) * work + span) / (2 * span));
}

export const creditsText = (tenths) => `${Math.floor(tenths / 10)}.${tenths % 10}`;

/** Evaluations that a run takes, but for samplers that evaluate twice. */
export function evaluations(steps, strength, sampler) {
  const run = Math.max(1, Math.floor(steps * (1 - strength) + 1e-9));
  return /DPM_2|HEUN|2S_/.test(sampler) ? 2 * run : run;
}

/** Seconds by what runs in this browser have taken, so nothing is said before the first one. */
export class Speed {
  constructor(model) {
    this.of(model);
  }

  /** Go by this model's runs; it has no name until it is loaded. */
  of(model) {
    this.model = model ?? "";
    const kept = local.get(KEY);
    this.rate = kept?.model === this.model ? kept.rate : null;
  }

  learn(pixels, count, seconds) {
    const rate = seconds / (pixels * (count + 2));
    this.rate = this.rate === null ? rate : 0.5 * this.rate + 0.5 * rate;
    local.set(KEY, { model: this.model, rate: this.rate });
  }

  seconds(pixels, count) {
    return this.rate === null ? null : this.rate * pixels * (count + 2);
  }
}

/** What a click costs, in words. */
export class Costs {
  /** @param about the server's description of itself @param account the Account */
  constructor(about, speed, account) {
    this.about = about;
    this.speed = speed;
    this.account = account;
  }

  /** Credits, where the key has any, and seconds for a picture of each of these values. */
  of(all, size) {
    if (!size) return "";
    const sum = (each) => all.reduce((total, values) => total + each(values), 0);
    const parts = [];
    if (this.account.credits) {
      parts.push(`${creditsText(sum(({ steps }) => price(this.about.price, size.width, size.height, Number(steps))))} credits`);
    }
    const count = ({ steps, image_strength: strength, sampler }) => evaluations(Number(steps), Number(strength), sampler);
    const seconds = sum((values) => this.speed.seconds(size.width * size.height, count(values)) ?? NaN);
    if (!Number.isNaN(seconds)) parts.push(`~${duration(seconds)}`);
    return parts.join(" · ");
  }
}

/** `3 s`, `1 min 20 s`. */
export function duration(seconds) {
  if (seconds < 1) return "under 1 s";
  const whole = Math.round(seconds);
  if (whole < 90) return `${whole} s`;
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
