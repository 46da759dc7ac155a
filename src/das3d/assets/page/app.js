/** The page: takes parts in, shows one of them, and lists those of the past. */
import { createViewer, unpack } from "das3d/viewer";
import { ask, download, get, inspect, now } from "./api.js";
import { HeatMap, decodedOf, gradient } from "./heatmap.js";
import { chosen, dropped, pairs } from "./pairs.js";

const AT_ONCE = 3; // uploads
const PAGE = 50; // inspections
const REFRESH = 4000; // milliseconds
const PATIENCE = 10_000; // milliseconds without an answer, after which there is no contact

const $ = (id) => document.getElementById(id);
const state = {
  models: new Map(), // by name
  moved: new Map(), // thresholds that the user has moved, by the model's name
  items: [], // inspections, newest first
  next: null, // where the next page begins
  total: null, // how many there are on all pages, null where the service must count them
  counted: 0, // the newest inspection among those, by its id
  shown: null, // the inspection in sight
  loading: 0, // which request for a view is the last
  contact: null, // when the service last answered, in milliseconds
  problem: "", // why it does not
  refusal: null, // the newest part that could not be judged
};
const heatmap = new HeatMap($("heatmap"));
let solid = null;

// ------------------------------------------------------------------------------------------- verdicts

const limitOf = (item) => state.moved.get(item.model) ?? item.threshold;
/** As recorded, unless the user has moved the threshold. */
function verdictOf(item) {
  const moved = state.moved.get(item.model);
  if (moved == null) return item.verdict;
  return item.score - (state.models.get(item.model)?.tolerance ?? 0) > moved ? "defective" : "good";
}
/** The heat in full red: twice the threshold, as in das3d's overlays. */
const highOf = (item) => (limitOf(item) == null ? 1 : Math.min(Math.max(2 * limitOf(item), 0.02), 1));
const digits = (value) => value.toFixed(value < 0.1 ? 4 : 3);

function chip(verdict) {
  return Object.assign(document.createElement("span"), {
    className: `chip ${verdict || "none"}`, textContent: verdict || "no threshold",
  });
}

// ------------------------------------------------------------------------------------------- one part

async function show(item, { scroll = false } = {}) {
  state.shown = item;
  const turn = ++state.loading;
  history.replaceState(null, "", `#${item.id}`);
  $("nothing").hidden = true;
  $("shown").hidden = false;
  // The picture of the part before must not pass as this one's, however long this one's takes.
  heatmap.clear();
  put("unseen", "");
  showSolid(null, item, "");
  describe(item);
  markList();
  if (scroll && matchMedia("(max-width: 899px)").matches) $("part").scrollIntoView({ behavior: "smooth" });
  try {
    const view = await get(`/inspections/${item.id}/view`);
    if (turn !== state.loading) return;
    const images = await decodedOf(view), surface = view.surface && (await unpack(view.surface));
    if (turn !== state.loading) return;
    heatmap.load(images, item.regions, view.window);
    showSolid(surface, item);
    allowSaving(true);
    judge();
  } catch (error) {
    if (turn !== state.loading) return;
    heatmap.clear();
    put("unseen", error.message);
    showSolid(null, item, error.message);
    allowSaving(![404, 410].includes(error.status)); // of files that are gone
  }
}

function allowSaving(possible) {
  for (const id of ["save-map", "save-overlay"]) $(id).disabled = !possible;
}

function showSolid(surface, item, textContent = "This inspection keeps no depth.") {
  solid?.dispose();
  solid = null;
  $("solid").replaceChildren();
  if (!surface) {
    $("solid").append(Object.assign(document.createElement("p"), { className: "quiet", textContent }));
    return;
  }
  surface.heat = surface.heat?.map((root) => root * root);
  solid = createViewer($("solid"), { ...surface, high: highOf(item), label: `${item.part} in 3D` });
}

function describe(item) {
  $("name").textContent = item.part;
  $("compared").textContent = item.compared ?? "";
  put("unmarked", "");
  tell();
  $("regions").replaceChildren(...item.regions.map((region) =>
    Object.assign(document.createElement("li"), { textContent: wordsOf(region) })));
  const dl = $("facts").querySelector("dl");
  dl.replaceChildren();
  const facts = {
    Inspection: `${item.id}, ${new Date(item.at).toLocaleString()}`,
    Model: `${item.model}, ${item.model_hash.slice(0, 12)}`,
    Engine: item.engine,
    Size: `${item.width} x ${item.height} pixels`,
    Took: `${item.seconds.toFixed(2)} s`,
    Threshold: item.threshold == null ? "none" : `${digits(item.threshold)} when inspected`,
    About: aboutOf(item),
  };
  for (const [name, text] of Object.entries(facts)) {
    dl.append(
      Object.assign(document.createElement("dt"), { textContent: name }),
      Object.assign(document.createElement("dd"), { textContent: text }),
    );
  }
  judge();
}

