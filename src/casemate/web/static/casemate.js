// The page's one module: fetches what the server renders, keeps the table equal to the stream, sends what is pressed.
// It knows rows and addresses; it knows no property of a qube.
//
// What the server renders asks for things by attributes:
//   data-post="ADDRESS"      on a button or a form: what is sent when it is pressed; data-confirm asks a person before
//   data-go="ADDRESS"        on a form: its fields become the query of the address that is shown next
//   data-dialog="ADDRESS"    on a button: the form at this address is shown before the page; data-close closes it
//   data-part="ADDRESS"      on anything: what is at this address is shown in it (see "parts of a page")
//   data-follow="TOPIC …"    on a page: it is fetched again, and made equal, when one of these topics has news
//   data-every="SECONDS"     on a page: it is fetched again so often, for what no event tells
//   data-key="KEY"           this element stays the same one when its page is fetched again
//   data-terminal="ADDRESS"  a terminal is opened in it, by console.js
//   data-kept                its content is not the server's

import { Selection } from "./selection.js";
import { sameContent, touched } from "./refresh.js";

const main = document.getElementById("main");
const lostBar = document.getElementById("lost");
const noticeBox = document.getElementById("notices");
const MOST_NOTICES = 20;

// ------------------------------------------------------------------------------------------------ token and requests

// The token comes in the fragment, which browsers send nowhere. It is taken out of the address, so that neither history
// nor a screenshot shows it, and kept for this tab alone.
const given = /^#token=([A-Za-z0-9_-]+)$/.exec(location.hash);
if (given) {
  sessionStorage.setItem("token", given[1]);
  history.replaceState(null, "", "/#/qubes");
}

class Failed extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

