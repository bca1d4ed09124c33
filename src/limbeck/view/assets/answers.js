// The answers of evaluations: of one, right and wrong; of two, from step to step or run to run, what was won and lost.
import { address } from "./address.js";
import { choice, debounce, el } from "./dom.js";
import { num, percent, whole } from "./format.js";
import { grade } from "./grade.js";
import { openedAnswer } from "./opened.js";
import { byPrompt, OUTCOMES, pairAnswers, rewardOf, summarisePairs } from "./paired.js";
import { source } from "./source.js";
import { store } from "./store.js";

const SHOWN = 100;  // prompts at once
const ALONE = { right: "Right", wrong: "Wrong", even: "Between", none: "Not graded" };
const OWN = "the run's own";  // set

const outcomeAlone = (reward) => (reward === null ? "none" : reward >= 1 ? "right" : reward <= 0 ? "wrong" : "even");

export class AnswersPanel {
  constructor() {
    this.node = el("div", { class: "answers" });
    this.search = el("input", { type: "search", placeholder: "Search prompts and responses", "aria-label": "Search prompts and answers", oninput: debounce(200, () => { address.set({ "samples.find": this.search.value }); this.find(); }) });
    store.addEventListener("metrics", () => this.follow());
  }

  // What the address says, as far as it is there: { after: [run, step], before: [run, step] or null }.
  async chosen() {
    const run = store.run(address.get("run")), other = store.runs.find((r) => r.id === address.get("samples.with")) ?? run;
    const [steps, others] = await Promise.all([run, other].map((r) => source.evaluations(r.id)));
    const among = (list, key, otherwise) => { const asked = address.get(key); return list.includes(Number(asked)) && asked !== null ? Number(asked) : otherwise; };
    const after = among(steps.steps, "samples.after", steps.steps.at(-1));
    const first = other === run ? others.steps.find((step) => step !== after) : others.steps.at(-1);
    const before = address.get("samples.before") === "none" ? undefined : among(others.steps, "samples.before", first);
    const same = other === run && before === after;
    return { run, other, steps, others, after, before: same ? undefined : before };
  }

  // A run that goes on has new evaluations; what is opened stays as it is until there is one.
  async follow() {
    const now = this.chosenNow;
    if (!now || !this.node.isConnected || address.tab !== "samples") return;
    const known = [now.steps, now.others].map((found) => found.steps.length);
    const found = await Promise.all([now.run, now.other].map((run) => source.evaluations(run.id))).catch(() => null);  // lost: the next round says so
    if (found && now === this.chosenNow && found.some(({ steps }, i) => steps.length !== known[i])) this.open();
  }

  async open() {
    if (!store.run()) { this.node.replaceChildren(el("p", { class: "card blank" }, "There is no run here yet.")); return; }
    const asked = this.asked = {};
    if (!this.chosenNow) this.node.replaceChildren(el("p", { class: "card blank" }, "Reading…"));
    try {
      const chosen = await this.chosen();
      const [after, before] = await Promise.all([[chosen.run, chosen.after], [chosen.other, chosen.before]].map(([run, step]) => (step === undefined ? null : source.answers(run.id, step))));
      if (asked !== this.asked) return;  // another one was chosen meanwhile
      Object.assign(this, { chosenNow: chosen, afterRows: after?.rows ?? [], beforeRows: before?.rows ?? null, problems: [...(after?.problems ?? []), ...(before?.problems ?? [])], limit: SHOWN });
    } catch (error) {
      if (asked === this.asked) this.node.replaceChildren(el("p", { class: "card blank" }, error.message));
      return;
    }
    this.search.value = address.get("samples.find", "");
    await this.find();
  }

  async find() {
    const text = this.search.value, { run, after } = this.chosenNow;
    this.found = text && after !== undefined ? new Set(await source.found(run.id, after, text).catch(() => [])) : null;
    if (text === this.search.value) this.draw();
  }

  again(changes) { address.set({ ...changes, "samples.open": null }); this.open(); }

  get sets() { return [...new Set(this.afterRows.map((row) => row.set))]; }
  get set() { const asked = address.get("samples.set", ""); return this.sets.includes(asked) ? asked : this.sets[0] ?? ""; }

  // [{ key, row, after, now, outcome }] of all prompts of the set, and what is before where there is something to compare.
  items() {
    if (this.beforeRows) return pairAnswers(this.beforeRows, this.afterRows, this.set);
    const items = [...byPrompt(this.afterRows, this.set)].map(([key, after]) => ({ key, row: after[0], after, now: rewardOf(after), outcome: outcomeAlone(rewardOf(after)) }));
    return { pairs: items, alone: 0 };
  }

