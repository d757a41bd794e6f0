// Where logs come from: the agents, live and page by page; files that somebody opens.

const PAGE = 1000; // the most that an agent gives at once
const RETRY_MS = 1000;
const DECODER = new TextDecoder();

/** Reads an agent's newest entries, then follows them. `told(log)` after each change. */
export async function follow(log, told) {
  let after = 0;
  for (;;) {
    try {
      const found = await page(log, `limit=${PAGE}`);
      log.take(found);
      log.isAtBegin = found.length < PAGE;
      log.status = "";
      told(log);
      after = log.last?.seq ?? 0;
      break;
    } catch (error) {
      log.status = `does not answer (${error.message})`;
      told(log);
      await new Promise((wake) => setTimeout(wake, RETRY_MS));
    }
  }
  const stream = new EventSource(`${log.url}/log/stream?after=${after}`);
  stream.onmessage = (message) => {
    log.status = "";
    log.take([JSON.parse(message.data)]);
    told(log);
  };
  stream.onopen = () => {
    log.status = "";
    told(log);
  };
  stream.onerror = () => {
    log.status = "does not answer";
    told(log);
  };
}

async function page(log, query) {
  const answer = await fetch(`${log.url}/log?${query}`);
  if (!answer.ok) throw new Error(`${answer.status}: ${await answer.text()}`);
  return answer.json();
}

/** Older entries than those that are loaded; how many came. */
export async function loadOlder(log) {
  if (!log.url || !log.first || log.isAtBegin) return 0;
  const found = await page(log, `before=${log.first.seq}&limit=${PAGE}`);
  log.isAtBegin = found.length === 0;
  return log.take(found);
}

/** Bodies of entries, by node, out of tars and segments; what could not be read is told. */
export async function opened(files) {
  const entries = new Map();
  const doubts = [];
  for (const file of files) {
    const bytes = new Uint8Array(await file.arrayBuffer());
    const segments = isTar(bytes) ? [...members(bytes, file.name, doubts)] : [{ name: file.name, bytes }];
    if (!segments.length) doubts.push(`${file.name}: no log segments in it`);
    for (const segment of segments) takeSegment(segment, entries, doubts);
  }
  return { entries, doubts };
}

function isTar(bytes) {
  return bytes.length > 262 && DECODER.decode(bytes.subarray(257, 262)) === "ustar";
}

function* members(bytes, source, doubts) {
  let at = 0;
  while (at + 512 <= bytes.length && bytes[at] !== 0) {
    const name = DECODER.decode(bytes.subarray(at, at + 100)).replace(/\0.*$/s, "");
    const size = parseInt(DECODER.decode(bytes.subarray(at + 124, at + 136)).replace(/\0.*$/s, "").trim() || "0", 8);
    const type = bytes[at + 156];
    at += 512;
    if (!Number.isSafeInteger(size) || size < 0 || at + size > bytes.length) {
      doubts.push(`${source}: the tar ends in the middle of ${name}`);
      return;
    }
    if ((type === 48 || type === 0) && /(^|\/)\d{12}\.jsonl$/.test(name)) yield { name, bytes: bytes.subarray(at, at + size) };
    at += Math.ceil(size / 512) * 512;
  }
}

function takeSegment({ name, bytes }, entries, doubts) {
  let broken = 0;
  for (const line of DECODER.decode(bytes).split("\n")) {
    if (!line) continue;
    try {
      const found = JSON.parse(line);
      if (found.snapshot) continue;
      const entry = found.entry;
      if (!entry || typeof entry.node !== "string" || typeof entry.event?.event !== "string") throw new Error("no entry");
      if (!entries.has(entry.node)) entries.set(entry.node, []);
      entries.get(entry.node).push(entry);
    } catch {
      broken += 1;
    }
  }
  if (broken) doubts.push(`${name}: ${broken} ${broken === 1 ? "line is" : "lines are"} no entry and left out; matriarch replay tells more`);
}
