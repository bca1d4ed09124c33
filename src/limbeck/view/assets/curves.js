// The curves: what is drawn from metrics.jsonl, and how.
import { Chart, smooth, updateAll, view, zoomTo } from "./charts.js";
import { check, colour, el } from "./dom.js";
import { ago, firstAndLast, num, percent, seconds, significant, whole } from "./format.js";
import { source } from "./source.js";
import { store } from "./store.js";

// One entry a line: key in the file, where it comes from, its colour when a single run is shown.
const CHARTS = [
  { title: "Reverse KL", unit: "nats / token", size: "wide", height: 250,
    about: "KL of the student to the teacher on the student's own samples, both at the rollout temperature",
    lines: [
      { key: "reverse_kl/sampled", label: "sampled", ink: "--c6", faint: true, band: "se" },
      { key: "reverse_kl/exact", label: "exact", ink: "--c1", band: "se" },
      { key: "reverse_kl/exact", instead: "reverse_kl/sampled", from: "eval", label: "held-out", ink: "--c3", band: "se", points: true },
    ] },
  { title: "Accuracy", unit: "held-out, 95% interval", size: "wide", height: 250, format: percent,
    adapt: (runs) => (runs.every(hasShares) ? { title: "Accuracy", format: percent, linear: true } : { title: "Reward", format: num, linear: false }),
    lines: [
      { key: "reward", label: "training reward", ink: "--c6", faint: true },
      { key: "accuracy", from: "eval", label: "held-out", ink: "--c3", band: "interval", points: true },
    ] },
  { title: "Entropy", unit: "nats / token", lines: [
    { key: "entropy/student", label: "student", ink: "--c1" }, { key: "entropy/teacher", label: "teacher", ink: "--c2", dash: [6, 4] }] },
  { title: "Response length", unit: "tokens", lines: [
    { key: "response_length/mean", label: "mean", ink: "--c1" }, { key: "response_length/max", label: "longest", ink: "--c6", faint: true }] },
  { title: "Truncated and looping", unit: "share of responses", span: 0.02, format: percent, lines: [
    { key: "truncated", label: "cut at max_tokens", ink: "--c2" }, { key: "repetition", label: "looping", ink: "--c4", dash: [6, 4] }] },
  { title: "Importance ratio", unit: "p / μ", span: 0.02, linear: true, about: "learner against sampler: 1 when fresh", lines: [
    { key: "importance/max", label: "largest", ink: "--c6", faint: true }, { key: "importance/mean", label: "mean", ink: "--c1" }] },
  { title: "Effective sample size", unit: "share of tokens", span: 0.02, format: percent, lines: [
    { key: "importance/effective_share", label: "effective", ink: "--c3" }] },
  { title: "Sampler mismatch", unit: "nats / token", span: 0.001, about: "mean |log p − log μ|: what the sampler and the learner disagree by", lines: [
    { key: "mismatch", label: "mean", ink: "--c4" }] },
  { title: "Top tokens in common", unit: "share", format: percent, about: "how many of the student's most likely tokens are among the teacher's", lines: [
    { key: "top_k_overlap", label: "overlap", ink: "--c3" }] },
  { title: "On the support", unit: "probability", format: percent, about: "of the tokens that the loss takes exactly: what the student has beyond them is left to the sampled token", lines: [
    { key: "support/student", label: "student", ink: "--c1" }, { key: "support/teacher", label: "teacher", ink: "--c2" }] },
  { title: "Objective", unit: "nats / token", about: "mean of what was minimised", lines: [
    { key: "objective", label: "mean", ink: "--c1" }] },
  { title: "Gradient norm", lines: [{ key: "grad_norm", label: "before clipping", ink: "--c1" }] },
  { title: "Learning rate", format: significant, lines: [{ key: "lr", label: "rate", ink: "--c4" }] },
  { title: "Throughput", unit: "sampled tokens / s", format: whole, lines: [{ key: "tokens_per_second/step", label: "per step", ink: "--c3" }] },
];
const PHASES = ["sample", "grade", "score", "record", "update", "publish"];
const PHASE_INKS = ["--c1", "--c4", "--c2", "--c6", "--c3", "--c5"];
const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
const COVERED = new Set(CHARTS.flatMap((chart) => chart.lines.map((line) => line.key)));

const keyOf = (run, line) => [line.key, line.instead].find((key) => run[line.from ?? "train"].values[key]?.some((value) => value !== null));

// Whether a run's rewards are all in [0, 1], so that their mean is an accuracy. `accuracy/min` is there where they are not.
function hasShares(run) {
  const outside = (value) => value !== null && value !== undefined && (value < 0 || value > 1);
  return !run.eval.values["accuracy/min"]?.some((value) => value !== null) && !run.train.values.reward?.some(outside);
}