  draw() {
    const focused = document.activeElement === this.search;
    if (this.chosenNow.after === undefined) {
      this.node.replaceChildren(this.bar(), el("p", { class: "card blank" }, "This run has no answers of evaluations (evaluations/step-*.jsonl) yet: see [eval] in the recipe."));
      return;
    }
    const { pairs, alone } = this.items();
    const names = this.beforeRows ? Object.fromEntries(Object.entries(OUTCOMES).map(([key, [name]]) => [key, name])) : ALONE;
    const counts = Object.keys(names).map((key) => [key, pairs.filter((pair) => pair.outcome === key).length]).filter(([, count]) => count);
    const asked = address.get("samples.outcome", ""), outcome = counts.some(([key]) => key === asked) ? asked : "";
    const inSight = pairs.filter((pair) => (!outcome || pair.outcome === outcome) && (!this.found || pair.after.some((row) => this.found.has(row.number))));
    this.node.replaceChildren(this.bar(), ...this.problems.map((text) => el("p", { class: "problem" }, text)),
      el("section", { class: "card verdict", "aria-label": "Summary" }, this.beforeRows ? this.verdict(pairs, alone) : this.single(pairs), shareBar(counts, names, pairs.length), this.filterBar(counts, names, pairs.length, outcome)),
      el("section", { class: "card answer-list", "aria-label": "Answers" }, this.list(inSight, names)));
    if (focused) this.search.focus();
  }

  bar() {
    const { run, other, steps, others, after, before } = this.chosenNow;
    const runs = store.runs.map((r) => [r.id, r.id]), number = (step) => [String(step), `step ${step}`];
    const option = (list, none) => [...(none ? [["none", "nothing"]] : []), ...list.steps.map(number)];
    const group = (name, ...fields) => el("fieldset", { class: "side" }, el("legend", {}, name), fields.filter(Boolean));
    return el("div", { class: "toolbar choose" },
      group("Before", runs.length > 1 && choice("Run", runs, other.id, (id) => this.again({ "samples.with": id === run.id ? null : id, "samples.before": null })),
        choice("Step", option(others, true), before === undefined ? "none" : String(before), (step) => this.again({ "samples.before": step }))),
      el("span", { class: "arrow", "aria-hidden": "true" }, "→"),
      group("After", runs.length > 1 && choice("Run", runs, run.id, (id) => this.again({ run: id, "samples.with": other.id, "samples.after": null })),
        steps.steps.length > 0 && choice("Step", option(steps), String(after), (step) => this.again({ "samples.after": step }))),
      this.sets.length > 1 && choice("Set", this.sets.map((name) => [name, name || OWN]), this.set, (name) => this.again({ "samples.set": name })),
      steps.recorded > steps.steps.length && el("span", { class: "hint" }, `${steps.steps.length} of ${steps.recorded} evaluations are in this report`));
  }

  // What the two evaluations say, in a sentence.
  verdict(pairs, alone) {
    if (!pairs.length) return el("p", { class: "hint" }, "These two have no prompt in common: a task that makes its own prompts makes others under another seed.");
    const { counts, graded, was, now, p, low, high, shares, exact } = summarisePairs(pairs);
    const left = alone > 0 && el("p", { class: "hint" }, `${whole(alone)} ${alone === 1 ? "prompt has" : "prompts have"} an answer in one of the two only, and ${alone === 1 ? "is" : "are"} left out.`);
    if (!graded) return [el("p", { class: "headline" }, `${whole(counts.changed)} of ${whole(pairs.length)} answers changed`), el("p", { class: "hint" }, "These answers have no grade."), left];
    const value = (v) => (shares ? percent(v) : num(v, 3)), signed = (v) => `${v < 0 ? "−" : "+"}${shares ? num(100 * Math.abs(v), 1) : num(Math.abs(v), 3)}`;
    const interval = low === null ? "" : ` [${signed(low)}, ${signed(high)}]`;
    return [
      el("p", { class: "headline" }, `${value(was)} → ${value(now)}`, el("small", {}, `${shares ? "accuracy" : "mean reward"} on ${whole(graded)} prompts: `, el("span", { class: "whole" }, `${signed(now - was)}${shares ? " points" : ""}`), el("span", { class: "whole" }, interval))),
      el("p", {}, `${whole(counts.won)} won, ${whole(counts.lost)} lost. ${chanceOf(p, counts)} `, el("span", { class: "hint" }, `p ${pText(p)}, ${exact ? "McNemar's exact test" : "exact sign test over prompts"}; the interval is of the difference, 95%.`)), left];
  }

