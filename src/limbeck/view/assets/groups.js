// Runs put together by keys of their recipes: one line a group, its mean over runs with a band.
import { address } from "./address.js";
import { differing, flat, isAside, keysOf, recipeText, signatureOf } from "./flat.js";
import { RUN_COLOURS, store } from "./store.js";

// What a band is, from the spread of `n` runs around their mean.
export const BANDS = {
  se: ["± 1 standard error", (mean, deviation, n) => [-1, 1].map((side) => mean + side * deviation / Math.sqrt(n))],
  ci: ["95% interval", (mean, deviation, n) => [-1, 1].map((side) => mean + side * studentOf(n - 1) * deviation / Math.sqrt(n))],
  sd: ["± 1 standard deviation", (mean, deviation) => [-1, 1].map((side) => mean + side * deviation)],
  range: ["smallest to largest run", (mean, deviation, n, values) => [Math.min(...values), Math.max(...values)]],
};
export const ALL_BUT_SEED = "all-but-seed";

// 97.5% points of Student's distribution, by degrees of freedom from 1 on; 1.96 beyond.
const STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16, 2.145, 2.131, 2.12, 2.11, 2.101, 2.093, 2.086,
  2.08, 2.074, 2.069, 2.064, 2.06, 2.056, 2.052, 2.048, 2.045, 2.042];
const studentOf = (freedom) => STUDENT[freedom - 1] ?? 1.96;

// The keys by which the address asks for groups: [] for none.
export const groupedBy = () => address.get("group", []);
export const bandNow = () => { const band = address.get("band", "se"); return band in BANDS ? band : "se"; };

// The recipe keys that `group` stands for among these runs.
export function groupKeysOf(runs, by = groupedBy()) {
  return by.includes(ALL_BUT_SEED) ? differing(runs, keysOf(runs).filter((key) => key !== "seed" && !isAside(key))) : by;
}

// These runs in groups, in the order of their first runs: { id, label, colour, runs, values }. `values` are the keys that
// tell it from the others. Without `by`, each run is a group of its own, with its own name and colour.
export function groupsOf(runs, by = groupedBy(), all = store.runs) {
  if (!by.length) return runs.map((run) => ({ id: run.id, label: run.id, colour: run.colour, runs: [run], values: new Map(), grouped: false }));
  const keys = groupKeysOf(all, by), places = new Map();
  for (const run of all) { const id = signatureOf(run, keys); if (!places.has(id)) places.set(id, places.size); }  // a colour stays when runs are hidden
  const telling = differing(all, keys), groups = new Map();
  for (const run of runs) {
    const id = signatureOf(run, keys);
    if (!groups.has(id)) {
      const values = new Map(keys.map((key) => [key, recipeText(flat(run).get(key))]));
      groups.set(id, { id, label: groupLabel(values, telling.length ? telling : keys), colour: RUN_COLOURS[places.get(id) % RUN_COLOURS.length], runs: [], values, grouped: true });
    }
    groups.get(id).runs.push(run);
  }
  return [...groups.values()];
}

// The groups that are drawn, each of its shown runs alone.
export const shownGroups = () => groupsOf(store.shown);

// `temperature 0.7, lr 0.001`: with a key's table where two keys have one name.
function groupLabel(values, keys) {
  if (!keys.length) return "all runs";
  const short = (key) => { const name = key.split(".").pop(); return keys.filter((other) => other.split(".").pop() === name).length > 1 ? key : name; };
  return keys.map((key) => `${short(key)} ${values.get(key)}`).join(", ");
}

// Mean and band of some runs' values; null where there is none. One run has no band, and null in its place.
export function summaryOf(values, band = bandNow()) {
  const known = values.filter((value) => Number.isFinite(value)), n = known.length;
  if (!n) return null;
  const mean = known.reduce((total, value) => total + value, 0) / n;
  if (n === 1) return { mean, low: null, high: null, deviation: null, n };
  const deviation = Math.sqrt(known.reduce((total, value) => total + (value - mean) ** 2, 0) / (n - 1));
  const [low, high] = BANDS[band][1](mean, deviation, n, known);
  return { mean, low, high, deviation, n };
}

// A group's line of `key` in `from` ("train" or "eval"): { step, x, mean, low, high, n }, one entry a step at which any of its runs
// has a value; `n` is of how many. `xOf(run, from)` gives a run's place on the x axis at each of its steps, where that is not
// the step itself; a group's is the mean of its runs' there. null where no run has the key.
export function combine(runs, from, key, { band = bandNow(), xOf = null } = {}) {
  const at = new Map();  // step -> [values, xs]
  for (const run of runs) {
    const column = run[from].values[key], xs = xOf?.(run, from);
    if (!column) continue;
    run[from].step.forEach((step, i) => {
      if (column[i] === null || column[i] === undefined) return;
      if (!at.has(step)) at.set(step, [[], []]);
      at.get(step)[0].push(column[i]);
      if (xs) at.get(step)[1].push(xs[i]);
    });
  }
  if (!at.size) return null;
  const line = { step: [...at.keys()].sort((a, b) => a - b), x: [], mean: [], low: [], high: [], n: [] };
  for (const step of line.step) {
    const [values, xs] = at.get(step), summary = summaryOf(values, band);
    line.x.push(xOf ? xs.reduce((total, x) => total + x, 0) / xs.length : step);
    for (const part of ["mean", "low", "high", "n"]) line[part].push(summary?.[part] ?? null);
  }
  return line;
}
