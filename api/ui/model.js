// What is known of the nodes by their logs: no network, no document.

export const STATES = ["bootstrapping", "replica", "candidate", "leader", "rewinding", "reinit"];
export const LETTERS = { bootstrapping: "B", replica: "R", candidate: "C", leader: "L", rewinding: "W", reinit: "I" };
const ROUTINE = new Set(["ServerProbed", "Ticked", "ServerSilent", "DiskLooked"]);
export const KEPT_MAX = 20000;

/** One node's log, as much of it as was loaded: entries by their number, without gaps in between. */
export class NodeLog {
  constructor(name, url = null) {
    this.name = name;
    this.url = url;
    this.entries = [];
    this.status = "";
    this.isAtBegin = false;
  }

  get first() {
    return this.entries[0];
  }

  get last() {
    return this.entries[this.entries.length - 1];
  }

  /** Takes entries in any order; those that are known already are passed over. */
  take(found) {
    const fresh = found.filter((entry) => Number.isSafeInteger(entry?.seq) && typeof entry.event?.event === "string");
    for (const entry of fresh) entry.at = Date.parse(entry.wall);
    const newer = fresh.filter((entry) => !this.last || entry.seq > this.last.seq);
    const older = fresh.filter((entry) => this.first && entry.seq < this.first.seq);
    newer.sort((a, b) => a.seq - b.seq);
    older.sort((a, b) => a.seq - b.seq);
    this.entries = older.length ? [...older, ...this.entries, ...newer] : this.entries;
    if (!older.length) this.entries.push(...newer);
    if (this.entries.length > KEPT_MAX && !older.length) this.entries.splice(0, this.entries.length - KEPT_MAX);
    return newer.length + older.length;
  }

  /** The number of entries made at or before an instant. */
  count(at) {
    let low = 0;
    let high = this.entries.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.entries[middle].at <= at) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /** How the node stood at an instant: its state, and the last look at its server. */
  standing(at) {
    const count = this.count(at);
    const newest = this.entries[count - 1];
    let probe = null;
    for (let i = count - 1; i >= 0 && i > count - 400; i--) {
      const { event } = this.entries[i];
      if (event.event === "ServerExited") break;
      if (event.event === "ServerProbed") {
        probe = event.probe;
        break;
      }
    }
    return { entry: newest, state: newest?.after ?? null, probe, position: position(probe), age: newest ? at - newest.at : null };
  }

  /** The states one after another within two instants. */
  lanes(since, until) {
    const lanes = [];
    let first = Math.max(0, this.count(since) - 1);
    for (let i = first; i < this.entries.length && this.entries[i].at <= until; i++) {
      const entry = this.entries[i];
      const last = lanes[lanes.length - 1];
      // Between an agent's last entry and the next one's first nobody knows in which state the node was.
      const isNewAgent = entry.event.event === "AgentStarted";
      if (last && last.state === entry.after && !isNewAgent) last.until = entry.at;
      else {
        if (last && !isNewAgent) last.until = entry.at;
        lanes.push({ state: entry.after, since: entry.at, until: entry.at, entry });
      }
    }
    return lanes;
  }

  /** How often each rule moved the node up to an instant. */
  moves(at) {
    const counts = new Map();
    for (let i = 0, n = this.count(at); i < n; i++) {
      const { rule } = this.entries[i];
      if (rule) counts.set(rule, (counts.get(rule) ?? 0) + 1);
    }
    return counts;
  }
}

function position(probe) {
  if (!probe) return 0;
  return Math.max(probe.flushed_lsn ?? 0, probe.received_lsn ?? 0, probe.replayed_lsn ?? 0);
}

/** True for a look or a tick that led to nothing. */
export function isRoutine(entry) {
  return ROUTINE.has(entry.event.event) && !entry.rule && !(entry.effects ?? []).length;
}

/** What was observed, in a few words. */
export function seen(entry) {
  const { event } = entry;
  switch (event.event) {
    case "ServerProbed":
      return event.probe?.in_recovery
        ? `standby on timeline ${event.probe.timeline} at ${lsn(position(event.probe))}, ${event.probe.receiver_status ?? "not streaming"}`
        : `primary on timeline ${event.probe?.timeline} at ${lsn(position(event.probe))}`;
    case "ServerExited":
      return `server ${event.pid} gone (${event.fired ? "killed by the fence at its deadline" : event.signal ? `signal ${event.signal}` : `status ${event.status}`})`;
    case "KeysChanged":
      return `etcd r${event.revision}: ${(event.changes ?? []).map((c) => c.key + (c.value === null || c.value === undefined ? " deleted" : "")).join(", ")}`;
    case "Succeeded":
      return `${event.duty} done`;
    case "Failed":
      return `${event.duty} failed (${event.kind}): ${event.detail}`;
    case "Unknown":
      return `${event.duty}: nobody knows (${event.detail})`;
    default:
      return [event.event, event.detail ?? event.reason ?? ""].join(" ").trim();
  }
}

/** What followed. */
export function decided(entry, because) {
  const parts = [];
  if (entry.rule) parts.push(`${entry.rule} ${entry.before} → ${entry.after}: ${because.get(entry.rule) ?? "a rule of another table"}`);
  const effects = entry.effects ?? [];
  if (effects.length) parts.push(`do ${effects.map((issued) => issued.duty).join(", ")}`);
  return parts.join("; ");
}

/** A position as PostgreSQL writes it. */
export function lsn(value) {
  const high = Math.floor(value / 2 ** 32);
  return `${high.toString(16).toUpperCase()}/${(value % 2 ** 32).toString(16).toUpperCase()}`;
}

/** A span as people say it. */
export function span(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 120000) return `${(ms / 1000).toFixed(1)} s`;
  const minutes = Math.floor(ms / 60000);
  return minutes < 120 ? `${minutes} min ${Math.round((ms % 60000) / 1000)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}