// A faint line is behind a stronger one of its chart; where several runs are overlaid it is not drawn.
function lineOf(run, spec, line, several) {
  const columns = run[line.from ?? "train"], key = keyOf(run, line);
  const faint = line.faint && spec.lines.some((other) => !other.faint && keyOf(run, other));
  if (!key || (faint && several)) return null;
  const raw = columns.values[key];
  const ink = colour(several ? run.colour : line.ink);
  const errors = line.band === "se" ? columns.values[`${key}/se`] : undefined;
  const interval = line.band === "interval" ? ["low", "high"].map((end) => columns.values[`${key}/${end}`]) : undefined;
  const amount = line.from === "eval" ? 0 : view.smoothing;
  const [mean, error] = amount ? smooth(raw, errors, amount) : [raw, errors];
  const drawn = [mean];
  if (errors) drawn.push(...[-1, 1].map((side) => mean.map((v, i) => (v === null || error[i] === null ? null : v + side * error[i]))));
  else if (interval?.every(Boolean)) drawn.push(...interval);
  return {
    x: columns.step, raw, errors, interval: interval?.every(Boolean) ? interval : undefined, columns: drawn, colour: ink, band: `${ink}2e`,
    label: several ? `${run.id} ${line.label}` : line.label, dash: line.dash ?? (several && line.from === "eval" ? [3, 3] : undefined),
    width: faint ? 1 : 1.75, alpha: faint ? 0.55 : 1, faint, points: line.points,
  };
}

function build(spec) {
  const runs = store.shown, several = runs.length > 1;
  const lines = runs.flatMap((run) => spec.lines.map((line) => lineOf(run, spec, line, several))).filter(Boolean);
  const raw = view.smoothing ? lines.filter((line) => line.columns[0] !== line.raw && line.width > 1).map((line) => (
    { ...line, columns: [line.raw], width: 1, alpha: 0.22, label: "", points: false })) : [];
  const keys = [...new Set(spec.lines.map((line) => line.key))].join(", ");
  return { ...spec.adapt?.(runs), lines: [...raw, ...lines], alarms: runs.flatMap((run) => run.alarms), missing: runs.some((run) => run.train.step.length) ? `Not in metrics.jsonl: ${keys}` : "No steps yet" };
}

// Seconds of each phase, one on top of the other, of the first run shown. A step without a phase spent
// no time in it; what is in no phase is the last layer, where it is worth one.
function buildPhases() {
  const run = store.shown[0];
  const values = run?.train.values ?? {};
  const layers = PHASES.filter((phase) => values[`seconds/${phase}`]).map((phase) => [phase, values[`seconds/${phase}`].map((value) => value ?? 0)]);
  if (!layers.length) return { lines: [], missing: run?.train.step.length ? "Not in metrics.jsonl: seconds/…" : "No steps yet" };
  const step = values["seconds/step"];
  const rest = step?.map((total, i) => Math.max(0, (total ?? 0) - sum(layers.map(([, column]) => column[i]))));
  if (rest && sum(rest) > 0.01 * sum(step)) layers.push(["rest", rest]);
  let below = new Array(run.train.step.length).fill(0);
  const lines = layers.map(([phase, raw], i) => {
    const [mean] = view.smoothing ? smooth(raw, undefined, view.smoothing) : [raw];
    below = below.map((height, j) => height + mean[j]);
    const ink = colour(PHASE_INKS[PHASES.indexOf(phase)] ?? "--muted");
    return { x: run.train.step, raw, columns: [below], colour: ink, band: `${ink}b0`, label: phase, width: 0, fillTo: i ? i : undefined };
  });
  return { lines, alarms: run.alarms, unit: store.shown.length > 1 ? `seconds / step, of ${run.id}` : "seconds / step" };
}

function otherKeys() {
  const keys = new Set(store.shown.flatMap((run) => ["train", "eval"].flatMap((from) =>
    Object.keys(run[from].values).map((key) => `${from} ${key}`))));
  return [...keys].filter((name) => {
    const key = name.split(" ")[1];
    return !COVERED.has(key) && !key.endsWith("/se") && !/\/(low|high)$/.test(key) && !/^accuracy\/(min|max)$/.test(key);
  }).sort();
}

export function curvesPanel() {
  const main = CHARTS.map((spec) => new Chart({ ...spec, build: () => build(spec) }));
  const phases = new Chart({ title: "Time by phase", unit: "seconds / step", format: seconds, stacked: true, build: buildPhases });
  const grid = el("div", { class: "grid" }, main.slice(0, 2).map((c) => c.node), phases.node, main.slice(2).map((c) => c.node));
  const others = el("div", { class: "grid" });
  const drawn = new Set();
  const more = el("details", { class: "more", ontoggle: () => more.open && addOthers() }, el("summary", {}, "All other metrics"), others);
  const addOthers = () => {
    for (const name of otherKeys().filter((n) => !drawn.has(n))) {
      drawn.add(name);
      const [from, key] = name.split(" ");
      const spec = { title: key, format: significant, unit: from === "eval" ? "evaluation" : "", lines: [{ key, from, label: from, ink: "--c1", points: from === "eval" }] };
      others.append(new Chart({ ...spec, height: 150, build: () => build(spec) }).node);
    }
  };
  const table = el("div", { class: "card runs" });
  const alarms = el("div");
  const draw = () => {
    table.replaceChildren(runTable());
    alarms.replaceChildren(...alarmList());
    if (more.open) addOthers();
    updateAll();
  };
  store.addEventListener("metrics", draw);
  store.addEventListener("round", () => { for (const run of store.runs) table.querySelector(`[data-run="${CSS.escape(run.id)}"] .state`)?.replaceChildren(stateOf(run)); });
  draw();
  return el("div", {}, table, alarms, toolbar(), grid, more);
}

