// Right, wrong, or a reward between: as a sign for the eyes and a word for the ears.
import { el } from "./dom.js";
import { num } from "./format.js";

export function grade(row) {
  if (row.reward === null || row.reward === undefined) return el("span", { class: "grade" }, "");
  const right = row.reward >= 1, sign = { 0: "✗", 1: "✓" }[row.reward] ?? num(row.reward, 2);
  return el("span", { class: `grade ${right ? "right" : "wrong"}`, title: `reward ${row.reward}` }, sign, el("span", { class: "hidden" }, right ? " right" : " wrong"));
}
