// Makes what is shown equal to what the server has rendered anew, and leaves alone what a person is in the middle of:
// focus, a text that is being typed, an opened fold, a place scrolled to.

// A control is touched when it no longer has the value that the server gave it.
export function touched(control) {
  if (control instanceof HTMLSelectElement) {
    const given = [...control.options].find((option) => option.defaultSelected) ?? control.options[0];
    return Boolean(given) && control.value !== given.value;
  }
  if (control.type === "checkbox" || control.type === "radio") return control.checked !== control.defaultChecked;
  return control.value !== control.defaultValue;
}

const isControl = (node) => node instanceof HTMLInputElement || node instanceof HTMLTextAreaElement || node instanceof HTMLSelectElement;

function given(control) {
  if (control instanceof HTMLSelectElement) return ([...control.options].find((option) => option.defaultSelected) ?? control.options[0])?.value;
  return control.type === "checkbox" || control.type === "radio" ? control.defaultChecked : control.defaultValue;
}

// Whether a fold is open is up to the person; busy is a button whose answer has not come; data-own-… the modules set.
const ours = (name) => name === "open" || name === "aria-busy" || name.startsWith("data-own-");

function sameAttributes(old, fresh) {
  const sending = old.form?.hasAttribute("data-own-sending");
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !ours(name) && !(sending && name === "readonly")) old.removeAttribute(name);
  }
  for (const { name, value } of [...fresh.attributes]) {
    if (!ours(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
}

function sameControl(old, fresh) {
  // What a person began with: the server refuses a change of something that it no longer is.
  if (old.type === "hidden" && old.form?.hasAttribute("data-own-touched")) return;
  const mine = touched(old);
  const value = old.type === "checkbox" || old.type === "radio" ? old.checked : old.value;
  const before = given(old);
  sameAttributes(old, fresh);
  if (old instanceof HTMLSelectElement) sameChildren(old, fresh);
  if (old instanceof HTMLTextAreaElement && old.defaultValue !== fresh.defaultValue) old.defaultValue = fresh.defaultValue;
  const now = given(fresh);
  if (old.type === "checkbox" || old.type === "radio") old.checked = mine ? value : now;
  else if (old.type !== "file") {
    const wanted = mine ? value : now;
    if (wanted !== undefined && old.value !== wanted) old.value = wanted;
  }
  // Somebody else has set another value while this one is being changed: who changes it is told.
  if (mine && before !== now && touched(old)) old.form?.setAttribute("data-own-late", "");
}

const key = (node) => (node.nodeType === Node.ELEMENT_NODE ? node.dataset.key || node.id : "");

function alike(old, fresh) {
  return old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName && key(old) === key(fresh) && old.type === fresh.type;
}

// Each wanted child is an old one where there is one: that of the same key, or the next without a key of the same kind.
function sameChildren(old, fresh) {
  const left = [...old.childNodes];
  const wanted = [...fresh.childNodes].map((node) => {
    const at = left.findIndex((candidate) => alike(candidate, node));
    if (at < 0) return node;
    const [found] = left.splice(at, 1);
    same(found, node);
    return found;
  });
  for (const node of left) node.remove();
  let next = old.firstChild;
  for (const node of wanted) {
    if (node === next) next = next.nextSibling;
    else old.insertBefore(node, next); // moved only if it stands elsewhere: moving takes the focus away
  }
}

// Make `old` equal to `fresh`, which is taken apart.
export function same(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.hasAttribute("data-kept")) return; // the page's modules fill it
  if (isControl(old)) sameControl(old, fresh);
  else {
    sameAttributes(old, fresh);
    sameChildren(old, fresh);
  }
}

export function sameContent(parent, fragment) {
  sameChildren(parent, fragment);
}

// A form shows by itself whether something was typed into it that was not sent.
export function mark(form) {
  form.toggleAttribute("data-own-touched", [...form.elements].some((control) => control.name && touched(control)));
}
