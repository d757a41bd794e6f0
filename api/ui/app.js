// The page put together: logs in, one instant shown, keys and pointers out.

import { element, show } from "./dom.js";
import { drawDetails, drawEntries, visible } from "./entries.js";
import { drawLanes, timeOfDay } from "./lanes.js";
import { drawMachines, readMachine } from "./machine.js";
import { NodeLog, span } from "./model.js";
import { follow, loadOlder, opened } from "./sources.js";
import { drawTopology } from "./topology.js";

const place = (id) => document.getElementById(id);
const STEPS = 1000;
const MEMBERS_EVERY_MS = 5000;

const shown = { logs: [], isLive: true, isImported: false, at: Date.now(), chosen: null, selected: null, doubts: [] };
let table = { rules: [], duties: [] };
let because = new Map();
let isDrawDue = false;

// ---- what is shown ------------------------------------------------------------------------------------------------

function due() {
  if (isDrawDue) return;
  isDrawDue = true;
  requestAnimationFrame(() => {
    isDrawDue = false;
    draw();
  });
}

function range() {
  const logs = shown.logs.filter((log) => log.first);
  const until = shown.isLive && !shown.isImported ? Date.now() : Math.max(shown.at, ...logs.map((log) => log.last.at));
  const begin = Math.min(until - 1, ...logs.map((log) => log.first.at));
  const wanted = Number(place("window").value) * 1000;
  return { since: wanted ? Math.max(begin, until - wanted) : begin, until };
}

function draw() {
  const { since, until } = range();
  if (shown.isLive) shown.at = until;
  const { at } = shown;
  const primaries = drawTopology(place("topology"), shown.logs, at, shown.chosen, choose);
  drawLanes(place("lanes"), shown.logs, { since, until, at, chosen: shown.chosen, choose: pointed });
  drawMachines(place("machines"), shown.logs, at);
  const found = visible(shown.chosen ? [shown.chosen] : shown.logs, at, wanted(), because);
  shown.found = found;
  drawEntries(place("entries"), found, shown.selected, because, open);
  if (document.activeElement !== place("scrubber")) place("scrubber").value = String(Math.round(((at - since) / Math.max(1, until - since)) * STEPS));
  place("instant").textContent = `${new Date(at).toISOString().slice(0, 10)} ${timeOfDay(at)} UTC${shown.isLive ? " · live" : ` · ${span(Math.max(0, until - at))} before the newest`}`;
  place("live").setAttribute("aria-pressed", String(shown.isLive));
  place("summary").textContent = summary(primaries);
}

function summary(primaries) {
  const silent = shown.logs.filter((log) => log.status).map((log) => log.name);
  const parts = [
    primaries.length === 1 ? `${primaries[0]} is the primary` : primaries.length ? `TWO PRIMARIES by these logs: ${primaries.join(", ")}` : "no primary is known",
    `${shown.logs.length} nodes`,
    silent.length ? `no answer from ${silent.join(", ")}` : null,
    shown.isImported ? "opened logs" : null,
    ...shown.doubts,
  ];
  return parts.filter(Boolean).join(" · ");
}

function wanted() {
  return { words: place("filter").value, movesOnly: place("moves").checked, withRoutine: place("routine").checked };
}

// ---- what people do -----------------------------------------------------------------------------------------------

function choose(log) {
  shown.chosen = shown.chosen === log ? null : log;
  due();
}

function pointed(at, log) {
  shown.isLive = false;
  shown.at = at;
  shown.selected = null;
  if (log && shown.chosen && shown.chosen !== log) shown.chosen = log;
  due();
}

function open(found) {
  select(found);
  drawDetails(place("details"), found, table, { close, jump: open });
  place("details").hidden = false;
  document.body.classList.add("opened");
  place("details").focus({ preventScroll: true });
}

function close() {
  place("details").hidden = true;
  document.body.classList.remove("opened");
  place("entries").focus({ preventScroll: true });
}

function select(found) {
  shown.selected = found;
  shown.isLive = false;
  shown.at = found.entry.at;
  due();
}

