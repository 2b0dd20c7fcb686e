// Requests to the service. What it refuses is thrown as a `Problem`, with the title and the detail that it gave.

import { byId } from "./dom.js";

const KEY = "token"; // in this tab's session only

export class Problem extends Error {
  constructor(title, detail, status) {
    super(detail);
    this.title = title;
    this.status = status;
  }
}

export async function call(path, body, signal) {
  const headers = {};
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "omit",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The service cannot be reached", "It may have been stopped. Try again in a moment.", 0);
  }
  if (response.status === 401) {
    await askForToken();
    return call(path, body, signal);
  }
  const content = await response.json().catch(() => null);
  if (!response.ok) {
    throw new Problem(content?.title ?? "The service gave no answer", content?.detail ?? "", response.status);
  }
  return content;
}

let asking = null;

function askForToken() {
  asking ??= new Promise((resolve) => {
    const dialog = byId("token-dialog");
    const field = byId("token");
    field.value = "";
    dialog.addEventListener(
      "close",
      () => {
        if (field.value) sessionStorage.setItem(KEY, field.value);
        field.value = "";
        asking = null;
        resolve();
      },
      { once: true },
    );
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.showModal();
  });
  return asking;
}
