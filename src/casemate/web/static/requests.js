// The token of this tab, and requests that carry it. All that the page asks of the server goes through here.

// The token comes in the fragment, which browsers send nowhere. It is taken out of the address, so that neither history
// nor a screenshot shows it, and kept for this tab alone.
const given = /^#token=([A-Za-z0-9_-]+)$/.exec(location.hash);
if (given) {
  sessionStorage.setItem("token", given[1]);
  history.replaceState(null, "", "/#/qubes");
}

export class Failed extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export async function request(path, options = {}) {
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

export function post(path, form) {
  return request(path, { method: "POST", headers: { "X-Casemate": "1" }, body: form ? new URLSearchParams(form) : "" });
}

export function parse(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  return template.content;
}