/** What is known of the model that judged a part. */
function aboutOf(item) {
  const served = state.models.get(item.model);
  if (!served) return "this model is no longer served";
  return served.hash === item.model_hash ? served.about : "by an earlier model of this name";
}

/** Size, height and evidence of a region. */
function wordsOf({ area_mm2, area_px, height_mm, height_noise_mm, evidence }) {
  const area = area_mm2 == null ? `${area_px} pixels` : `${area_mm2.toPrecision(3)} mm²`;
  const measured = height_mm != null && Math.abs(height_mm) > (height_noise_mm ?? Infinity);
  const height = measured ? `, ${Math.abs(height_mm).toPrecision(2)} mm ${height_mm > 0 ? "high" : "deep"}` : "";
  const by = { colour: "seen in colour", shape: "seen in shape", both: "seen in colour and shape" }[evidence];
  return `${area}${height}${by ? `, ${by}` : ""}`;
}

/** A part that comes in while the page follows: shown by the threshold of its model, as nobody moved it for this part. */
function follow(item) {
  state.moved.clear();
  show(item);
}

/** Keep what a person found the part in sight to be. */
async function mark() {
  const item = state.shown;
  try {
    Object.assign(item, await get(`/inspections/${item.id}/truth?value=${$("truth").value}`, { method: "PUT" }));
    put("unmarked", "");
    state.items = state.items.filter((other) => other !== item || fitsMarks(item));
    if ($("marked").value) state.total = null; // what is marked leaves one list and joins another
  } catch (error) {
    put("unmarked", error.message);
  }
  judge();
}

const fitsMarks = (item) => !$("marked").value || $("marked").value === (item.truth ?? "unknown");

/** All that depends on the threshold. */
function judge() {
  const item = state.shown;
  if (!item) return;
  const limit = limitOf(item), verdict = verdictOf(item);
  $("verdict").className = verdict || "none";
  $("verdict").textContent = verdict || "no threshold";
  $("score").textContent = `score ${digits(item.score)}`;
  $("changed").textContent = verdict === item.verdict || !item.verdict ? "" : `recorded as ${item.verdict}`;
  $("truth").value = item.truth ?? "unknown";
  $("high").textContent = digits(highOf(item));
  heatmap.draw(highOf(item), Number($("opacity").value));
  solid?.high(highOf(item));
  drawAxis(item, limit);
  drawList();
}

function drawAxis(item, limit) {
  const alike = state.items.filter((other) => other.model === item.model);
  if (!alike.includes(item)) alike.push(item);
  const most = Math.min(1, 1.15 * Math.max(item.threshold ?? 0, limit ?? 0, ...alike.map((other) => other.score)));
  const dot = (other) => {
    const mark = document.createElement("i");
    mark.style.left = `${(100 * other.score) / most}%`;
    if (verdictOf(other) === "defective") mark.classList.add("bad");
    if (other === item) mark.classList.add("now");
    return mark;
  };
  $("dots").replaceChildren(...alike.filter((other) => other !== item).map(dot), dot(item));
  $("threshold").max = most;
  $("threshold").value = limit ?? most;
  $("limit").textContent = limit == null ? "none" : digits(limit);
  const bad = alike.filter((other) => verdictOf(other) === "defective").length;
  const other = alike.filter((one) => one.verdict && verdictOf(one) !== one.verdict).length;
  $("counts").textContent =
    limit == null
      ? `The model has no threshold to judge ${alike.length === 1 ? "the part" : `the ${alike.length} parts`} listed by.`
      : `${bad} of the ${alike.length} parts listed are defective` + (other ? `, ${other} otherwise than recorded.` : ".");
  $("reset").hidden = !state.moved.has(item.model);
}

// ------------------------------------------------------------------------------------------- past parts

function query(more = {}) {
  const filters = { part: $("search").value.trim(), verdict: $("filter").value, truth: $("marked").value };
  const wanted = { limit: PAGE, ...filters, ...more };
  return `/inspections?${new URLSearchParams(Object.entries(wanted).filter(([, value]) => value))}`;
}

