// A qube's serial console in a terminal (xterm.js). Loaded when the page of a console is shown.

import "./xterm.js";
import "./xterm-fit.js";

const MAX_WAITING = 65536; // characters typed while the guest does not read; what is beyond is refused with a beep
const MAX_SENT = 4096; // characters in one request: fewer than the server's bound in bytes, whatever they are
const PAUSE_MS = 25; // between two requests, so that a held key does not use up what the server answers per second

// The page's policy allows no style that is written into the document, which xterm.js does. Style sheets that a script
// makes as objects are allowed, so its elements "style" are replaced by ones that fill such a sheet; and the attribute
// "style", which is refused too, by the property.
function styled() {
  const made = [];
  const create = (tag, ...rest) => {
    if (String(tag).toLowerCase() !== "style") {
      const element = document.createElement(tag, ...rest);
      const set = element.setAttribute;
      element.setAttribute = (name, value) => {
        if (name === "style") element.style.cssText = value;
        else set.call(element, name, value);
      };
      return element;
    }
    const sheet = new CSSStyleSheet();
    document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
    made.push(sheet);
    const element = document.createElement("span");
    element.hidden = true;
    Object.defineProperty(element, "textContent", { set: (text) => sheet.replaceSync(text), get: () => "" });
    return element;
  };
  const instead = new Proxy(document, {
    get(target, key) {
      if (key === "createElement") return create;
      const value = target[key];
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  const remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((sheet) => !made.includes(sheet));
  };
  return { instead, remove };
}

export function attach(box, { request, notice, leaving }) {
  const [open, close] = [box.querySelector("[data-terminal-open]"), box.querySelector("[data-terminal-close]")];
  const place = box.querySelector(".screen");
  let aborter = null;

  async function run() {
    aborter = new AbortController();
    open.hidden = true;
    close.hidden = false;
    place.hidden = false;
    place.replaceChildren();
    const styles = styled();
    const terminal = new Terminal({
      documentOverride: styles.instead, cursorBlink: false, scrollback: 5000, fontSize: 14, screenReaderMode: true,
      fontFamily: 'ui-monospace, "DejaVu Sans Mono", monospace', theme: { background: "#101418", foreground: "#e6eaf0" },
    });
    const fit = new FitAddon.FitAddon();
    terminal.loadAddon(fit);
    terminal.open(place);
    fit.fit();
    terminal.attachCustomKeyEventHandler((event) => {
      if (!(event.ctrlKey && event.key === "]")) return true;
      close.focus();
      return false;
    });
    try {
      const size = new URLSearchParams({ rows: Math.max(5, terminal.rows), columns: Math.max(20, terminal.cols) });
      const headers = { "X-Casemate": "1" };
      const answer = await request(box.dataset.terminal, { method: "POST", headers, body: size, signal: aborter.signal });
      const address = `/console/${answer.headers.get("x-console")}`;
      let waiting = "";
      let sending = false;
      const send = async () => {
        if (sending) return;
        sending = true;
        while (waiting && !aborter.signal.aborted) {
          const whole = /[\uD800-\uDBFF]$/.test(waiting.slice(0, MAX_SENT)) ? MAX_SENT - 1 : MAX_SENT;
          const piece = waiting.slice(0, whole); // never half of a character
          waiting = waiting.slice(piece.length);
          try {
            await request(address, { method: "POST", headers, body: piece, signal: aborter.signal });
          } catch (error) {
            waiting = "";
            if (error.name !== "AbortError") notice(error.message);
          }
          await new Promise((done) => setTimeout(done, PAUSE_MS));
        }
        sending = false;
      };
      terminal.onData((text) => {
        if (waiting.length + text.length > MAX_WAITING) {
          notice("What was typed is too much at once, and was left out.");
          return;
        }
        waiting += text;
        send();
      });
      terminal.focus();
      const reader = answer.body.getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        // The next piece is asked for when this one is drawn, so a guest that prints without end fills no memory here.
        await new Promise((drawn) => terminal.write(value, drawn));
      }
    } catch (error) {
      if (error.name !== "AbortError") notice(error.message);
    } finally {
      terminal.options.disableStdin = true;
      aborter.abort();
      open.hidden = false;
      close.hidden = true;
      leaving(() => {
        terminal.dispose();
        styles.remove();
      });
    }
  }

  open.addEventListener("click", run);
  open.disabled = false; // from now on there is somebody who hears of a click
  close.addEventListener("click", () => {
    aborter?.abort();
    open.focus();
  });
  leaving(() => aborter?.abort());
}
