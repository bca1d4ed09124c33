// What a table of runs can show of each: its state, place and times, its results, its metrics, and every key of its recipe.
import { differing, flat, isAside, keysOf, recipeText } from "./flat.js";
import { ago, timeTaken, num, percent, significant, whole } from "./format.js";
import { store } from "./store.js";
import { dependsOnT, temperatureOf } from "./temperature.js";
import { typedSeconds } from "./typed.js";

// Of its last start; of its first one, where the last one has none.
const ofPlace = (key) => (run) => run?.info.history?.place?.[key] ?? run?.info.history?.began?.[key];
// As text, and what it was at first where a run was resumed elsewhere.
const placeShown = (key, show = String) => (value, run) => {
  const { began = {}, place = {} } = run?.info.history ?? {};
  return key in began ? `${show(began[key])}, then ${key in place ? show(place[key]) : "not known"}` : show(value);
};
const bothPlaces = (run, key) => [run.info.history?.began, run.info.history?.place].map((place) => place?.[key]).filter(Boolean).map(String);
export const alarmNames = (run) => run.info.summary?.alarm_names ?? [];
const evaluated = (run, key) => run.info.summary?.eval?.[key];
const trained = (run, key) => run.info.summary?.train?.[key];
const FIRST = 0, LAST = 1, LEAST = 2, GREATEST = 3, AT_LEAST = 4, AT_GREATEST = 5;  // of an evaluation's numbers

// Seconds that its processes have worked.
function elapsed(run) {
  const { history = {} } = run.info;
  if (!history.started) return undefined;
  const now = run.live ? Date.now() / 1000 : run.info.changed ?? 0;
  const since = history.since ? Math.max(0, now - history.since) : 0;
  return history.worked + since;
}

// Seconds until its last step, at the pace of its last ones, with the evaluations on the way.
function remaining(run) {
  const { steps, summary, recipe } = run.info, pace = summary?.seconds_per_step;
  if (!steps || !pace || run.state !== "running") return undefined;
  const every = recipe.eval?.every, left = steps - run.step;
  return left * pace + (every ? Math.ceil(left / every) * (evaluated(run, "seconds")?.[LAST] ?? 0) : 0);
}

const EXACT = "reverse_kl/exact";
const klOf = (run) => evaluated(run, EXACT) ?? evaluated(run, "reverse_kl/sampled");
const klAtT = (run) => temperatureOf(run, "eval", EXACT);
const CLOCK = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const clock = (seconds) => CLOCK.format(seconds * 1000);
export const STATE_NAMES = { running: "running", finished: "finished", failed: "failed", killed: "killed", stopped: "stopped", silent: "not finished", new: "no steps" };
const exactly = (seconds) => new Date(seconds * 1000).toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");
// What follows from all runs, made once as long as nothing new is known of them.
function onceAnEdition(make) {
  let edition, value;
  return () => {
    if (edition !== store.edition) [edition, value] = [store.edition, make()];
    return value;
  };
}
const isShares = onceAnEdition(() => !store.runs.some((run) => { const range = evaluated(run, "accuracy"); return range && (range[LEAST] < 0 || range[GREATEST] > 1); }));
const shareOrNumber = (value) => (isShares() ? percent(value) : num(value));

