// What a person is told: messages at the lower right, a line at the top while the rows may be stale, and questions.

const lostBar = document.getElementById("lost");
const noticeBox = document.getElementById("notices");
const MOST_NOTICES = 20;

export function notice(text, kind = "bad") {
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

export function lost(text) {
  lostBar.textContent = text;
  lostBar.hidden = !text;
  document.body.classList.toggle("is-lost", Boolean(text));
}

export function confirmed(text) {
  const dialog = document.getElementById("confirm");
  document.getElementById("confirm-text").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}
