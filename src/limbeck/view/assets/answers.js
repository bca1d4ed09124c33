// The answers of evaluations: of one, right and wrong; of two, from step to step or run to run, what was won and lost.
import { address } from "./address.js";
import { choice, debounce, el } from "./dom.js";
import { counted, num, percent, whole } from "./format.js";
import { grade } from "./grade.js";
import { openedAnswer } from "./opened.js";
import { OUTCOMES, pairAnswers, rewardsIn, sideOf, summarisePairs } from "./paired.js";
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
    const run = store.run(address.get("run"), "evaluations"), other = store.runs.find((r) => r.id === address.get("samples.with")) ?? run;
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
      await Promise.all([chosen.run, chosen.other].map((run) => store.readOnce(run)));
      if (asked !== this.asked) return;  // another one was chosen meanwhile
      Object.assign(this, { chosenNow: chosen, afterRows: after?.rows ?? [], beforeRows: before?.rows ?? null, problems: [...(after?.problems ?? []), ...(before?.problems ?? [])], whole: [before, after].map((found) => !found?.problems.length), limit: SHOWN });
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

  // What metrics.jsonl says of the two evaluations: { failed, accuracy, prompts } each.
  get reported() {
    const { run, other, after, before } = this.chosenNow;
    return [other.evaluated(before, this.set), run.evaluated(after, this.set)];
  }

  // { pairs: [{ key, row, after, now, outcome }], ... } of all prompts of the set, and what is before where there is something to compare.
  items() {
    const [before, after] = [this.beforeRows, this.afterRows].map((rows, i) => rows && sideOf(rows, this.set, this.whole[i] ? this.reported[i].failed : 0));
    if (before) return { ...pairAnswers(before, after), sides: [before, after] };
    return { pairs: rewardsIn(after).map((item) => ({ ...item, outcome: outcomeAlone(item.now) })), sides: [null, after] };
  }

  draw() {
    const focused = document.activeElement === this.search;
    if (this.chosenNow.after === undefined) {
      this.node.replaceChildren(this.bar(), el("p", { class: "card blank" }, "This run has no answers of evaluations (evaluations/step-*.jsonl) yet: see [eval] in the recipe."));
      return;
    }
    const found = this.items(), { pairs } = found;
    const names = this.beforeRows ? Object.fromEntries(Object.entries(OUTCOMES).map(([key, [name]]) => [key, name])) : ALONE;
    const counts = Object.keys(names).map((key) => [key, pairs.filter((pair) => pair.outcome === key).length]).filter(([, count]) => count);
    const asked = address.get("samples.outcome", ""), outcome = counts.some(([key]) => key === asked) ? asked : "";
    const inSight = pairs.filter((pair) => (!outcome || pair.outcome === outcome) && (!this.found || pair.after.some((row) => this.found.has(row.number))));
    this.node.replaceChildren(this.bar(), ...this.problems.map((text) => el("p", { class: "problem" }, text)),
      el("section", { class: "card verdict", "aria-label": "Summary" }, this.beforeRows ? this.verdict(found) : this.single(found), shareBar(counts, names, pairs.length), this.filterBar(counts, names, pairs.length, outcome)),
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
  verdict({ pairs, alone, others, bothFailed, sides }) {
    const notes = [
      ...sides.map((side, i) => (side.missing || (side.failed && side.samples) ? `${i ? "After" : "Before"}, ${counted(side.failed, "episode")} failed: ${side.failed === 1 ? "it has" : "they have"} no answer, and ${side.failed === 1 ? "counts" : "count"} as 0.` : "")),
      alone > 0 && `${counted(alone, "prompt")} ${alone === 1 ? "has" : "have"} an answer in one of the two only, and ${alone === 1 ? "is" : "are"} left out.`,
      others > 0 && `${counted(others, "prompt id")} ${others === 1 ? "stands" : "stand"} for another question in the other evaluation, and ${others === 1 ? "is" : "are"} left out.`,
    ].filter(Boolean).map((text) => el("p", { class: "hint" }, text));
    if (!pairs.length) return [el("p", { class: "hint" }, "These two have no prompt in common: a task that makes its own prompts makes others under another seed."), ...notes];
    if (others > pairs.length) return [el("p", { class: "headline" }, "Not compared", el("small", {}, "most prompt ids stand for other questions in the other evaluation")), ...notes];
    const { counts, graded, was, now, p, low, high, shares, exact } = summarisePairs(pairs, bothFailed);
    if (!graded) return [el("p", { class: "headline" }, `${whole(counts.changed)} of ${whole(pairs.length)} answers changed`), el("p", { class: "hint" }, "These answers have no grade."), ...notes];
    const value = (v) => (shares ? percent(v) : num(v, 3)), signed = (v) => `${v < 0 ? "−" : "+"}${shares ? num(100 * Math.abs(v), 1) : num(Math.abs(v), 3)}`;
    const interval = low === null ? "" : ` [${signed(low)}, ${signed(high)}]`;
    return [
      el("p", { class: "headline" }, `${value(was)} → ${value(now)}`, el("small", {}, `${shares ? "accuracy" : "mean reward"} on ${whole(graded)} prompts: `, el("span", { class: "whole" }, `${signed(now - was)}${shares ? " points" : ""}`), el("span", { class: "whole" }, interval))),
      el("p", {}, `${whole(counts.won)} won, ${whole(counts.lost)} lost. ${chanceOf(now - was, low, high)} `, p !== null && el("span", { class: "hint" }, `p ${pText(p)}, ${exact ? "McNemar's exact test" : "Student's paired test over prompts"}; the interval is of the difference, 95%.`)),
      ...[was, now].flatMap((mean, i) => this.notAsReported(mean, this.reported[i], graded, i ? "After" : "Before", alone + others > 0)), ...notes];
  }

  single({ pairs, sides: [, side] }) {
    const graded = pairs.filter((pair) => pair.now !== null), count = graded.length + side.missing;
    if (!graded.length) return el("p", { class: "headline" }, `${whole(pairs.length)} answers`, el("small", {}, "not graded"));
    const mean = graded.reduce((total, pair) => total + pair.now, 0) / count, shares = graded.every((pair) => pair.now >= 0 && pair.now <= 1);
    return [el("p", { class: "headline" }, shares ? percent(mean) : num(mean, 3), el("small", {}, `${shares ? "accuracy" : "mean reward"} on ${whole(count)} prompts`)),
      side.failed && side.samples ? el("p", { class: "hint" }, `${counted(side.failed, "episode")} failed: ${side.failed === 1 ? "it has" : "they have"} no answer, and ${side.failed === 1 ? "counts" : "count"} as 0.`) : "",
      ...this.notAsReported(mean, this.reported[1], count, "", false)];
  }

  // Where the mean of these answers is not what metrics.jsonl has, it is said: answers are missing, or were not compared.
  notAsReported(mean, { accuracy, prompts, failed }, count, side, partly) {
    if (accuracy === undefined || Math.abs(mean - accuracy) < 5e-4) return [];
    const text = `metrics.jsonl has ${accuracy >= 0 && accuracy <= 1 ? percent(accuracy) : num(accuracy, 3)}${prompts ? ` on ${whole(prompts)} prompts` : ""}${failed ? `, with ${counted(failed, "failed episode")} as 0` : ""}`;
    return [el("p", { class: partly ? "hint" : "problem" }, `${side ? `${side}: ` : ""}${text}; this is of the ${whole(count)} ${partly ? "that are compared" : "that have an answer here"}.`)];
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
  if (!samples.length) return el("span", { class: "said" }, el("span", { class: "hidden" }, `${label}: `), el("span", { class: "flag" }, "failed"));
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

// The sign of the difference, where its interval leaves out 0.
function chanceOf(difference, low, high) {
  if (low === null) return difference === 0 ? "No difference." : "Too few prompts, or too alike, to say whether chance gives this.";
  if (low > 0) return "More than chance would give: it is better.";
  if (high < 0) return "More than chance would give: it is worse.";
  return difference === 0 ? "No difference." : "It could be chance.";
}

function shareBar(counts, names, total) {
  if (!total) return "";
  return el("div", { class: "share-bar", role: "img", "aria-label": counts.map(([key, count]) => `${names[key]} ${count}`).join(", ") },
    counts.map(([key, count]) => el("i", { class: key, vars: { "--share": String(count / total) }, title: `${names[key]}: ${count}` })));
}
