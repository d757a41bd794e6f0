// Each node's states over time, with the instant that is shown.

import { drawn, show } from "./dom.js";
import { LETTERS, span } from "./model.js";

const WIDTH = 1100;
const LABEL = 90;
const ROW = 34;
const BAR = 24;
const TOP = 18;

/** Draws the lanes. `choose(at, log)` when somebody points at an instant of a node. */
export function drawLanes(parent, logs, { since, until, at, chosen, choose }) {
  const height = TOP + logs.length * ROW + 4;
  const x = (instant) => LABEL + ((instant - since) / Math.max(1, until - since)) * (WIDTH - LABEL);
  const svg = drawn("svg", { viewBox: `0 0 ${WIDTH} ${height}`, class: "lanes", role: "img", "aria-label": "states of each node over time" });
  for (let tick = 0; tick <= 5; tick++) {
    const instant = since + ((until - since) * tick) / 5;
    const label = tick === 5 ? timeOfDay(until) : tick === 0 ? timeOfDay(since) : `+${span(instant - since)}`;
    svg.append(drawn("text", { class: "soft", x: x(instant), y: 11, "text-anchor": tick === 5 ? "end" : "start" }, label));
  }
  logs.forEach((log, row) => svg.append(lane(log, TOP + row * ROW, { x, since, until, isChosen: !chosen || chosen === log })));
  svg.append(drawn("line", { class: "now", x1: x(at), x2: x(at), y1: TOP - 4, y2: height }));
  svg.addEventListener("click", (event) => {
    const box = svg.getBoundingClientRect();
    const share = (((event.clientX - box.left) / box.width) * WIDTH - LABEL) / (WIDTH - LABEL);
    const row = Math.floor((((event.clientY - box.top) / box.height) * height - TOP) / ROW);
    if (share >= 0) choose(since + share * (until - since), logs[Math.min(Math.max(row, 0), logs.length - 1)]);
  });
  show(parent, svg);
}

function lane(log, top, { x, since, until, isChosen }) {
  const group = drawn("g", { class: isChosen ? "" : "faint" });
  group.append(drawn("text", { x: 0, y: top + 16 }, log.name.slice(0, 12)));
  for (const found of log.lanes(since, until)) {
    const left = x(Math.max(found.since, since));
    const width = Math.max(1.5, x(Math.min(found.until, until)) - left);
    const told = `${log.name} ${found.state} for ${span(found.until - found.since)}${found.entry.rule ? `, by ${found.entry.rule}` : ""}`;
    group.append(drawn("rect", { class: `state ${found.state}`, x: left, y: top, width, height: BAR }, drawn("title", {}, told)));
    const label = width > 100 ? found.state : width > 12 ? LETTERS[found.state] ?? "?" : "";
    if (label) group.append(drawn("text", { class: `on ${found.state}`, x: left + 4, y: top + 16 }, label));
  }
  return group;
}

export function timeOfDay(at) {
  return new Date(at).toISOString().slice(11, 23);
}
