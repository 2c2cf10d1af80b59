// An answer's text as elements: code blocks, inline code, bold. Never as HTML, so nothing in it can run.

const FENCE = /```([^\n`]*)\n([\s\S]*?)(?:\n```|$)/g;
const INLINE = /`([^`\n]+)`|\*\*([^*\n]+)\*\*/g;

export function showText(element, text) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(FENCE)) {
    addInline(parts, text.slice(end, match.index).replace(/\n$/, ""));
    const code = document.createElement("code");
    code.textContent = match[2];
    const block = document.createElement("pre");
    block.tabIndex = 0; // scrolls sideways, with the keyboard too
    block.append(code);
    parts.push(block);
    end = match.index + match[0].length;
    if (text[end] === "\n") end += 1;
  }
  addInline(parts, text.slice(end));
  element.replaceChildren(...parts);
}

function addInline(parts, text) {
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > end) parts.push(text.slice(end, match.index));
    const element = document.createElement(match[1] === undefined ? "strong" : "code");
    element.textContent = match[1] ?? match[2];
    parts.push(element);
    end = match.index + match[0].length;
  }
  if (end < text.length) parts.push(text.slice(end));
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

// 12,345 or, below ten and not whole, 3.4.
export function number(value) {
  return Number.isInteger(value) || value >= 9.95 ? whole.format(value) : tenth.format(value);
}

// 0.42 s, 38 ms.
export function duration(milliseconds) {
  return milliseconds < 999.5 ? `${whole.format(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
}

export function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
