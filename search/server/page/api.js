// Requests to the service. What it refuses is thrown as a `Problem`, with the title and the detail that it gave.

import { byId } from "./dom.js";
import { parsed, written } from "./json.js";

const KEY = "token"; // in this tab's session only

export class Problem extends Error {
  constructor(title, detail, status) {
    super(detail);
    this.title = title;
    this.status = status;
  }
}

let token = stored();

export async function call(path, body, signal) {
  const headers = {};
  const sent = token;
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response, content;
  try {
    response = await fetch(new URL(`..${path}`, import.meta.url), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : written(body),
      signal,
      credentials: "omit",
    });
    content = contentOf(await response.text());
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service cannot be reached", "It may have been stopped. Try again in a moment.", 0);
  }
  if (response.status === 401) {
    // While this one was under way, another request may have been given a token.
    if (token !== sent || (await askForToken())) return call(path, body, signal);
  }
  if (!response.ok || content === null) {
    throw new Problem(
      content?.title ?? "The service gave no answer",
      content?.detail ?? `Something else answered in its place, with status ${response.status}.`,
      response.status,
    );
  }
  return content;
}

export function forgetToken() {
  keep(null);
}

function stored() {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null; // the browser stores nothing: it is asked for after each loading
  }
}

function keep(given) {
  token = given;
  try {
    if (given === null) sessionStorage.removeItem(KEY);
    else sessionStorage.setItem(KEY, given);
  } catch {
    // as above
  }
}

function contentOf(text) {
  try {
    return parsed(text);
  } catch {
    return null; // a proxy's page, or nothing
  }
}

let asking = null;

// Whether a token was given.
function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token-dialog");
    const field = byId("token");
    field.value = "";
    byId("token-refused").hidden = token === null;
    dialog.returnValue = "";
    dialog.addEventListener(
      "close",
      () => {
        const given = dialog.returnValue === "use";
        if (given) keep(field.value.trim());
        field.value = "";
        asking = null;
        resolve(given);
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}