// id -> { label, of(run) its value, show(value, run) as text, better: 1 where more is, -1 where less is; about: what it is; typed(text): the number that somebody means by a text, where it has units of its own; isTime: it is a time in seconds }.
// Of several runs a number is their mean; with `sum` their sum, with `spread` from the least to the greatest. `evaluated(runs)` is the
// key of an evaluation whose last value it is: those of a group are taken at one step; `since(run)` is what is subtracted. `atT(run)` is
// the temperature of a number that depends on it: those at different ones have no mean and no best.
const RUN_COLUMNS = {
  state: { label: "State", of: (run) => run.state, texts: (run) => [run.state, STATE_NAMES[run.state]], show: (value) => STATE_NAMES[value], about: "running, finished, failed, stopped by a signal, or killed" },
  step: { label: "Step", of: (run) => run.step, show: (value, run) => `${whole(value)}${run?.info.steps ? ` / ${whole(run.info.steps)}` : ""}`, spread: true, about: "updates made, of those asked for" },
  accuracy: { label: "Accuracy", of: (run) => evaluated(run, "accuracy")?.[LAST], evaluated: () => "accuracy", show: shareOrNumber, better: 1, about: "of the last evaluation" },
  best: { label: "Best accuracy", of: (run) => evaluated(run, "accuracy")?.[GREATEST], show: shareOrNumber, better: 1, at: (run) => evaluated(run, "accuracy")?.[AT_GREATEST], about: "the largest of all evaluations, and its step" },
  gain: { label: "Gain", of: (run) => { const range = evaluated(run, "accuracy"); return range?.length ? range[LAST] - range[FIRST] : undefined; }, evaluated: () => "accuracy", since: (run) => evaluated(run, "accuracy")[FIRST], show: (value) => `${value > 0 ? "+" : ""}${isShares() ? `${num(100 * value, 1)} pt` : num(value)}`, better: 1, about: "of accuracy, from the first evaluation to the last" },
  kl: { label: "Reverse KL", of: (run) => klOf(run)?.[LAST], evaluated: (runs) => (runs.some((run) => evaluated(run, EXACT)?.length) ? EXACT : "reverse_kl/sampled"), show: (value) => num(value), atT: klAtT, better: -1, about: "of the last evaluation, in nats a token; the exact one where the teacher gives its distribution" },
  leastkl: { label: "Least KL", of: (run) => klOf(run)?.[LEAST], show: (value) => num(value), atT: klAtT, better: -1, at: (run) => klOf(run)?.[AT_LEAST], about: "the smallest of all evaluations, and its step" },
  speed: { label: "Tokens / s", of: (run) => trained(run, "tokens_per_second/step")?.[LAST], ofLastStep: true, show: (value) => whole(value), better: 1, about: "sampled tokens of the last step, by its seconds" },
  alarms: { label: "Alarms", sum: true, of: (run) => run.info.summary?.alarms, show: (value) => (value ? `▲ ${whole(value)}` : "none"), title: (value, run) => (value ? alarmNames(run).join(", ") : undefined), texts: alarmNames },
  started: { label: "Started", spread: true, of: (run) => run.info.history?.started, isTime: true, show: clock, title: exactly, about: "of its first process, on this machine's clock" },
  elapsed: { label: "Elapsed", of: elapsed, spread: true, typed: typedSeconds, show: (value) => timeTaken(value), about: "how long its processes have worked; the time between two starts does not count" },
  eta: { label: "Left", of: remaining, spread: true, typed: typedSeconds, show: (value) => timeTaken(value), about: "to its last step, at the pace of its last steps" },
  changed: { label: "Last line", of: (run) => run.age ?? undefined, typed: typedSeconds, show: (value) => ago(value), about: "when metrics.jsonl changed" },
  starts: { label: "Starts", of: (run) => run.info.history?.starts, show: (value) => whole(value), about: "1, and one more each time it was resumed" },
  host: { label: "Host", of: ofPlace("host"), show: placeShown("host"), about: "the machine of its last start, after that of its first where it was resumed elsewhere" },
  pid: { label: "Process", of: ofPlace("pid"), show: String },
  device: { label: "Device", of: (run) => ofPlace("device_name")(run) ?? ofPlace("device")(run), show: (value, run) => placeShown(ofPlace("device_name")(run) === undefined ? "device" : "device_name")(value, run) },
  commit: { label: "Commit", of: ofPlace("commit"), show: (value, run) => `${placeShown("commit", (commit) => commit.slice(0, 8))(value, run)}${ofPlace("uncommitted")(run) ? " +" : ""}`, title: (value, run) => `${placeShown("commit")(value, run)}${ofPlace("uncommitted")(run) ? ", with changes that were not committed" : ""}`, texts: (run) => bothPlaces(run, "commit"), mono: true, about: "of the working folder; + where files of it had changed since" },
  ...Object.fromEntries([["limbeck", "limbeck"], ["torch", "torch"], ["transformers", "transformers"], ["python", "Python"]].map(([key, label]) => [key, { label, of: ofPlace(key), show: placeShown(key) }])),
};
const UNCERTAINTY = /\/(se|low|high)$/;
const METRIC_PARTS = { recipe: "Recipe", eval: "Last evaluation", train: "Last step" };
const HEADS = [["Run", ["state", "step", "alarms", "started", "elapsed", "eta", "changed", "starts", "speed"]], ["Result", ["accuracy", "best", "gain", "kl", "leastkl"]],
  ["Where and with what", ["host", "pid", "device", "commit", "limbeck", "torch", "transformers", "python"]]];

