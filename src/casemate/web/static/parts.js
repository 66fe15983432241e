// Parts of a page. An element with data-part shows what is at that address. It is asked for anew when the stream has
// news about its data-topic, and every data-seconds. With data-most it is a log: the newest entries come to its top, the
// oldest go.

import { sameContent } from "./refresh.js";
import { parse, request } from "./requests.js";

const main = document.getElementById("main");
export const PART_MS = 300; // time between two questions about one part

export function parts() {
  return [...main.querySelectorAll("[data-part]")];
}

export async function refresh(part) {
  part.asked = Date.now();
  if (part.busy) {
    part.again = true;
    return;
  }
  part.busy = true;
  try {
    do {
      part.again = false;
      const most = Number(part.dataset.most);
      const newest = part.firstElementChild?.dataset.number ?? 0;
      const html = await (await request(`${part.dataset.part}${most ? `?after=${newest}` : ""}`)).text();
      if (most) {
        part.prepend(parse(html));
        while (part.children.length > most) part.lastElementChild.remove();
      } else if (html !== part.shown) {
        // Rows with a data-key stay the same elements: nobody presses a button that has become another row's.
        sameContent(part, parse(html));
        part.shown = html;
      }
      await new Promise((done) => setTimeout(done, PART_MS));
    } while (part.again && part.isConnected);
  } catch (error) {
    if (!part.children.length && !part.dataset.most) part.textContent = error.message;
  } finally {
    part.busy = false;
  }
}

// The stream has news about these topics.
export function tellParts(news) {
  for (const part of parts()) if ((part.dataset.topic ?? "").split(" ").some((topic) => news.includes(topic))) refresh(part);
}

setInterval(() => {
  if (document.hidden) return;
  for (const part of parts()) {
    if (part.dataset.seconds && Date.now() - part.asked >= part.dataset.seconds * 1000) refresh(part);
  }
}, 1000);
