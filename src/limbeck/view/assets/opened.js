// One prompt of an evaluation, opened: its answers in full, before and after side by side with the words that differ.
import { el, segments } from "./dom.js";
import { whole } from "./format.js";
import { grade } from "./grade.js";
import { source } from "./source.js";
import { foldable, speechNodes } from "./speech.js";
import { diffWords, wordNodes } from "./words.js";

// `item`: its samples `after`, and `before` where two evaluations are compared. `chosen`: which these are.
export function openedAnswer(item, chosen) {
  const node = el("div", { class: "opened" }, el("p", { class: "hint" }, "Reading…"));
  const show = (sample) => readSample(item, chosen, sample).then((found) => drawOpened(node, item, chosen, sample, found, show), (error) => node.replaceChildren(el("p", { class: "problem" }, error.message)));
  show(0);
  return node;
}

// [before, after] of a sample, in full; undefined where that side has none.
function readSample(item, { run, other, after, before }, sample) {
  const one = (r, step, row) => (row ? source.answer(r.id, step, row.number) : undefined);
  return Promise.all([one(other, before, item.before?.[sample]), one(run, after, item.after[sample])]);
}

function drawOpened(node, item, { run, other, after, before }, sample, [first, second], show) {
  const asked = second ?? first, count = Math.max(item.after.length, item.before?.length ?? 0);
  const sideName = (r, step) => (run === other ? `step ${step}` : `${r.id}, step ${step}`);
  node.replaceChildren(
    el("div", { class: "opened-prompt" }, el("h4", {}, "Prompt"), foldable(asked.prompt || asked.question),
      asked.answer && el("p", {}, el("span", { class: "hint" }, "Right answer "), el("code", {}, asked.answer))),
    count > 1 ? el("div", { class: "row-of-fields" }, segments("Sample", Array.from({ length: Math.min(count, 32) }, (_, i) => [String(i), String(i + 1)]), String(sample), (value) => show(Number(value))), el("span", { class: "hint" }, `of ${whole(count)} samples`)) : "",
    item.before ? el("div", { class: "two" }, answerSide(`Before: ${sideName(other, before)}`, first, second, "before"), answerSide(`After: ${sideName(run, after)}`, second, first, "after"))
      : el("div", { class: "two alone" }, answerSide(sideName(run, after), second, null, "after")));
}

function answerSide(name, row, against, which) {
  if (!row) return el("section", { class: "half" }, el("h4", {}, name), el("p", { class: "hint" }, "No such sample."));
  const facts = [row.tokens !== null && `${whole(row.tokens)} tokens`, row.finish === "length" && "cut at max_tokens"].filter(Boolean).join(", ");
  return el("section", { class: `half ${which}` }, el("h4", {}, name, grade(row), el("span", { class: "hint" }, facts)), turnsOfAnswer(row).map((turn, i) => {
    const other = against && turnsOfAnswer(against)[i], text = turn.text;
    const body = !against ? speechNodes(text) : el("pre", { class: "words" }, wordNodes(which === "before" ? diffWords(text, other?.text ?? "") : diffWords(other?.text ?? "", text), which));
    return el("div", { class: `turn ${turn.role === "student" ? "said" : "asked"}` }, turn.role && el("h4", { class: "role" }, turn.role), body);
  }), against && row.response === against.response && el("p", { class: "hint" }, "The same text."));
}

// The turns of an answer; of a single one, the response without a role.
const turnsOfAnswer = (row) => (row.turns.length ? row.turns : [{ role: "", text: row.response }]);
