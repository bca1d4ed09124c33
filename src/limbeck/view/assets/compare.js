// The same prompt at several steps, or in several runs, one response under the other: as words that differ, or as tokens.
import { address } from "./address.js";
import { transcript } from "./conversation.js";
import { el, segments } from "./dom.js";
import { tokenFlow } from "./flow.js";
import { num } from "./format.js";
import { grade } from "./grade.js";
import { asksTheSame } from "./paired.js";
import { store } from "./store.js";
import { areMixed, nameOfT } from "./temperature.js";
import { diffWords, wordNodes } from "./words.js";

const MOST_RUNS = 12;

// [[run, row]] of the other shown runs that have the prompt, or of all where no other is shown: of each the rollout of the nearest step.
export async function otherRuns(run, row) {
  const all = store.runs.filter((other) => other !== run), shown = all.filter((other) => other.shown);
  const others = (shown.length ? shown : all).slice(0, MOST_RUNS - 1);
  await Promise.all(others.filter((other) => !other.rolloutsAsked).map((other) => other.attempt(other.readRollouts)));
  store.tell("problems");
  return others.flatMap((other) => {
    const rows = other.rows.filter((r) => r.prompt_id === row.prompt_id && asksTheSame(r, row) && r.source === row.source && (r.sample ?? 0) === (row.sample ?? 0) && (r.segment ?? 0) === (row.segment ?? 0));
    const nearest = rows.sort((a, b) => Math.abs(a.step - row.step) - Math.abs(b.step - row.step))[0];
    return nearest ? [[other, nearest]] : [];
  });
}

// `tools()` gives what colours tokens; `set(key, value)` keeps a choice and draws again.
export function comparison(rollouts, what, tools, set) {
  const words = address.get("samples.as", "words") === "words";
  const look = { what, apart: areMixed(rollouts.map((r) => r.temperature ?? null)), dots: new Set(rollouts.map((r) => r.run.colour)).size === rollouts.length };
  const pick = segments("Compare as", [["words", "Words that differ"], ["tokens", "Tokens"]], words ? "words" : "tokens", (value) => set("samples.as", value));
  if (words) return [el("div", { class: "measures" }, pick, el("p", { class: "hint" }, basisOf(what))), ...inWords(rollouts, look)];
  const { which, scale, bar } = tools();
  return [el("div", { class: "measures" }, pick), bar, ...rollouts.map((r) => version(r, look, tokenFlow(r, which, scale, `Response at step ${r.step}${what === "runs" ? ` of ${r.run.id}` : ""}`)))];
}

const basisOf = (what) => (what === "runs" ? "Each differs from the first: struck out is what the first has instead." : "Each differs from the one above: struck out is what that one had instead.");

function inWords(rollouts, look) {
  const { what } = look;
  const texts = rollouts.map(transcript);
  return rollouts.map((r, i) => {
    const base = what === "runs" ? texts[0] : texts[i - 1];
    const said = i === 0 ? [el("span", {}, texts[0])] : base === texts[i] ? [el("span", {}, texts[i]), el("em", { class: "hint" }, "the same")] : wordNodes(diffWords(base, texts[i]), "both");
    return version(r, look, el("div", { class: "words" }, said));
  });
}

// `apart`: they are at different temperatures, and each says its own. `dots`: the runs have colours that tell them apart.
function version(r, { what, apart, dots }, body) {
  const step = `step ${r.step}`;
  const name = what === "runs" ? [dots && el("i", { class: "dot", vars: { "--ink": `var(${r.run.colour})` } }), el("b", {}, r.run.id), el("span", {}, step)] : [el("b", {}, step)];
  return el("section", { class: `version ${what}` },
    el("h3", {}, name, el("span", {}, `KL ${num(r.reverse_kl_mean ?? r.log_ratio_mean)}${apart ? ` at ${nameOfT([r.temperature ?? null])}` : ""}`), grade(r)), body);
}