const columnsMade = new Map();

// The column of an id: one of RUN_COLUMNS, or `recipe:rollout.temperature`, `eval:KEY`, `train:KEY`. undefined for what is none.
export function columnOf(id) {
  if (Object.hasOwn(RUN_COLUMNS, id)) return { show: String, ...RUN_COLUMNS[id], id };
  const [part, key] = [id.slice(0, id.indexOf(":")), id.slice(id.indexOf(":") + 1)];
  if (!Object.hasOwn(METRIC_PARTS, part) || !key) return undefined;
  if (!columnsMade.has(id)) columnsMade.set(id, part === "recipe"
    ? { id, label: key.split(".").pop(), about: key, of: (run) => flat(run).get(key), show: recipeText, mono: true, text: (run) => recipeText(flat(run).get(key)) }
    : { id, label: key, about: `${key} of the last ${part === "eval" ? "evaluation" : "step"}`, of: (run) => (part === "eval" ? evaluated : trained)(run, key)?.[LAST], ...(part === "train" ? { ofLastStep: true } : !UNCERTAINTY.test(key) && { evaluated: () => key }), show: (value) => significant(value), ...(dependsOnT(key) && { atT: (run) => temperatureOf(run, part, key) }) });
  return columnsMade.get(id);
}

// A name as somebody types it, without its case, spaces and underscores.
export const asTyped = (name) => name.toLowerCase().replaceAll(/[\s_]/g, "");
export const LABELS = new Map(Object.entries(RUN_COLUMNS).map(([id, { label }]) => [label, id]));

// What can be chosen: [head, [id, ...]].
export function allColumns() {
  const keys = (part) => [...new Set(store.runs.flatMap((run) => Object.keys(run.info.summary?.[part] ?? {})))].filter((key) => !UNCERTAINTY.test(key)).sort();
  const recipe = keysOf(store.runs), differs = new Set(differing(store.runs, recipe));
  return [...HEADS, ["Recipe: differs", recipe.filter((key) => differs.has(key) && key !== "name").map((key) => `recipe:${key}`)],
    ["Recipe: the same in all", recipe.filter((key) => !differs.has(key)).map((key) => `recipe:${key}`)],
    ["Last evaluation", keys("eval").map((key) => `eval:${key}`)], ["Last step", keys("train").map((key) => `train:${key}`)]];
}

// Those that are shown where nobody has chosen: what the runs have, and what tells their recipes apart.
export const usualColumns = onceAnEdition(() => {
  const has = (id) => store.runs.some((run) => columnOf(id).of(run) !== undefined);
  const differs = differing(store.runs).filter((key) => !isAside(key)).slice(0, 5).map((key) => `recipe:${key}`);
  const hosts = new Set(store.runs.map(RUN_COLUMNS.host.of).filter(Boolean));
  const fell = store.runs.some((run) => RUN_COLUMNS.best.of(run) > RUN_COLUMNS.accuracy.of(run));
  return ["state", "step", ...["accuracy", ...(fell ? ["best"] : []), "kl"].filter(has), ...differs, ...["alarms", "started", "elapsed", "eta"].filter(has), ...(hosts.size > 1 ? ["host"] : [])];
});

// What a file has of a column: times in UTC, lengths in seconds to the millisecond, and nothing where the value is missing.
export function csvValue(column, run) {
  const value = column.of(run);
  if (value === undefined || value === null) return "";
  if (column.id === "started") return new Date(value * 1000).toISOString();
  if (column.id === "state") return column.show(value, run);
  return ["elapsed", "eta", "changed"].includes(column.id) ? Number(value.toFixed(3)) : column.text ? column.text(run) : value;
}

// For sorting: numbers by size, texts as people count them, and what is missing at the end whichever way.
export function comparing(column, descending) {
  const sign = descending ? -1 : 1;
  const missing = (value) => value === undefined || value === null || value === "";
  return (a, b) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b), "en", { numeric: true });
  };
}