  single(pairs) {
    const graded = pairs.filter((pair) => pair.now !== null);
    if (!graded.length) return el("p", { class: "headline" }, `${whole(pairs.length)} answers`, el("small", {}, "not graded"));
    const mean = graded.reduce((total, pair) => total + pair.now, 0) / graded.length, shares = graded.every((pair) => pair.now >= 0 && pair.now <= 1);
    return el("p", { class: "headline" }, shares ? percent(mean) : num(mean, 3), el("small", {}, `${shares ? "accuracy" : "mean reward"} on ${whole(graded.length)} prompts`));
  }

  filterBar(counts, names, total, outcome) {
    const press = (key) => { address.set({ "samples.outcome": key || null, "samples.open": null }); this.limit = SHOWN; this.draw(); this.node.querySelector(`.outcomes [data-value="${key}"]`)?.focus(); };
    const button = (key, name, count) => el("button", { type: "button", class: `outcome ${key}`, "aria-pressed": outcome === key, data: { value: key }, title: this.beforeRows ? OUTCOMES[key]?.[1] : null, onclick: () => press(outcome === key ? "" : key) }, name, el("b", {}, whole(count)));
    return el("div", { class: "outcomes" }, button("", "All", total), counts.map(([key, count]) => button(key, names[key], count)), el("span", { class: "spring" }), this.search);
  }

  list(items, names) {
    if (!items.length) return el("p", { class: "blank" }, "No answer is left by the filters.");
    const paired = Boolean(this.beforeRows), opened = address.get("samples.open");
    const { run, other, after, before } = this.chosenNow, several = run !== other;
    const head = ["", "Prompt", ...(paired ? [`Before: ${several ? `${other.id}, ` : ""}step ${before}`, `After: ${several ? `${run.id}, ` : ""}step ${after}`] : ["Answer"])];
    const rows = items.slice(0, this.limit).map((item) => this.row(item, names, paired, item.key === opened));
    const hidden = items.length - rows.length;
    return [el("div", { class: `answer-head${paired ? "" : " alone"}`, "aria-hidden": "true" }, head.map((text) => el("span", {}, text))), el("ul", { class: "answer-rows" }, rows),
      hidden > 0 && el("button", { type: "button", class: "quiet more-rows", onclick: () => { this.limit += SHOWN; this.draw(); } }, `Show ${whole(Math.min(SHOWN, hidden))} more of ${whole(hidden)}`)];
  }

  row(item, names, paired, open) {
    const button = el("button", { type: "button", class: `answer-row${paired ? "" : " alone"}`, "aria-expanded": String(open), onclick: () => toggle(button.getAttribute("aria-expanded") === "false") },
      el("span", { class: `badge ${item.outcome}` }, names[item.outcome]),
      el("span", { class: "asked" }, briefly(item.row.question || item.key), item.row.answer && el("small", {}, `right: ${briefly(item.row.answer)}`)),
      paired && cell(item.before, "Before"), cell(item.after, "After"));
    const node = el("li", {}, button);
    const toggle = (on) => {
      button.setAttribute("aria-expanded", on);
      node.querySelector(".opened")?.remove();
      address.set({ "samples.open": on ? item.key : null });
      if (on) node.append(openedAnswer(item, this.chosenNow));
    };
    if (open) node.append(openedAnswer(item, this.chosenNow));
    return node;
  }
}

// A prompt's answers in a line or two: the first one's text, and how many samples are right.
function cell(samples, label) {
  const right = samples.filter((row) => row.reward !== null && row.reward >= 1).length, graded = samples.some((row) => row.reward !== null);
  return el("span", { class: "said" }, el("span", { class: "hidden" }, `${label}: `), samples.length > 1 ? graded && el("b", { class: "of" }, `${right} of ${samples.length}`) : grade(samples[0]),
    el("span", { class: "mono" }, briefly(samples[0].response)), samples[0].finish === "length" && el("span", { class: "flag" }, "cut"));
}

// The beginning and the end of a text: the end is often the answer.
function briefly(text) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length <= 140 ? line : `${line.slice(0, 60)} … ${line.slice(-70)}`;
}

const pText = (p) => (p < 0.0001 ? "< 0.0001" : `= ${p < 0.01 ? p.toFixed(4) : p.toFixed(2)}`);

function chanceOf(p, { won, lost }) {
  if (won + lost === 0) return "No prompt differs.";
  if (p < 0.05) return won > lost ? "More than chance would give: it is better." : "More than chance would give: it is worse.";
  return "No more than chance would give.";
}

function shareBar(counts, names, total) {
  if (!total) return "";
  return el("div", { class: "share-bar", role: "img", "aria-label": counts.map(([key, count]) => `${names[key]} ${count}`).join(", ") },
    counts.map(([key, count]) => el("i", { class: key, vars: { "--share": String(count / total) }, title: `${names[key]}: ${count}` })));
}
