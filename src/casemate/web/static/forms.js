// What a person presses and sends: buttons, forms, and texts that are checked while they are typed.

import { confirmed, notice } from "./messages.js";
import { dialog, show, showDialog } from "./pages.js";
import { mark } from "./refresh.js";
import { parse, post } from "./requests.js";
import { chosen } from "./table.js";

const main = document.getElementById("main");

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
  const open = hold(element.form ?? element.closest("form"));
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
    open();
    element.removeAttribute("aria-busy");
  }
}

// While a form is on its way its texts stay as they were sent: what was typed meanwhile would be lost with the answer,
// after which the fields say what the server says. Returns what opens them again.
function hold(form) {
  if (!form) return () => {};
  const texts = [...form.elements].filter((control) => control.readOnly === false);
  form.setAttribute("data-own-sending", "");
  for (const control of texts) control.readOnly = true;
  return () => {
    form.removeAttribute("data-own-sending");
    for (const control of texts) control.readOnly = false;
  };
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

document.addEventListener("input", ({ target }) => {
  if (!target.form) return;
  mark(target.form);
  problem(target.form, ""); // it was about what stood there before
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
