/** An id of this tab, which a reload keeps and a duplicated tab does not share. */

import { newKey } from "../../client.js";
import { tab } from "./store.js";

const KEY = "img2img.tab";
const PATIENCE = 120;

/** The tab's id. A tab that was duplicated has the other one's, and takes a new one. */
export async function ownTab() {
  const before = tab.get(KEY);
  let id = before ?? newKey();
  if (typeof BroadcastChannel === "function") {
    const channel = new BroadcastChannel("img2img.tabs");
    const taken = before && (await new Promise((resolve) => {
      channel.onmessage = ({ data }) => data.taken === id && resolve(true);
      setTimeout(resolve, PATIENCE, false);
      channel.postMessage({ asked: id });
    }));
    if (taken) id = newKey();
    channel.onmessage = ({ data }) => data.asked === id && channel.postMessage({ taken: id });
  }
  tab.set(KEY, id);
  return id;
}
