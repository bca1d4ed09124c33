// What differs between two texts, word by word.
import { el } from "./dom.js";

// A word is a run of letters and digits, one letter of a script that puts no blanks between its words, a run of blanks, or
// any other character.
const WORD = /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}\p{Script=Thai}]|[\p{L}\p{M}\p{N}_]+|\s+|[^\s]/gu;
const LINE = /[^\n]*\n|[^\n]+/g;
const MOST = 4e6;  // pairs of words that are compared one by one; what is longer is compared by lines first

// [["same" | "gone" | "new", text]]: "same" and "gone" end to end are `before`, "same" and "new" are `after`.
export function diffWords(before, after) {
  const [a, b] = [before, after].map((text) => text.match(WORD) ?? []);
  const parts = a.length * b.length <= MOST ? aligned(a, b)
    : hunks(aligned(before.match(LINE) ?? [], after.match(LINE) ?? []));
  return joined(parts);
}

// Two lists of pieces: what they share at both ends, and between by the longest common subsequence.
function aligned(a, b) {
  let start = 0, end = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  return [...a.slice(0, start).map((text) => ["same", text]), ...between(a.slice(start, a.length - end), b.slice(start, b.length - end)),
    ...a.slice(a.length - end).map((text) => ["same", text])];
}

function between(a, b) {
  if (a.length * b.length > MOST) return [["gone", a.join("")], ["new", b.join("")]];
  const width = b.length + 1;
  const length = new Uint32Array((a.length + 1) * width);  // of the longest common subsequence of a[i:] and b[j:]
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      length[i * width + j] = a[i] === b[j] ? length[(i + 1) * width + j + 1] + 1 : Math.max(length[(i + 1) * width + j], length[i * width + j + 1]);
    }
  }
  const parts = [];
  for (let i = 0, j = 0; i < a.length || j < b.length;) {
    if (i < a.length && j < b.length && a[i] === b[j]) { parts.push(["same", a[i]]); i += 1; j += 1; }
    else if (j >= b.length || (i < a.length && length[(i + 1) * width + j] >= length[i * width + j + 1])) { parts.push(["gone", a[i]]); i += 1; }
    else { parts.push(["new", b[j]]); j += 1; }
  }
  return parts;
}

// Lines that took each other's place, word by word.
function hunks(lines) {
  return joined(lines).flatMap((part, i, all) => {
    const [gone, next] = [part, all[i + 1]];
    if (part[0] === "new" && all[i - 1]?.[0] === "gone") return [];
    if (part[0] !== "gone" || next?.[0] !== "new") return [part];
    return aligned(gone[1].match(WORD) ?? [], next[1].match(WORD) ?? []);
  });
}

// Neighbours of one kind as one; of what took each other's place, what is gone first. A lone blank between two changes is
// part of them: words that were replaced one after the other read better whole.
function joined(parts) {
  const out = [];
  let gone = "", fresh = "";
  const flush = () => {
    if (gone) out.push(["gone", gone]);
    if (fresh) out.push(["new", fresh]);
    gone = fresh = "";
  };
  parts.forEach(([kind, text], i) => {
    if (kind === "gone") gone += text;
    else if (kind === "new") fresh += text;
    else if (gone && fresh && /^ +$/.test(text) && parts[i + 1] && parts[i + 1][0] !== "same") { gone += text; fresh += text; }
    else {
      flush();
      if (out.at(-1)?.[0] === "same") out.at(-1)[1] += text;
      else out.push(["same", text]);
    }
  });
  flush();
  return out;
}

// A side of a difference as elements: "before" has what is gone, "after" what is new, "both" all of it.
export function wordNodes(parts, side) {
  return parts.filter(([kind]) => kind === "same" || side === "both" || (kind === "gone") === (side === "before"))
    .map(([kind, text]) => (kind === "same" ? el("span", {}, text) : el(kind === "gone" ? "del" : "ins", {}, text)));
}