/** To the entry before or behind the selected one, of the chosen node or of all, as the list has them. */
async function step(by, movesOnly) {
  const logs = shown.chosen ? [shown.chosen] : shown.logs;
  const rules = { ...wanted(), movesOnly: movesOnly || wanted().movesOnly };
  if (by < 0) {
    for (let isLooking = true; isLooking; ) {
      const before = visible(logs, shown.at, rules, because);
      const index = before.findIndex((one) => shown.selected && one.entry === shown.selected.entry);
      if (before[index + 1]) return select(before[index + 1]);
      isLooking = (await loadAllOlder(logs)) > 0;
    }
    return;
  }
  const later = logs
    .flatMap((log) => log.entries.slice(Math.max(0, log.count(shown.at - 1)), log.count(shown.at) + 400).map((entry) => ({ log, entry })))
    .sort((a, b) => a.entry.at - b.entry.at);
  const index = later.findIndex((one) => shown.selected && one.entry === shown.selected.entry);
  const alike = later.slice(index + 1).find((one) => visible([one.log], one.entry.at, rules, because).some((v) => v.entry === one.entry));
  if (alike) select(alike);
}

/** Loads older entries of some logs; how many came. */
async function loadAllOlder(logs) {
  const counts = await Promise.all(logs.map((log) => loadOlder(log).catch(() => 0)));
  place("older").disabled = shown.logs.every((log) => log.isAtBegin);
  due();
  return counts.reduce((sum, count) => sum + count, 0);
}

function setLive(isLive) {
  shown.isLive = isLive;
  if (isLive) shown.selected = null;
  due();
}

const KEYS = {
  " ": () => setLive(!shown.isLive),
  ArrowLeft: (event) => step(-1, event.shiftKey),
  ArrowRight: (event) => step(1, event.shiftKey),
  Home: () => pointed(range().since, null),
  End: () => setLive(true),
  Enter: () => shown.found?.length && open(shown.selected ?? shown.found[0]),
  Escape: close,
  "/": () => place("filter").focus(),
  "?": () => toggleKeys(),
  0: () => choose(shown.chosen),
};

function toggleKeys() {
  place("keys").hidden = !place("keys").hidden;
  place("help").setAttribute("aria-expanded", String(!place("keys").hidden));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.matches("input[type=search], select, input[type=file]");
  if (isTyping && event.key !== "Escape") return;
  if (event.target.matches("button") && (event.key === " " || event.key === "Enter")) return;
  const act = KEYS[event.key] ?? (/^[1-9]$/.test(event.key) ? () => shown.logs[Number(event.key) - 1] && choose(shown.logs[Number(event.key) - 1]) : null);
  if (!act) return;
  event.preventDefault();
  if (isTyping) event.target.blur();
  act(event);
});

place("live").addEventListener("click", () => setLive(!shown.isLive));
place("help").addEventListener("click", toggleKeys);
place("window").addEventListener("change", due);
for (const id of ["filter", "moves", "routine"]) place(id).addEventListener("input", due);
place("scrubber").addEventListener("input", () => {
  const { since, until } = range();
  pointed(since + ((until - since) * Number(place("scrubber").value)) / STEPS, null);
});
place("older").addEventListener("click", () => loadAllOlder(shown.logs));
place("import").addEventListener("change", async (event) => {
  const { entries, doubts } = await opened(event.target.files);
  shown.isImported = true;
  shown.logs = [...entries].sort(([a], [b]) => a.localeCompare(b)).map(([name, found]) => {
    const log = new NodeLog(name);
    log.take(found);
    log.isAtBegin = true;
    return log;
  });
  Object.assign(shown, { doubts, chosen: null, selected: null, isLive: false, at: Math.max(0, ...shown.logs.map((log) => log.last?.at ?? 0)) });
  due();
});

// ---- the cluster --------------------------------------------------------------------------------------------------

async function findMembers() {
  if (shown.isImported) return;
  const { members, scope } = await fetch("/cluster").then((answer) => answer.json());
  place("scope").textContent = scope ?? "";
  for (const { name, api_url } of members ?? []) {
    if (shown.isImported || shown.logs.some((log) => log.name === name)) continue;
    const log = new NodeLog(name, new URL(api_url).origin);
    shown.logs.push(log);
    shown.logs.sort((a, b) => a.name.localeCompare(b.name));
    follow(log, () => !shown.isImported && due());
  }
}

async function begin() {
  try {
    table = await readMachine();
    because = new Map(table.rules.map((rule) => [rule.id, rule.because]));
    await findMembers();
  } catch (error) {
    show(place("summary"), element("strong", {}, `this agent does not answer: ${error.message}`));
    setTimeout(begin, MEMBERS_EVERY_MS);
    return;
  }
  due();
  setInterval(() => findMembers().catch(() => {}), MEMBERS_EVERY_MS);
  setInterval(() => shown.isLive && due(), 1000);
}

begin();