async function request(path, options = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem("token") ?? ""}`, ...options.headers };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, "casemate-web does not answer. This page goes on by itself when it does.");
  }
  if (answer.status === 401) {
    throw new Failed(401, "This page belongs to a process that has ended: run casemate web again, and take its address.");
  }
  if (!answer.ok) throw new Failed(answer.status, (await answer.text()) || `Refused (${answer.status})`);
  return answer;
}

function post(path, form) {
  return request(path, { method: "POST", headers: { "X-Casemate": "1" }, body: form ? new URLSearchParams(form) : "" });
}

function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}

// ---------------------------------------------------------------------------------------------------------- messages

function notice(text, kind = "bad") {
  const item = document.createElement("p");
  item.className = `notice ${kind}`;
  item.textContent = text;
  const close = document.createElement("button");
  close.type = "button";
  close.textContent = "×";
  close.setAttribute("aria-label", "Close this message");
  close.addEventListener("click", () => item.remove());
  item.append(close);
  noticeBox.append(item);
  while (noticeBox.children.length > MOST_NOTICES) noticeBox.firstElementChild.remove();
  if (kind === "good") setTimeout(() => item.remove(), 4000);
}

function lost(text) {
  lostBar.textContent = text;
  lostBar.hidden = !text;
  document.body.classList.toggle("is-lost", Boolean(text));
}

function confirmed(text) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-text").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

// ------------------------------------------------------------------------------------------------- the table of qubes

const rows = new Map(); // name -> row, all that there are, also while another page is shown
const loads = new Map(); // name -> by column: the value in words, points of the line
const chosen = { filter: "", which: "all", order: "tree" };

const selection = new Selection(rows, async (address, names, question) => {
  if (question && !(await confirmed(question))) return;
  try {
    notice(await (await post(address, { names: names.join(" ") })).text(), "good");
  } catch (error) {
    notice(error.message);
  }
});

const collator = new Intl.Collator("en", { numeric: true });

function body() {
  return document.querySelector("#qubes tbody");
}

function showLoad(row) {
  const load = loads.get(row.dataset.name);
  if (!load) return;
  for (const [column, [words, points]] of Object.entries(load)) {
    const cell = row.querySelector(`.${column}`);
    let line = cell.querySelector("polyline");
    if (!line) {
      cell.replaceChildren(
        parse('<svg class="spark" viewBox="0 0 80 20" aria-hidden="true"><polyline/></svg><span class="amount"></span>'),
      );
      line = cell.querySelector("polyline");
    }
    line.setAttribute("points", points);
    cell.querySelector(".amount").textContent = words;
  }
}

function fits(row) {
  const { text, state } = row.dataset;
  if (chosen.which === "running" && (state === "Halted" || state === "NA")) return false;
  return chosen.filter.split(" ").every((word) => text.includes(word));
}

function filter() {
  let shown = 0;
  for (const row of rows.values()) {
    row.hidden = !fits(row);
    shown += !row.hidden;
  }
  const count = document.getElementById("count");
  if (!count) return;
  count.textContent = shown === rows.size ? `${rows.size}` : `${shown} of ${rows.size}`;
  document.getElementById("none").hidden = shown > 0 || !rows.size;
  selection.show();
}

// The order of the rows and how deep each stands: below its net qube, or all on one level.
function arranged() {
  const names = [...rows.keys()].sort(collator.compare);
  if (chosen.order === "flat") return names.map((name) => [name, 0]);
  const below = new Map();
  for (const name of names) {
    const netvm = rows.get(name).dataset.netvm;
    const parent = rows.has(netvm) && netvm !== name ? netvm : "";
    if (!below.has(parent)) below.set(parent, []);
    below.get(parent).push(name);
  }
  const found = [];
  const waiting = [...(below.get("") ?? [])].reverse().map((name) => [name, 0]);
  // Those with others below them come first, so that the trees stand together.
  waiting.sort((a, b) => below.has(a[0]) - below.has(b[0]));
  const seen = new Set();
  while (waiting.length) {
    const [name, depth] = waiting.pop();
    if (seen.has(name)) continue;
    seen.add(name);
    found.push([name, depth]);
    for (const child of [...(below.get(name) ?? [])].reverse()) waiting.push([child, depth + 1]);
  }
  for (const name of names) if (!seen.has(name)) found.push([name, 0]);
  return found;
}

// Make the controls, the order and the rows those of what is chosen.
function showChosen() {
  document.getElementById("filter").value = chosen.filter;
  for (const name of ["which", "order"]) {
    main.querySelector(`input[name="${name}"][value="${chosen[name]}"]`).checked = true;
  }
  arrange();
  filter();
}

// Moves only rows that stand in the wrong place: moving one takes the focus from it.
function arrange() {
  const table = body();
  if (!table) return;
  let next = table.firstElementChild;
  for (const [name, depth] of arranged()) {
    const row = rows.get(name);
    row.style.setProperty("--depth", Math.min(depth, 8));
    if (row === next) next = next.nextElementSibling;
    else table.insertBefore(row, next);
  }
}

function replaceRow(name, html) {
  const fresh = parse(html).querySelector("tr");
  const old = rows.get(name);
  rows.set(name, fresh);
  selection.restore(fresh);
  if (!old) return true;
  const moved = old.dataset.netvm !== fresh.dataset.netvm;
  fresh.style.setProperty("--depth", old.style.getPropertyValue("--depth"));
  const focused = old.contains(document.activeElement) ? document.activeElement : null;
  if (old.isConnected) old.replaceWith(fresh);
  if (focused) {
    // The button that was pressed is often gone, as its work is under way: stay in the row.
    const same = fresh.querySelector(`[data-post="${focused.dataset.post}"]`) ?? fresh.querySelector("a, button");
    (same ?? fresh).focus();
  }
  return moved;
}

function apply(message) {
  let moved = false;
  if (message.whole) {
    for (const name of [...rows.keys()]) if (!(name in message.rows)) message.gone.push(name);
    loads.clear();
  }
  for (const name of message.gone) {
    rows.get(name)?.remove();
    rows.delete(name);
    loads.delete(name);
    selection.forget(name);
    moved = true;
  }
  for (const [name, load] of Object.entries(message.loads)) loads.set(name, load);
  for (const [name, html] of Object.entries(message.rows)) {
    moved = replaceRow(name, html) || moved;
    const row = rows.get(name);
    if (row.dataset.state === "Halted") loads.delete(name);
    showLoad(row);
  }
  for (const name of Object.keys(message.loads)) if (rows.has(name)) showLoad(rows.get(name));
  if (moved) arrange();
  if (moved || Object.keys(message.rows).length) filter();
  for (const text of message.notices) notice(text);
  tellParts(message.topics);
  follow(message);
  lost(message.lost && `What is shown may be stale. ${message.lost}`);
}

// --------------------------------------------------------------------------------------------------------- the stream

const SILENT_MS = 40000; // a line comes every 15 seconds; without one for that long the connection is dead
let lastId = "";
let streaming = new AbortController();

async function readStream() {
  const aborter = new AbortController();
  switching = false;
  streaming = aborter;
  let first = true;
  let timer = setTimeout(() => aborter.abort(), SILENT_MS);
  try {
    const headers = lastId ? { "Last-Event-ID": lastId } : {};
    const answer = await request(`/events${topics && `?topics=${topics}`}`, { headers, signal: aborter.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(() => aborter.abort(), SILENT_MS);
      text += value;
      const frames = text.split("\n\n");
      text = frames.pop();
      for (const frame of frames) {
        let data = "";
        let id = "";
        for (const line of frame.split("\n")) {
          if (line.startsWith("data: ")) data = line.slice(6);
          if (line.startsWith("id: ")) id = line.slice(4);
        }
        if (!data) continue;
        apply(JSON.parse(data));
        lastId = id;
        // What happened between the answer with a part and this stream is in neither.
        if (first) {
          for (const part of parts()) refresh(part);
          follow({ whole: true });
        }
        first = false;
      }
    }
  } finally {
    clearTimeout(timer);
    aborter.abort();
  }
}

async function stayUpToDate() {
  let wait = 200;
  for (;;) {
    const began = Date.now();
    try {
      await readStream();
    } catch (error) {
      if (error.status === 401) {
        lost(error.message);
        main.replaceChildren();
        return;
      }
      if (error.name === "AbortError" && switching) {
        switching = false;
        continue;
      }
      lost(error.status ? error.message : "casemate-web does not answer. This page goes on by itself when it does.");
    }
    wait = Date.now() - began > 5000 ? 200 : Math.min(wait * 2, 5000);
    await new Promise((done) => setTimeout(done, wait));
  }
}

// --------------------------------------------------------------------------------------------------- parts of a page

// An element with data-part shows what is at that address. It is asked for anew when the stream has news about its
// data-topic, and every data-seconds. With data-most it is a log: the newest entries come to its top, the oldest go.

const PART_MS = 300; // time between two questions about one part
let topics = ""; // those of the page that is shown, as the stream was asked for them
let switching = false;

function parts() {
  return [...main.querySelectorAll("[data-part]")];
}

async function refresh(part) {
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

function tellParts(news) {
  for (const part of parts()) if ((part.dataset.topic ?? "").split(" ").some((topic) => news.includes(topic))) refresh(part);
}

// After another page was shown: its parts, and a stream that tells of what they need.
function beginParts() {
  for (const part of parts()) refresh(part);
  subscribe();
}

function subscribe() {
  const words = [
    ...parts().map((part) => part.dataset.topic ?? ""),
    ...[...document.querySelectorAll("[data-follow]")].map((element) => element.dataset.follow),
  ];
  const wanted = [...new Set(words.flatMap((word) => word.split(" ").filter(Boolean)))].sort().join("+");
  if (wanted === topics) return;
  topics = wanted;
  switching = true;
  streaming.abort();
}

setInterval(() => {
  if (document.hidden) return;
  for (const part of parts()) {
    if (part.dataset.seconds && Date.now() - part.asked >= part.dataset.seconds * 1000) refresh(part);
  }
}, 1000);

// -------------------------------------------------------------------------------------------------------------- pages

let shown = 0; // counts pages, so that a slow answer does not replace a page that was asked for after it
let shownPath = "";
const leaving = []; // what is to be ended when another page is shown

async function show(keepPlace = false) {
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
      subscribe();
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
    beginParts();
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

const dialog = document.getElementById("dialog");
let dialogPath = "";

async function showDialog(path, again = false) {
  try {
    const html = await (await request(path)).text();
    if (again && path === dialogPath && dialog.open) sameContent(dialog, parse(html));
    else if (!again) {
      dialogPath = path;
      dialog.replaceChildren(parse(html));
      dialog.showModal();
    }
    subscribe();
  } catch (error) {
    if (again && error.status === 404) dialog.close(); // what it is about has gone
    if (!again || error.status === 404) notice(error.message);
  }
}

dialog.addEventListener("close", () => {
  dialog.replaceChildren();
  subscribe();
});

function follow({ whole, topics: news }) {
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

// A form shows by itself whether something was typed into it that was not sent.
function mark(form) {
  form.toggleAttribute("data-own-touched", [...form.elements].some((control) => control.name && touched(control)));
}

function problem(element, text) {
  const place = element.closest("[data-key]")?.querySelector(".problem");
  if (place) place.textContent = text;
  else if (text) notice(text);
}

async function act(element, path, form) {
  const question = element.dataset.confirm;
  if (question && !(await confirmed(question))) return;
  // Not "disabled", which would take the focus from who uses the keyboard.
  if (element.getAttribute("aria-busy") === "true") return;
  element.setAttribute("aria-busy", "true");
  problem(element, "");
  try {
    const answer = await post(path, form);
    const text = await answer.text();
    if (element.closest("dialog")) dialog.close();
    const next = answer.headers.get("x-next");
    if (next && next !== location.hash) location.hash = next;
    else if (answer.status === 202) return; // its row tells how it goes on
    else {
      // What was typed has been taken: from now on the fields say what the server says.
      element.closest("main [data-follow] form")?.reset();
      await show(true);
    }
    if (text) notice(text, "good"); // after the page shows it too: what is pressed next is pressed on the new one
  } catch (error) {
    problem(element, error.message);
  } finally {
    element.removeAttribute("aria-busy");
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  // One that submits a form goes with the form's fields, by the listener below.
  if (button && !(button.form && button.type === "submit")) {
    act(button, button.dataset.post, button.name ? { [button.name]: button.value } : undefined);
  }
  const asker = event.target.closest("button[data-dialog]");
  if (asker) showDialog(asker.dataset.dialog);
  if (event.target.closest("[data-close]")) dialog.close();
  if (event.target.id === "save-view") showDialog(`/view/dialog/view?${new URLSearchParams(chosen)}`);
  const view = event.target.closest("button[data-view]");
  if (view) {
    Object.assign(chosen, { filter: view.dataset.filter.toLowerCase(), which: view.dataset.which, order: view.dataset.order });
    showChosen();
  }
  const skip = event.target.closest("a.skip");
  if (skip) {
    event.preventDefault();
    main.focus();
  }
});

document.addEventListener("submit", (event) => {
  const form = event.target.closest("form[data-post], form[data-go]");
  if (!form) return;
  event.preventDefault();
  if (form.dataset.go) {
    // A question has an address: it can be asked again, and "back" leads to what was shown before it.
    const address = `#${form.dataset.go}?${new URLSearchParams(new FormData(form))}`;
    if (location.hash === address) show(true);
    else location.hash = address;
    return;
  }
  act(event.submitter ?? form, event.submitter?.dataset.post ?? form.dataset.post, new FormData(form, event.submitter));
});

