// What the main part of the window shows: the page at the address, and dialogs before it. A page that follows what others
// do is fetched again and made equal to the answer.

import { notice } from "./messages.js";
import { PART_MS, parts, refresh } from "./parts.js";
import { mark, sameContent } from "./refresh.js";
import { parse, request } from "./requests.js";
import { subscribe } from "./stream.js";
import { showChosen } from "./table.js";

const main = document.getElementById("main");

let shown = 0; // counts pages, so that a slow answer does not replace a page that was asked for after it
let shownPath = "";
const leaving = []; // what is to be ended when another page is shown

// Have the stream tell of what the page, its parts and an open dialog need.
function follows() {
  subscribe([
    ...parts().map((part) => part.dataset.topic ?? ""),
    ...[...document.querySelectorAll("[data-follow]")].map((element) => element.dataset.follow),
  ]);
}

export async function show(keepPlace = false) {
  const path = location.hash.startsWith("#/") ? location.hash.slice(1) : "/qubes";
  const turn = ++shown;
  // A page that follows what others do is made equal to the answer; another one takes its place.
  const again = keepPlace && path === shownPath && Boolean(main.querySelector("[data-follow]"));
  try {
    const answer = await request(`/view${path}`);
    const html = await answer.text();
    if (turn !== shown) return;
    if (again) {
      sameContent(main, parse(html));
      for (const form of main.querySelectorAll("form")) mark(form);
      follows();
      return;
    }
    shownPath = path;
    for (const end of leaving.splice(0)) end();
    const place = window.scrollY;
    const before = new Map(parts().map((part) => [part.dataset.part.split("?")[0], part.shown]));
    main.replaceChildren(parse(html));
    for (const part of parts()) {
      // A part that stays is shown as it was until its address has answered: an empty one would let the page jump.
      part.shown = before.get(part.dataset.part.split("?")[0]);
      if (part.shown) part.replaceChildren(parse(part.shown));
    }
    for (const link of document.querySelectorAll(".top nav a")) {
      const here = path.startsWith(link.hash.slice(1));
      if (here) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    document.title = `${main.querySelector("h1")?.firstChild?.textContent.trim() ?? ""} · Casemate`;
    if (document.getElementById("qubes")) {
      showChosen();
    }
    for (const part of parts()) refresh(part);
    follows();
    const terminal = main.querySelector("[data-terminal]");
    if (terminal) {
      const { attach } = await import("./console.js");
      if (terminal.isConnected) attach(terminal, { request, notice, leaving: (end) => leaving.push(end) });
    }
    if (keepPlace) window.scrollTo(0, place);
    else window.scrollTo(0, 0);
  } catch (error) {
    if (again && !error.status) return; // it is told at the top, and the page is fetched again when that is over
    shownPath = "";
    if (turn === shown && error.status !== 401) main.replaceChildren(Object.assign(document.createElement("p"), { className: "none", textContent: error.message }));
  }
}

export const dialog = document.getElementById("dialog");
let dialogPath = "";

export async function showDialog(path, again = false) {
  try {
    const html = await (await request(path)).text();
    if (again && path === dialogPath && dialog.open) sameContent(dialog, parse(html));
    else if (!again) {
      dialogPath = path;
      dialog.replaceChildren(parse(html));
      dialog.showModal();
    }
    follows();
  } catch (error) {
    if (again && error.status === 404) dialog.close(); // what it is about has gone
    if (!again || error.status === 404) notice(error.message);
  }
}

dialog.addEventListener("close", () => {
  dialog.replaceChildren();
  follows();
});

// The stream has news about these topics; or `whole`: anything may have changed.
export function follow({ whole, topics: news }) {
  const changed = new Set(news);
  const concerned = (root) => [...root.querySelectorAll("[data-follow]")].some((element) =>
    whole || element.dataset.follow.split(" ").some((topic) => changed.has(topic)));
  if (dialog.open && concerned(dialog)) showDialog(dialogPath, true);
  if (concerned(main)) refetch();
}

// Fetches the page again: at most once at a time, and once more if meanwhile something changed again.
let fetching = false;
let stale = false;

async function refetch() {
  stale = true;
  if (fetching) return;
  fetching = true;
  while (stale) {
    stale = false;
    await show(true);
    await new Promise((done) => setTimeout(done, PART_MS));
  }
  fetching = false;
}

let since = 0; // seconds since a page that asks for it was fetched
setInterval(() => {
  const often = main.querySelector("[data-every]")?.dataset.every;
  if (!often || document.hidden || ++since < Number(often)) return;
  since = 0;
  refetch();
}, 1000);
