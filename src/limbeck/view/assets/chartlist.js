// Which charts there are: the keys of each in the file, where they come from, and when what they show is healthy.
import { num, percent, seconds, significant, whole } from "./format.js";
import { known } from "./series.js";

export const PHASES = ["sample", "grade", "score", "record", "update", "publish"];
export const PHASE_INKS = ["--c1", "--c4", "--c2", "--c6", "--c3", "--c5"];
const INKS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];

// One entry a line: key in the file, `from` where it is no train line, `ink` when one run is shown. `behind`: another key
// of the chart that says the same better; where a run has both, this one is faint, and with several runs not drawn. `about`: what the chart's help says of it where it is drawn. `kl`: its lines
// are KLs, and those at different temperatures are apart. `atT`: they depend on the temperature, and each says it.
export const HEADLINES = [
  { title: "Reverse KL", unit: "nats / token", size: "wide", height: 250, kl: true, keep: true, lines: [
    { key: "reverse_kl/exact", label: "exact", ink: "--c1", band: "se" },
    { key: "reverse_kl/exact", instead: "reverse_kl/sampled", from: "eval", label: "held-out", ink: "--c3", band: "se", points: true },
    { key: "reverse_kl/sampled", label: "sampled", ink: "--c6", behind: "reverse_kl/exact", band: "se" }] },
  { title: "Accuracy", heldOut: true, size: "wide", height: 250, format: percent, keep: true,
    adapt: (runs) => (runs.every(hasShares) ? { title: "Accuracy", format: percent, linear: true } : { title: "Reward", format: num, linear: false }),
    lines: [
      { key: "accuracy", from: "eval", label: "held-out", ink: "--c3", band: "interval", points: true },
      { key: "reward", label: "training reward", ink: "--c6", faint: true, about: "The faint line is the same of the training prompts, which change every step." }] },
];
export const LEARNING = [
  { title: "Entropy", unit: "nats / token", atT: true, lines: [
    { key: "entropy/student", label: "student", ink: "--c1" }, { key: "entropy/teacher", label: "teacher", ink: "--c2", dash: [6, 4] }] },
  { title: "Response length", unit: "tokens", lines: [
    { key: "response_length/mean", label: "mean", ink: "--c1" }, { key: "response_length/max", label: "longest", ink: "--c6", faint: true, about: "The faint line is the longest of the step." }] },
  { title: "Top tokens in common", unit: "share", format: percent, atT: true, lines: [{ key: "top_k_overlap", label: "overlap", ink: "--c3" }] },
  { title: "Objective", unit: "nats / token", kl: true, lines: [{ key: "objective", label: "mean", ink: "--c1" }] },
  { title: "Learning rate", format: significant, lines: [{ key: "lr", label: "rate", ink: "--c4" }] },
  { title: "Throughput", unit: "sampled tokens / s", format: whole, lines: [{ key: "tokens_per_second/step", label: "per step", ink: "--c3" }] },
];
export const PHASE_CHART = { title: "Time by phase", unit: "seconds / step", format: seconds, stacked: true };

