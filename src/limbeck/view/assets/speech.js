// What a turn says, in its parts: text, code, thinking, calls of tools and their results.
import { el } from "./dom.js";

// [opening, closing, kind]. What is opened and not closed goes to the end.
const FENCES = [
  ["<think>", "</think>", "thinking"], ["<|think|>", "<|/think|>", "thinking"], ["[THINK]", "[/THINK]", "thinking"],
  ["<tool_call>", "</tool_call>", "call"], ["<function_call>", "</function_call>", "call"], ["<|python_tag|>", "<|eom_id|>", "call"],
  ["[TOOL_CALLS]", "</s>", "call"], ["<tool_response>", "</tool_response>", "result"], ["[TOOL_RESULTS]", "[/TOOL_RESULTS]", "result"],
  ["```", "```", "code"],
];
const FOLDED = 14;  // lines that are shown of a text that has some more

// [{ kind: "text" | "code" | "thinking" | "call" | "result", text, calls }]
export function partsOf(text) {
  const parts = [];
  const closing = text.indexOf("</think>");  // of a thought that the template has opened
  if (closing >= 0 && !text.slice(0, closing).includes("<think>")) {
    parts.push({ kind: "thinking", text: text.slice(0, closing).trim() });
    text = text.slice(closing + "</think>".length);
  }
  while (text) {
    const [at, fence] = nextFence(text);
    if (!fence) break;
    const [opening, ending, kind] = fence;
    const end = text.indexOf(ending, at + opening.length);
    if (text.slice(0, at).trim()) parts.push({ kind: "text", text: text.slice(0, at).trim() });
    const inner = text.slice(at + opening.length, end < 0 ? text.length : end).trim();
    parts.push({ kind, text: inner, ...(kind === "call" && { calls: callsIn(inner) }) });
    text = end < 0 ? "" : text.slice(end + ending.length);
  }
  if (text.trim()) {
    const calls = text.trim().startsWith("{") ? callsIn(text) : null;  // Llama 3 says nothing but the call
    parts.push(calls ? { kind: "call", text: text.trim(), calls } : { kind: "text", text: text.trim() });
  }
  return parts;
}

function nextFence(text) {
  let best = [Infinity, null];
  for (const fence of FENCES) {
    const at = text.indexOf(fence[0]);
    if (at >= 0 && at < best[0]) best = [at, fence];
  }
  return best;
}

// [[name, [[argument, value]]]] of calls in JSON or in Qwen's XML; null for what is neither.
function callsIn(text) {
  const xml = [...text.matchAll(/<function=([^>]+)>([\s\S]*?)(?:<\/function>|$)/g)];
  if (xml.length) return xml.map(([, name, body]) => [name.trim(), [...body.matchAll(/<parameter=([^>]+)>([\s\S]*?)(?:<\/parameter>|$)/g)].map(([, key, value]) => [key.trim(), value.trim()])]);
  let value;
  try {
    value = JSON.parse(text);
  } catch {
    return null;
  }
  const calls = (Array.isArray(value) ? value : [value]).map((call) => call?.function ?? call);
  if (!calls.length || !calls.every((call) => typeof call?.name === "string")) return null;
  return calls.map((call) => [call.name, argumentsOf(call.arguments ?? call.parameters ?? {})]);
}

function argumentsOf(given) {
  if (typeof given === "string") {
    try {
      given = JSON.parse(given);
    } catch {
      return [["", given]];
    }
  }
  if (given === null || typeof given !== "object" || Array.isArray(given)) return [["", JSON.stringify(given)]];
  return Object.entries(given).map(([key, value]) => [key, typeof value === "string" ? value : JSON.stringify(value)]);
}

// `lines`: how many are shown of a long text.
export function speechNodes(text, lines = FOLDED) {
  const parts = partsOf(text);
  return parts.length ? parts.map((part) => partNode(part, lines)) : [el("p", { class: "hint" }, "empty")];
}

function partNode({ kind, text, calls }, shown) {
  if (kind === "thinking") return el("details", { class: "thinking", open: text.length < 1500 }, el("summary", {}, "thinking"), el("pre", {}, text));
  if (kind === "call" && calls) return el("div", {}, calls.map(callNode));
  if (kind === "call") return el("div", { class: "call broken" }, el("b", {}, "a call that cannot be read"), el("pre", {}, text));
  if (kind === "code") return el("pre", { class: "code" }, text.replace(/^[\w+-]*\n/, ""));
  if (kind === "result") return el("div", { class: "call result" }, el("b", {}, "result"), foldable(text, shown));
  return foldable(text, shown);
}

function callNode([name, given]) {
  return el("div", { class: "call" }, el("b", {}, "calls ", el("code", {}, name)),
    given.length > 0 && el("dl", {}, given.map(([key, value]) => el("div", {}, el("dt", {}, key), el("dd", {}, value)))));
}

// Text whose beginning is shown, and the rest where it is asked for.
export function foldable(text, shown = FOLDED) {
  const lines = text.split("\n"), long = lines.length > shown + 4;
  const cut = long ? lines.slice(0, shown).join("\n") : text.length > 200 * shown ? text.slice(0, 160 * shown) : null;
  if (cut === null) return el("pre", {}, text);
  const pre = el("pre", {}, cut), more = long ? `${lines.length - shown} more lines` : `${text.length - cut.length} more characters`;
  const button = el("button", { type: "button", class: "more-text", "aria-expanded": "false", onclick: () => {
    const open = button.getAttribute("aria-expanded") === "false";
    button.setAttribute("aria-expanded", open);
    pre.replaceChildren(el("span", {}, open ? text : cut));
    button.textContent = open ? "Show less" : `Show ${more}`;
  } }, `Show ${more}`);
  return el("div", { class: "folded" }, pre, button);
}