function toolbar() {
  const shown = el("output", {}, "off");
  const slider = el("input", {
    type: "range", min: "0", max: "0.99", step: "0.01", value: "0", id: "smoothing",
    oninput: () => { view.smoothing = Number(slider.value); shown.textContent = view.smoothing ? view.smoothing.toFixed(2) : "off"; updateAll(); },
  });
  const reset = el("button", { type: "button", class: "quiet", hidden: true, onclick: () => zoomTo(null) }, "Show all steps");
  document.addEventListener("zoom", () => { reset.hidden = !view.zoom; });
  return el("div", { class: "toolbar" },
    el("label", { class: "field" }, el("span", {}, "Smoothing"), slider, shown),
    check("Log scale", view.log, (on) => { view.log = on; updateAll(); }), reset,
    el("span", { class: "hint" }, "Drag to zoom, double-click for all. Bands and bars: ± 1 standard error, clustered by prompt."));
}

function stateOf(run) {
  if (run.finished) return el("span", { class: "pill" }, "finished");
  if (run.live) return el("span", { class: "pill live" }, el("i"), "running");
  const age = run.info.changed_seconds_ago;
  return el("span", { class: "pill off" }, !source.live ? "not finished" : age === null ? "no steps" : `last line ${ago(age)}`);
}

const change = ([from, to], format) => (from === undefined ? "–" : el("span", { class: "change" }, el("span", { class: "from" }, format(from)), el("span", { "aria-label": "to" }, " → "), el("b", {}, format(to))));

function runTable() {
  const head = ["Run", "", "Step", "Temperature", "Reverse KL, held-out", store.runs.every(hasShares) ? "Accuracy, held-out" : "Reward, held-out", "Entropy", "Tokens / s", "Alarms"];
  const rows = store.runs.map((run) => {
    const box = el("input", { type: "checkbox", checked: run.shown, "aria-label": `Show ${run.id}`, onchange: () => store.show(run, box.checked) });
    const evals = run.eval.values;
    const done = run.info.steps ? run.step / run.info.steps : 0;
    return el("tr", { data: { run: run.id }, class: run.shown ? "" : "off" },
      el("th", { scope: "row" }, el("label", { vars: { "--ink": `var(${store.runs.length > 1 ? run.colour : "--c1"})` } }, store.runs.length > 1 && box, el("i", { class: "dot" }), run.id)),
      el("td", { class: "state" }, stateOf(run)),
      el("td", {}, el("span", {}, whole(run.step), el("small", {}, `${run.info.steps ? ` / ${whole(run.info.steps)}` : ""}${run.info.recipe.rollout?.lag ? `, lag ${run.info.recipe.rollout.lag}` : ""}`)), el("progress", { max: 1, value: done, "aria-label": "steps made" })),
      el("td", {}, num(run.info.recipe.rollout?.temperature, 2)),
      el("td", {}, change(firstAndLast(evals["reverse_kl/exact"] ?? evals["reverse_kl/sampled"] ?? run.train.values["reverse_kl/exact"] ?? run.train.values["reverse_kl/sampled"]), num)),
      el("td", {}, change(firstAndLast(evals.accuracy), hasShares(run) ? percent : num)),
      el("td", {}, change(firstAndLast(run.train.values["entropy/student"]), (v) => num(v, 3))),
      el("td", {}, whole(firstAndLast(run.train.values["tokens_per_second/step"])[1])),
      el("td", { class: run.alarms.length ? "warn" : "" }, run.alarms.length ? `▲ ${run.alarms.length}` : "none"));
  });
  return el("table", {}, el("caption", { class: "hidden" }, "Runs"), el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, rows));
}

// One line a kind of alarm: a run that has one has it at many steps.
function alarmList() {
  const groups = new Map();
  for (const run of store.shown) for (const alarm of run.alarms) {
    const key = `${run.id}\u0000${alarm.name}`;
    const group = groups.get(key) ?? { run, name: alarm.name, first: alarm, count: 0 };
    groups.set(key, { ...group, count: group.count + 1, last: alarm });
  }
  if (!groups.size) return [];
  return [el("section", { class: "card alarms", "aria-label": "Alarms" }, el("h2", {}, "Alarms"), el("ul", {}, [...groups.values()].map((group) =>
    el("li", {}, el("b", {}, "▲ ", group.name),
      el("span", { class: "when" }, store.shown.length > 1 ? `${group.run.id}, ` : "", group.count > 1 ? `${group.count} steps, ${group.first.step} to ${group.last.step}` : `step ${group.first.step}`),
      el("span", {}, group.last.message)))))];
}
