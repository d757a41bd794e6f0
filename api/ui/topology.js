// Who leads and who follows at an instant, how far each is, and what is known of it.

import { element, show } from "./dom.js";
import { lsn, span } from "./model.js";

const STALE_MS = 15000;

/** Draws the nodes, the leader first. `choose(log)` when one is picked. */
export function drawTopology(parent, logs, at, chosen, choose) {
  const standings = logs.map((log) => ({ log, ...log.standing(at) }));
  const primaries = standings.filter((s) => s.probe && !s.probe.in_recovery && s.state === "leader");
  const head = Math.max(0, ...primaries.map((s) => s.position));
  standings.sort((a, b) => rank(a) - rank(b) || a.log.name.localeCompare(b.log.name));
  const sync = new Set(primaries.flatMap((s) => namesIn(s.probe.synchronous_standby_names ?? "")));
  show(parent, ...standings.map((standing) => card(standing, { head, sync, isChosen: chosen === standing.log, choose })));
  return primaries.map((s) => s.log.name);
}

function rank({ state }) {
  return state === "leader" ? 0 : state === null ? 2 : 1;
}

function namesIn(text) {
  return (text.match(/\(([^)]*)\)/)?.[1] ?? "").split(",").map((name) => name.trim().replace(/^"|"$/g, "")).filter(Boolean);
}

function card({ log, state, entry, probe, position, age }, { head, sync, isChosen, choose }) {
  const lag = probe?.in_recovery && head ? Math.max(0, head - position) : null;
  const facts = [
    probe ? `timeline ${probe.timeline} at ${lsn(position)}` : "no look at its server is known",
    probe?.in_recovery ? (probe.receiver_status ? `${probe.receiver_status}${probe.upstream_host ? ` from ${probe.upstream_host}` : ""}` : "does not stream") : null,
    lag === null ? null : `lag ${lag.toLocaleString("en")} bytes`,
    sync.has(log.name) ? "commits wait for it" : null,
    log.status || (age !== null && age > STALE_MS ? `nothing heard for ${span(age)}` : null),
  ].filter(Boolean);
  const part = probe && !probe.in_recovery ? "primary" : probe ? "standby" : "";
  return element(
    "button",
    { class: `node ${state ?? "unknown"}${isChosen ? " chosen" : ""}${log.status ? " silent" : ""}`, "aria-pressed": isChosen, click: () => choose(log) },
    element("b", {}, log.name),
    element("span", { class: "tag" }, state ?? "unknown"),
    part ? element("span", { class: "part" }, part) : null,
    ...facts.map((fact) => element("small", {}, fact)),
    entry ? element("small", { class: "soft" }, `#${entry.seq}`) : null,
  );
}
