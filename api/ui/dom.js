// Elements made of text: nothing here or elsewhere on this page reads markup out of a log.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; a child that is no node becomes text. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same of SVG. */
export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (name.startsWith("aria-")) made.setAttribute(name, String(value)); // false says something there
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...asChildren(children));
  return made;
}

function asChildren(children) {
  return children
    .filter((child) => child !== null && child !== undefined)
    .map((child) => (child instanceof Node ? child : printable(String(child))));
}

/** Text with nothing in it that hides or turns what follows. */
export function printable(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Co}\p{Zl}\p{Zp}]/gu, (one) => (one === "\n" ? one : "\uFFFD"));
}

/** Replaces what an element holds. */
export function show(parent, ...children) {
  parent.replaceChildren(...asChildren(children));
}
