// The state machine of a node: the table's own drawing, the present state lit, each rule with how often it moved the node.

import { drawn, element, show } from "./dom.js";

let table = null;
let picture = null;

/** Reads the table and its drawing from the agent that serves this page. */
export async function readMachine() {
  [table, picture] = await Promise.all([
    fetch("/fsm").then((answer) => answer.json()),
    fetch("/ui/fsm.svg").then((answer) => answer.text()),
  ]);
  return table;
}

/** Draws one machine for each node. */
export function drawMachines(parent, logs, at) {
  while (parent.children.length > logs.length) parent.lastChild.remove();
  logs.forEach((log, number) => {
    const figure = parent.children[number] ?? parent.appendChild(element("figure", { class: "machine" }, element("figcaption"), newPicture()));
    const { state, entry } = log.standing(at);
    const counts = log.moves(at);
    const shown = `${log.name}|${state}|${entry?.rule}|${[...counts].flat()}`;
    if (figure.dataset.shown === shown) return;
    figure.dataset.shown = shown;
    show(figure.querySelector("figcaption"), element("b", {}, log.name), ` ${state ?? "unknown"}`);
    light(figure.querySelector("svg"), state, counts);
  });
}

function newPicture() {
  const read = new DOMParser().parseFromString(picture, "image/svg+xml").documentElement;
  const made = document.importNode(read, true);
  made.setAttribute("role", "img");
  return made;
}

function light(svg, state, counts) {
  for (const box of svg.querySelectorAll("[data-state]")) {
    const isLit = box.dataset.state === state;
    box.querySelector("rect").classList.toggle("lit", isLit);
    for (const text of box.querySelectorAll("text")) text.classList.toggle("on-lit", isLit);
  }
  for (const chip of svg.querySelectorAll("[data-rule]")) {
    const count = counts.get(chip.dataset.rule) ?? 0;
    chip.classList.toggle("never", count === 0);
    chip.querySelector(".count")?.remove();
    if (count) {
      const rect = chip.querySelector("rect");
      const x = Number(rect.getAttribute("x")) + Number(rect.getAttribute("width"));
      chip.append(drawn("text", { class: "count", x, y: Number(rect.getAttribute("y")) - 2, "text-anchor": "end" }, `${count}×`));
    }
  }
  svg.setAttribute("aria-label", `${state ?? "unknown"}; moves: ${[...counts].map(([rule, count]) => `${rule} ${count}`).join(", ") || "none"}`);
}