// A form that is taken back says again what the server says, also in its hidden fields.
document.addEventListener("reset", (event) => {
  if (!event.target.closest("main [data-follow]")) return;
  event.target.removeAttribute("data-own-late");
  setTimeout(() => {
    mark(event.target);
    problem(event.target, "");
    show(true);
  });
});

document.addEventListener("input", (event) => {
  const { id, name, value } = event.target;
  if (id === "filter") chosen.filter = value.trim().toLowerCase();
  else if (name === "which" || name === "order") chosen[name] = value;
  else {
    if (event.target.form) {
      mark(event.target.form);
      problem(event.target.form, ""); // it was about what stood there before
    }
    return;
  }
  if (name === "order") arrange();
  filter();
});

// A text with data-check is looked at by the server while it is typed; what it finds is shown in the form.
const CHECK_MS = 300;
let checking = 0;

document.addEventListener("input", (event) => {
  const { form, dataset } = event.target;
  if (!dataset.check) return;
  clearTimeout(checking);
  checking = setTimeout(async () => {
    const shownAt = form.querySelector("[data-checked]");
    const text = event.target.value;
    try {
      const html = await (await post(dataset.check, new FormData(form))).text();
      if (event.target.value === text) shownAt.replaceChildren(parse(html));
    } catch (error) {
      shownAt.textContent = error.message;
    }
  }, CHECK_MS);
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const box = document.getElementById("filter");
    if (box) {
      event.preventDefault();
      box.focus();
    }
  }
  if (event.key === "Escape" && event.target.id === "filter") {
    event.target.value = "";
    chosen.filter = "";
    filter();
  }
});

window.addEventListener("hashchange", () => show());
show();
stayUpToDate();