// A diagnostic shows only whether the run is sound. Its `rules` are held against the median of the last steps: `above` or
// `below` is where it stops being so (a number, or of a line's values and the run's recipe), `alarm` what the run itself calls it.
export const DIAGNOSTICS = [
  { title: "Truncated and looping", unit: "share of responses", span: 0.02, format: percent, lines: [
    { key: "truncated", label: "cut at max_tokens", ink: "--c2" }, { key: "repetition", label: "looping", ink: "--c4", dash: [6, 4] }],
  rules: [{ key: "truncated", above: 0.5, alarm: "truncation", say: "of responses are cut at max_tokens" }, { key: "repetition", above: 0.5, alarm: "repetition", say: "of responses loop" }] },
  { title: "Importance ratio", unit: "p / μ", span: 0.02, linear: true, lines: [
    { key: "importance/mean", label: "mean", ink: "--c1" }, { key: "importance/max", label: "largest", ink: "--c6", faint: true, about: "The faint line is the largest of the step." }],
  rules: [{ key: "importance/mean", below: 0.9, above: 1.1, say: "is the mean ratio" }] },
  { title: "Effective sample size", unit: "share of tokens", span: 0.02, format: percent, lines: [
    { key: "importance/effective_share", label: "effective", ink: "--c3" }],
  rules: [{ key: "importance/effective_share", below: 0.5, say: "of the tokens are effective" }] },
  { title: "Sampler mismatch", unit: "nats / token", span: 0.001, atT: true, lines: [{ key: "mismatch", label: "mean |log p − log μ|", ink: "--c4" }],
    rules: [{ key: "mismatch", above: 0.1, alarm: "mismatch", say: "nats between sampler and learner" }] },
  { title: "On the support", unit: "probability", format: percent, atT: true, lines: [
    { key: "support/student", label: "student", ink: "--c1" }, { key: "support/sampled", label: "sampled tokens", ink: "--c3", dash: [3, 3] }, { key: "support/teacher", label: "teacher", ink: "--c2" }],
  rules: [{ key: "support/student", below: 0.5, alarm: "support", say: "of the student's probability is on the support" }] },
  { title: "Gradient norm", lines: [{ key: "grad_norm", label: "before clipping", ink: "--c1" }],
    rules: [{ key: "grad_norm", above: (values) => 10 * median(values), say: "is more than ten times the run's median" }] },
  { title: "Failed and unscored", unit: "a step", format: whole, lines: [
    { key: "env/failed", label: "episodes failed", ink: "--c7" }, { key: "teacher/samples_lost", label: "not scored", ink: "--c2" }],
  rules: [{ key: "env/failed", above: 0, say: "episodes of a step fail" }, { key: "teacher/samples_lost", above: 0, say: "responses of a step are not scored" }] },
  { title: "Certified error", unit: "nats", lines: [
    { key: "teacher/error_bound/mean", label: "mean bound", ink: "--c1" }, { key: "teacher/error_bound/max", label: "largest", ink: "--c6", faint: true, about: "The faint line is the largest of the step." }],
  rules: [{ key: "teacher/error_bound/mean", above: (_, recipe) => recipe.teacher?.max_rescale_error ?? 0.02, say: "nats are not known of a score" }] },
  { title: "Tokens left out", unit: "share of tokens", format: percent, span: 0.02, lines: [
    { key: "teacher/tokens_left_out", over: "tokens/trained", label: "too uncertain", ink: "--c2" }],
  rules: [{ key: "teacher/tokens_left_out", over: "tokens/trained", above: 0.05, say: "of the tokens are left out" }] },
];

// Tasks, teachers and evaluation sets. Of one run (or group) a chart has a line for each; of several each has a chart, as lines are by run.
const PARTS = [
  { title: "Reverse KL", by: "task", unit: "held-out, nats / token", kl: true, from: "eval", pattern: /^task\/(.+)\/reverse_kl\/exact$/, band: "se" },
  { title: "Accuracy", by: "task", unit: "held-out", from: "eval", pattern: /^task\/(.+)\/accuracy$/, band: "interval", share: true },
  { title: "Reward", by: "task", unit: "training", pattern: /^task\/(.+)\/reward$/ },
  { title: "Reverse KL", by: "teacher", unit: "training, nats / token", kl: true, pattern: /^teacher\/(.+)\/reverse_kl\/(?:exact|sampled)$/, band: "se" },
  { title: "Reverse KL", by: "evaluation set", unit: "nats / token", kl: true, from: "eval", pattern: /^((?!task\/)[^/]+)\/reverse_kl\/exact$/, band: "se" },
  { title: "Accuracy", by: "evaluation set", from: "eval", pattern: /^((?!task\/)[^/]+)\/accuracy$/, band: "interval", share: true },
];

export function partCharts(runs, several) {
  return PARTS.flatMap(({ title, by, pattern, from, band, share, ...spec }) => {
    const all = new Set(runs.flatMap((run) => Object.keys(run[from ?? "train"].values).filter((key) => pattern.test(key))));
    const keys = [...all].filter((key) => !key.endsWith("/sampled") || !all.has(key.replace(/sampled$/, "exact"))).sort();
    const lines = keys.map((key, i) => ({ key, instead: key.endsWith("/exact") ? key.replace(/exact$/, "sampled") : undefined, from, band, label: key.match(pattern)[1], ink: INKS[i % INKS.length], points: from === "eval" }));
    const shaped = { ...spec, ...(share && runs.every(hasShares) && { format: percent }) };
    if (several) return lines.map((line) => ({ ...shaped, title: `${title}, ${by} ${line.label}`, lines: [line] }));
    return keys.length ? [{ ...shaped, title: `${title} by ${by}`, lines }] : [];
  });
}

