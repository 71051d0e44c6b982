/** Withdrawing runs, also where the server is not heard for a while: what it had finished is paid for. */

import { ImageToImageError } from "../../client.js";

const PATIENCE = 2000; // A browser that has all its connections in use sends nothing.
export const LOST_PAUSE = 5000;
export const LOST_PATIENCE = 300_000;
const CUT_OFF = "The run was cut off. Unless it was finished by then, nothing was charged.";
const NOT_HEARD = "The cancelled run is not there any more. Unless it was finished by then, nothing was charged.";
const TOO_LATE = "The run had ended before it was cancelled. If it was finished, running it again brings its picture, and nothing is charged twice.";

/** Withdraw a run, and end its stream unless it is finished already. Resolves to what the server says
 * of it, null where it cannot be asked. */
export async function withdraw(client, id, aborter) {
  const told = client.cancel(id).catch(() => null);
  const patience = () => Promise.race([told, new Promise((resolve) => setTimeout(resolve, PATIENCE, null))]);
  const state = await patience();
  if (state === "finished") return state;
  aborter.abort();
  return state ?? patience(); // The connection of the stream may be what it waited for.
}

/** Find out what became of a run whose withdrawal met `state`, null where nobody knows: it is looked
 * for until the server answers, taken where it is finished, and withdrawn where it goes on. Resolves
 * to `{state, result}`, state null where it gave up or `signal` ended it; rejects with `cutOff` where
 * it may have been finished and is not there. */
export async function settle(client, id, state, signal) {
  for (const began = performance.now(); ; ) {
    if (state === "cancelled" || state === "unknown") return { state };
    try {
      // Looked for first: a withdrawal lets go of the picture of what is finished.
      for await (const event of client.watch(id, { signal, patience: LOST_PATIENCE / 1000 })) {
        if (event.type === "result") return { state: "finished", result: event };
        if (event.type === "retry") continue;
        state ??= await client.cancel(id);
        if (state !== "finished") return { state };
      }
    } catch (error) {
      if (error.status === 404) throw cutOff(state === "finished" ? TOO_LATE : NOT_HEARD);
      if (error.ended) return { state: "cancelled" }; // after its grace time, or it failed
      const over = performance.now() - began > LOST_PATIENCE;
      if (!error.mayRetry || over) return { state: null };
    }
    await connection(LOST_PAUSE, signal);
  }
}

/** Why a run that was begun is not there any more: of one that was finished the answer may be gone. */
export function cutOff(message = CUT_OFF) {
  const error = new ImageToImageError(message);
  error.cutOff = true;
  return error;
}

/** Wait for a while, or until the network or the page is back. */
export function connection(milliseconds, signal) {
  return new Promise((resolve) => {
    const done = new AbortController();
    const end = () => {
      clearTimeout(timer);
      done.abort();
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    window.addEventListener("online", end, { signal: done.signal });
    document.addEventListener("visibilitychange", () => document.hidden || end(), { signal: done.signal });
    signal?.addEventListener("abort", end, { signal: done.signal });
  });
}
