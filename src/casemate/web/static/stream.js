// The stream of changes: one connection, which is made anew when it ends, stays silent, or is to tell of other topics.

import { lost } from "./messages.js";
import { request } from "./requests.js";

const SILENT_MS = 40000; // a line comes every 15 seconds; without one for that long the connection is dead
let lastId = "";
let streaming = new AbortController();
let topics = ""; // those of the page that is shown, as the stream was asked for them
let switching = false;

// Have the stream tell of these topics from now on.
export function subscribe(words) {
  const wanted = [...new Set(words.flatMap((word) => word.split(" ").filter(Boolean)))].sort().join("+");
  if (wanted === topics) return;
  topics = wanted;
  switching = true;
  streaming.abort();
}

async function readStream(heard) {
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
        heard(JSON.parse(data), first);
        lastId = id;
        first = false;
      }
    }
  } finally {
    clearTimeout(timer);
    aborter.abort();
  }
}

// Read the stream as long as this page is there. `heard` gets each message, and whether it is the first of a connection;
// `ended` is called when the process that served this page has gone for good.
export async function stayUpToDate(heard, ended) {
  let wait = 200;
  for (;;) {
    const began = Date.now();
    try {
      await readStream(heard);
    } catch (error) {
      if (error.status === 401) {
        lost(error.message);
        ended();
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