const COVERED = new Set([...HEADLINES, ...LEARNING, ...DIAGNOSTICS].flatMap((spec) => spec.lines.map((line) => `${line.from ?? "train"} ${line.key}`)));

// What no chart above shows: [from, key], by the first part of the key. What the machine does is in the System tab.
export function otherMetrics(runs) {
  const parts = new Set(partCharts(runs, false).flatMap((spec) => spec.lines.map((line) => `${line.from ?? "train"} ${line.key}`)));
  const names = new Set(runs.flatMap((run) => ["train", "eval"].flatMap((from) => Object.keys(run[from].values).map((key) => `${from} ${key}`))));
  const families = new Map();
  for (const name of [...names].sort()) {
    const [from, key] = [name.slice(0, name.indexOf(" ")), name.slice(name.indexOf(" ") + 1)];
    if (COVERED.has(name) || parts.has(name) || key.endsWith("/se") || /\/(low|high)$/.test(key) || /^accuracy\/(min|max)$/.test(key) || key.startsWith("system/")) continue;
    const family = from === "eval" ? "evaluations" : key.includes("/") ? key.split("/")[0] : "counts and others";
    families.set(family, [...(families.get(family) ?? []), [from, key]]);
  }
  return families;
}

// Whether a run's rewards are all in [0, 1], so that their mean is an accuracy. `accuracy/min` is there where they are not.
export function hasShares(run) {
  const beyond = (value) => known(value) && (value < 0 || value > 1);
  return !run.eval.values["accuracy/min"]?.some(known) && !run.train.values.reward?.some(beyond);
}

const LAST_STEPS = 10;
const FAR = 100;  // times the limit: more than a jump that the clipping takes
const median = (values) => { const sorted = values.filter(known).sort((a, b) => a - b); return sorted[sorted.length >> 1]; };
const shares = (run, { key, over }) => run.train.values[key]?.map((value, i) => (
  over && known(value) ? value / Math.max(1, value + (run.train.values[over]?.[i] ?? 0)) : value));
export const valuesOf = (run, line) => (line.over ? shares(run, line) : run[line.from ?? "train"].values[line.key]);

// The steps at which a line's values are not finite; and their indices.
export const notFinite = (run, { from = "train", key, over }) => new Set([key, over].flatMap((one) => run[from].not_finite[one] ?? []));
export function brokenAt(run, line) {
  const bad = notFinite(run, line);
  return bad.size ? run[line.from ?? "train"].step.flatMap((step, i) => (bad.has(step) ? [i] : [])) : [];
}

// Of a diagnostic in a run: null where it was not measured, or { ok, why, was, far }, judged by the median of the last steps.
// `was`: the steps of alarms of the run itself, which are over. `far`: in words, a value at any step that is beyond all doubt.
export function healthOf(run, spec) {
  const measured = spec.rules.map((rule) => [rule, valuesOf(run, rule)]).filter(([, values]) => values?.some(known));
  if (!measured.length) return null;
  const recent = run.train.step[Math.max(0, run.train.step.length - LAST_STEPS)], format = spec.format ?? num;
  const limitsOf = (rule, values) => [rule.above, rule.below].map((limit) => (typeof limit === "function" ? limit(values, run.info.recipe) : limit));
  const why = measured.flatMap(([rule, values]) => {
    const now = median(values.slice(-LAST_STEPS)), [high, low] = limitsOf(rule, values);
    const alarm = run.alarms.findLast?.((one) => one.name === rule.alarm && one.step >= recent);
    const bad = known(now) && (now > high || now < low);
    return bad ? [`${format(now)} ${rule.say} (healthy: ${[low !== undefined && `from ${format(low)}`, high !== undefined && `up to ${format(high)}`].filter(Boolean).join(" ")})`]
      : alarm ? [`alarm at step ${alarm.step}: ${alarm.message}`] : [];
  });
  const was = measured.flatMap(([rule]) => run.alarms.filter((one) => one.name === rule.alarm).map((one) => one.step));
  const far = measured.flatMap(([rule, values]) => {
    const [high] = limitsOf(rule, values), most = values.reduce((best, value, i) => (known(value) && !(value <= values[best]) ? i : best), 0);
    return high > 0 && values[most] > FAR * high ? [`${format(values[most])} at step ${run.train.step[most].toLocaleString("en-US")} (healthy: up to ${format(high)})`] : [];
  });
  return { ok: !why.length, why, was: why.length ? [] : was, far };
}