/** A page of the list. A service that gives none has no contact, even where nothing says that it is away. */
async function listed(path) {
  const page = await get(path, { signal: AbortSignal.timeout(PATIENCE) });
  state.contact = Date.now();
  state.problem = "";
  tell();
  return page;
}

/** The newest page; what is further down in the list stays, unless more came in than a page holds. */
async function refresh() {
  const wanted = query();
  const page = await listed(state.total === null ? `${wanted}&count=true` : wanted);
  if (wanted !== query()) return []; // it answers an earlier filter
  const known = new Map(state.items.map((item) => [item.id, item]));
  const held = (id) => known.get(id) || (state.shown?.id === id ? state.shown : {}); // the part in sight, in every list
  const newest = page.items.map((item) => Object.assign(held(item.id), item)); // marks may have come
  const last = newest.at(-1)?.id;
  const rest = page.next !== null && known.has(last) ? state.items.filter((item) => item.id < last) : [];
  const fresh = newest.filter((item) => !known.has(item.id));
  state.items = [...newest, ...rest];
  if (!rest.length) state.next = page.next;
  if (fresh.some((item) => item.id <= state.counted)) state.total = null; // marked by somebody, it joined the list
  count(page);
  if (fresh.length || newest.length !== known.size) judge();
  drawList();
  return fresh;
}

/** To count takes long among millions, so the service is asked once and what comes in is added here. */
function count({ items, next, total }) {
  const more = items.filter((item) => item.id > state.counted).length;
  if (next === null) state.total = items.length;
  else if (total !== null) state.total = total;
  else state.total = more < items.length && state.total !== null ? state.total + more : null; // null: some were missed
  state.counted = items[0]?.id ?? 0;
  if (state.total !== null) $("total").textContent = state.total;
}

async function refusals() {
  const { items } = await listed("/refused?limit=1");
  state.refusal = items[0] ?? null;
  tell();
}

async function restart() {
  state.items = [];
  state.next = state.total = null;
  state.counted = 0;
  await refresh();
  judge(); // also where no part is left
}

async function older() {
  const wanted = query(), before = state.next;
  $("more").disabled = true;
  try {
    const page = await get(query({ before }));
    if (wanted !== query() || before !== state.next) return; // it answers an earlier filter or goes on from another list
    const known = new Set(state.items.map((item) => item.id));
    state.items.push(...page.items.filter((item) => !known.has(item.id)));
    state.next = page.next;
    judge();
    drawList();
  } finally {
    $("more").disabled = false;
  }
}

function drawList() {
  $("more").hidden = state.next === null;
  $("list").replaceChildren(...state.items.map(entry));
  markList();
}

function wordsBelow({ at, model, truth }) {
  return [new Date(at).toLocaleString(), model, ...(truth ? [`in truth ${truth}`] : [])].join(" · ");
}

function entry(item) {
  const row = document.createElement("li"), button = document.createElement("button");
  row.dataset.id = item.id;
  button.type = "button";
  button.append(
    Object.assign(document.createElement("b"), { textContent: item.part, title: item.part }),
    Object.assign(document.createElement("span"), { className: "score", textContent: digits(item.score) }),
    chip(verdictOf(item)),
    Object.assign(document.createElement("small"), { textContent: wordsBelow(item) }),
  );
  button.addEventListener("click", () => {
    $("follow").checked = false;
    show(item, { scroll: true });
  });
  row.append(button);
  return row;
}

function markList() {
  for (const row of $("list").children) {
    row.setAttribute("aria-current", String(Number(row.dataset.id) === state.shown?.id));
  }
}

// ------------------------------------------------------------------------------------------- new parts

const waiting = [];
let sending = 0;

/** Inspect what was given by the model and unit that are chosen now, whatever is chosen before all is sent. */
async function take(entries) {
  const model = $("model").value, unit = $("unit").value;
  const { parts, problems } = await pairs(await entries);
  $("uploads").replaceChildren();
  for (const problem of problems) note(problem, "failed");
  for (const part of parts) waiting.push({ part, model, unit, line: note(`${part.part}: waiting`) });
  while (sending < AT_ONCE && waiting.length) send();
}

async function send() {
  sending++;
  const { part, model, unit, line } = waiting.shift();
  line.textContent = `${part.part}: being inspected`;
  try {
    const item = await inspect(part, model, unit);
    line.remove();
    if (!state.items.some((other) => other.id === item.id)) state.items.unshift(item);
    state.items.sort((a, b) => b.id - a.id);
    if ($("follow").checked || !state.shown) follow(item);
    await refresh();
  } catch (error) {
    line.textContent = `${part.part}: ${error.message}`;
    line.className = "failed";
  }
  sending--;
  if (waiting.length) send();
}

