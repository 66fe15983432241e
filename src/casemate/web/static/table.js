// The table of qubes: rows as the server renders them, in an order and with a filter that a person chooses. It knows rows
// and no property of a qube. All rows are kept, also while another page is shown.

import { confirmed, notice } from "./messages.js";
import { parse, post } from "./requests.js";
import { Selection } from "./selection.js";

const rows = new Map(); // name -> row, all that there are, also while another page is shown
const loads = new Map(); // name -> by column: the value in words, points of the line
export const chosen = { filter: "", which: "all", order: "tree" };

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
export function showChosen() {
  document.getElementById("filter").value = chosen.filter;
  for (const name of ["which", "order"]) {
    document.querySelector(`#main input[name="${name}"][value="${chosen[name]}"]`).checked = true;
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

// Make the rows equal to what a message of the stream says.
export function apply(message) {
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
}

document.addEventListener("input", ({ target: { id, name, value } }) => {
  if (id === "filter") chosen.filter = value.trim().toLowerCase();
  else if (name === "which" || name === "order") chosen[name] = value;
  else return;
  if (name === "order") arrange();
  filter();
});

document.addEventListener("click", ({ target }) => {
  const view = target.closest("button[data-view]");
  if (!view) return;
  Object.assign(chosen, { filter: view.dataset.filter.toLowerCase(), which: view.dataset.which, order: view.dataset.order });
  showChosen();
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
