// The list of entries around the instant that is shown, and one entry opened.

import { element, show } from "./dom.js";
import { decided, isRoutine, seen, span } from "./model.js";
import { timeOfDay } from "./lanes.js";

const SHOWN = 60;
const LOOKED_AT = 6000;

/** The entries that are shown: the newest at or before an instant, of one node or of all, as chosen. */
export function visible(logs, at, { words, movesOnly, withRoutine }, because) {
  const found = [];
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const places = logs.map((log) => ({ log, next: log.count(at) - 1 }));
  for (let looked = 0; found.length < SHOWN && looked < LOOKED_AT; looked++) {
    let newest = null;
    for (const place of places) {
      const entry = place.log.entries[place.next];
      if (entry && (!newest || entry.at > newest.log.entries[newest.next].at)) newest = place;
    }
    if (!newest) break;
    const entry = newest.log.entries[newest.next--];
    if (movesOnly ? !entry.rule : !withRoutine && isRoutine(entry)) continue;
    if (wanted.length && !matches(entry, newest.log.name, wanted, because)) continue;
    found.push({ log: newest.log, entry });
  }
  return found;
}

function matches(entry, name, wanted, because) {
  const text = `${name} ${entry.seq} ${entry.after} ${entry.event.event} ${seen(entry)} ${decided(entry, because)}`.toLowerCase();
  return wanted.every((word) => text.includes(word));
}

/** Draws the list. `open(found)` when one is picked. */
export function drawEntries(parent, found, selected, because, open) {
  const rows = found.map(({ log, entry }) => {
    const isSelected = selected !== null && selected.log === log && selected.entry === entry;
    const did = decided(entry, because);
    return element(
      "li",
      { role: "option", id: rowId(log, entry), "aria-selected": isSelected, class: entry.rule ? "move" : "", click: () => open({ log, entry }) },
      element("time", {}, timeOfDay(entry.at)),
      element("b", {}, log.name),
      element("span", { class: `tag ${entry.after}` }, entry.after),
      element("span", { class: "seen" }, seen(entry)),
      did ? element("span", { class: "did" }, did) : null,
    );
  });
  show(parent, ...(rows.length ? rows : [element("li", { class: "soft" }, "no entry is like that")]));
  if (selected) parent.setAttribute("aria-activedescendant", rowId(selected.log, selected.entry));
  else parent.removeAttribute("aria-activedescendant");
}

function rowId(log, entry) {
  return `entry-${[...log.name].map((one) => one.codePointAt(0).toString(16)).join("")}-${entry.seq}`;
}

/** Opens an entry: its rule, guards, inputs, effects and what became of them. */
export function drawDetails(parent, { log, entry }, table, { close, jump }) {
  const rule = table.rules.find((one) => one.id === entry.rule);
  const cause = entry.cause === undefined || entry.cause === null ? null : log.entries.find((one) => one.seq === entry.cause);
  const outcomes = new Map(
    log.entries.filter((one) => one.cause === entry.seq).map((one) => [one.event.effect_id, one]),
  );
  const link = (found, text) => element("button", { class: "link", click: () => jump({ log, entry: found }) }, text);
  show(
    parent,
    element("button", { class: "close", click: close, "aria-label": "close" }, "×"),
    element("h2", {}, `${log.name}#${entry.seq}`),
    element("p", {}, element("time", {}, entry.wall), ` · ${entry.before} → ${entry.after} · etcd r${entry.revision}`),
    element("h3", {}, "Seen"),
    element("p", {}, seen(entry)),
    cause ? element("p", {}, "It answers what was ordered in ", link(cause, `#${cause.seq}`), `, ${span(entry.at - cause.at)} before.`) : null,
    element("h3", {}, "Rule"),
    ...(entry.rule
      ? [
          element("p", {}, `${entry.rule}: ${rule?.because ?? "a rule of another table"}`),
          element("ul", {}, ...(rule?.guards ?? []).map((guard) => element("li", {}, guard.says, " ", element("code", {}, guard.name)))),
        ]
      : [element("p", {}, "The node stayed in its state.")]),
    element("h3", {}, "Effects"),
    (entry.effects ?? []).length
      ? element("ul", {}, ...entry.effects.map((issued) => effect(issued, outcomes.get(issued.effect_id), entry, link, table)))
      : element("p", {}, "none"),
    (entry.cancelled ?? []).length ? element("p", {}, `Given up: ${entry.cancelled.join(", ")}`) : null,
    element("h3", {}, "As it was written"),
    element("pre", {}, JSON.stringify(entry, (key, value) => (key === "at" ? undefined : value), 2)),
  );
}

function effect(issued, outcome, entry, link, table) {
  const duty = table.duties.find((one) => one.id === issued.duty);
  return element(
    "li",
    {},
    element("b", {}, issued.duty),
    ` (${issued.effect?.effect})`,
    duty ? element("small", {}, `: ${duty.because}`) : null,
    outcome ? element("span", {}, " — ", link(outcome, `${outcome.event.event} after ${span(outcome.at - entry.at)}`)) : element("i", {}, " — no outcome is loaded"),
  );
}