function note(textContent, className = "") {
  const line = Object.assign(document.createElement("li"), { textContent, className });
  $("uploads").append(line);
  return line;
}

// ------------------------------------------------------------------------------------------- what the user does

function listen() {
  const drop = $("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
    });
  }
  document.addEventListener("drop", (event) => take(dropped(event.dataTransfer)));
  for (const input of [$("files"), $("folder")]) {
    input.addEventListener("change", () => {
      const entries = chosen(input.files);
      input.value = ""; // so that the same files can be chosen again
      if (entries.length) take(entries);
    });
  }
  $("threshold").addEventListener("input", () => {
    state.moved.set(state.shown.model, Number($("threshold").value));
    requestAnimationFrame(judge);
  });
  $("truth").addEventListener("focus", () => { // the next part must not come in between
    $("follow").checked = false;
    tell();
  });
  $("truth").addEventListener("change", mark);
  $("reset").addEventListener("click", () => {
    state.moved.delete(state.shown.model);
    judge();
  });
  $("opacity").addEventListener("input", () => heatmap.draw(highOf(state.shown), Number($("opacity").value)));
  $("model").addEventListener("change", tellEngine);
  $("follow").addEventListener("change", tell);
  $("filter").addEventListener("change", restart);
  $("marked").addEventListener("change", restart);
  $("search").addEventListener("input", restart);
  $("more").addEventListener("click", older);
  const save = (what) => () => download(state.shown[what], `${state.shown.part.replaceAll("/", "_")}_${what}`);
  $("save-map").addEventListener("click", save("map"));
  $("save-overlay").addEventListener("click", save("overlay"));
  addEventListener("hashchange", openLinked);
}

function tellEngine() {
  $("engine").textContent = state.models.get($("model").value)?.engine ?? "";
}

/** The inspection that the address names, such as /#17. */
async function openLinked() {
  const id = Number(location.hash.slice(1));
  if (!id || id === state.shown?.id) return false;
  const item = state.items.find((other) => other.id === id) || (await get(`/inspections/${id}`).catch(() => null));
  if (item) await show(item);
  return Boolean(item);
}

async function watch() {
  setInterval(tell, 1000);
  for (;;) {
    await new Promise((done) => setTimeout(done, REFRESH));
    if (document.hidden) continue;
    try {
      const fresh = sending ? [] : await refresh(); // `send` itself brings the list up to date
      await refusals();
      // Where marks are filtered, a part of before may join the list, which is no part that comes in.
      if (fresh.length && $("follow").checked && fresh[0].id > (state.shown?.id ?? 0)) follow(fresh[0]);
    } catch (error) {
      state.problem = error.message; // until it answers again
      tell();
    }
  }
}

/** What must be known of the verdict in sight, which would seem to be that of the newest part otherwise: whether the service
 *  is there, whether a later part could not be judged, and how old it is. */
function tell() {
  const { contact, problem, refusal, shown } = state;
  const lost = contact !== null && (problem || Date.now() - contact > REFRESH + PATIENCE);
  const since = `No contact since ${new Date(contact).toLocaleTimeString()}`;
  put("lost", lost ? since + (problem && `: ${problem}`) : "");
  const later = refusal && $("follow").checked && !(shown && Date.parse(shown.at) > Date.parse(refusal.at));
  const at = new Date(refusal?.at).toLocaleTimeString();
  put("refused", later ? `${refusal.part} could not be judged at ${at}: ${refusal.reason}` : "");
  document.body.classList.toggle("passed", Boolean(lost || later));
  if (state.shown) $("age").textContent = ageOf(now() - Date.parse(state.shown.at));
}

function put(id, words) {
  $(id).hidden = !words;
  if ($(id).textContent !== words) $(id).textContent = words; // only news is read out
}

function ageOf(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  return seconds < 86400 ? `${Math.floor(seconds / 3600)} h ago` : `${Math.floor(seconds / 86400)} d ago`;
}

async function begin() {
  $("legend").style.background = gradient();
  listen();
  const models = await (await ask("/models")).json();
  for (const model of models) {
    state.models.set(model.name, model);
    $("model").append(new Option(model.name));
  }
  tellEngine();
  await refresh();
  await refusals();
  if (!state.shown) await openLinked(); // unless a part of the list was chosen meanwhile
  if (!state.shown && state.items.length) await show(state.items[0]);
  watch();
}

begin().catch((error) => {
  $("nothing").textContent = error.message;
});
