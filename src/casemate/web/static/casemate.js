// The page's first module: it joins the others, which know nothing of each other's messages.
//
//   requests   token, GET and POST            table    rows of qubes, filter, order; selection: those chosen
//   messages   what a person is told          parts    parts of a page that change by themselves
//   refresh    equal to what was rendered     pages    the page at the address, dialogs
//   stream     the stream of changes          forms    what is pressed and sent
//
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

import "./forms.js";
import { lost, notice } from "./messages.js";
import { follow, show } from "./pages.js";
import { parts, refresh, tellParts } from "./parts.js";
import { stayUpToDate } from "./stream.js";
import { apply } from "./table.js";

function heard(message, first) {
  apply(message);
  for (const text of message.notices) notice(text);
  tellParts(message.topics);
  follow(message);
  lost(message.lost && `What is shown may be stale. ${message.lost}`);
  if (!first) return;
  // What happened between the answer with a part and this stream is in neither.
  for (const part of parts()) refresh(part);
  follow({ whole: true });
}

window.addEventListener("hashchange", () => show());
show();
stayUpToDate(heard, () => document.getElementById("main").replaceChildren());
