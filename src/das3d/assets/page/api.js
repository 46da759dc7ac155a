/** Requests to the service. The API key, where the service asks for one, is kept until the tab is closed. */

const KEY = "das3d-key";

/** The service's answer was not what was asked for; `message` is its own word for why. */
export class Refused extends Error {
  constructor(status, message, wait) {
    super(message);
    this.status = status;
    this.wait = wait; // seconds after which to come again, where it makes sense
  }
}

let ahead = 0; // milliseconds that the service's clock is ahead of the one here

/** The time by the service's clock, by which it dates parts; that of the browser's machine may be wrong. */
export const now = () => Date.now() + ahead;

/** The answer to a request. Asks for the key where it is missing or wrong. */
export async function ask(path, options = {}) {
  for (;;) {
    const headers = new Headers();
    const key = sessionStorage.getItem(KEY);
    if (key) headers.set("X-API-Key", key);
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch {
      throw new Refused(0, "the service cannot be reached", 3);
    }
    ahead = (Date.parse(answer.headers.get("Date")) || now()) - Date.now();
    if (answer.ok) return answer;
    if (answer.status === 401) {
      await askForKey(key);
      continue;
    }
    const told = await answer.json().catch(() => ({}));
    const wait = Number(answer.headers.get("Retry-After")) || null;
    throw new Refused(answer.status, told.detail || `the service answered ${answer.status}`, wait);
  }
}

/** The JSON of an answer. */
export const get = async (path, options) => (await ask(path, options)).json();

/** Inspect one part; a full service is asked again until it has room. */
export async function inspect({ part, rgb, depth }, model, unit) {
  for (;;) {
    const form = new FormData();
    form.set("model", model);
    form.set("part", part);
    if (rgb) form.set("rgb", rgb, rgb.name);
    if (depth) form.set("depth", depth, depth.name);
    if (unit) form.set("depth_unit", unit);
    try {
      return await (await ask("/inspections", { method: "POST", body: form })).json();
    } catch (error) {
      if (error.status !== 429) throw error;
      await new Promise((done) => setTimeout(done, 1000 * (error.wait || 1) * (1 + Math.random())));
    }
  }
}

/** Save an answer as a file of the user's. */
export async function download(path, name) {
  const address = URL.createObjectURL(await (await ask(path)).blob());
  Object.assign(document.createElement("a"), { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

let asking = null;

function askForKey(refused) {
  if (sessionStorage.getItem(KEY) !== refused) return Promise.resolve(); // another request has asked already
  asking ||= new Promise((done) => {
    const dialog = document.getElementById("ask"), input = document.getElementById("key");
    input.value = "";
    dialog.oncancel = (event) => event.preventDefault();
    dialog.onclose = () => {
      sessionStorage.setItem(KEY, input.value.trim());
      asking = null;
      done();
    };
    dialog.showModal();
  });
  return asking;
}
