// Runs put together by keys of their recipes: one line a group, its mean over runs with a band.
import { address } from "./address.js";
import { differing, flat, isAside, keysOf, recipeText, signatureOf } from "./flat.js";
import { byBegin, RUN_COLOURS, store } from "./store.js";
import { studentPoint } from "./student.js";

// What a band is, from the spread of `n` runs around their mean. `said` of a chart that has it; `columns` of its ends in a file.
export const BANDS = {
  se: { name: "± 1 standard error", said: "mean ± SE over runs", columns: ["runs-se-low", "runs-se-high"], of: (mean, deviation, n) => [-1, 1].map((side) => mean + side * deviation / Math.sqrt(n)) },
  ci: { name: "95% interval", said: "mean, 95% interval over runs", columns: ["runs-ci95-low", "runs-ci95-high"], of: (mean, deviation, n) => [-1, 1].map((side) => mean + side * studentPoint(n - 1) * deviation / Math.sqrt(n)) },
  sd: { name: "± 1 standard deviation", said: "mean ± SD over runs", columns: ["runs-sd-low", "runs-sd-high"], of: (mean, deviation) => [-1, 1].map((side) => mean + side * deviation) },
  range: { name: "smallest to largest run", said: "mean, smallest to largest run", columns: ["runs-min", "runs-max"], of: (mean, deviation, n, values) => [Math.min(...values), Math.max(...values)] },
};
// A group has a value at a step that more than half of its runs (that have the key at all) have: in its curves, and the last of
// those in the table of runs. Fewer would be other runs' values.
export const isMost = (n, of) => 2 * n > of;
export const ALL_BUT_SEED = "all-but-seed";

const isKnown = (key) => key === ALL_BUT_SEED || store.runs.some((run) => flat(run).has(key));
// The keys by which the address asks for groups: [] for none. One that no recipe has would make one group of everything.
export const groupedBy = () => address.get("group", []).filter(isKnown);
export const unknownKeys = () => (store.runs.length ? address.get("group", []).filter((key) => !isKnown(key)) : []);
export const bandNow = () => { const band = address.get("band", "se"); return band in BANDS ? band : "se"; };

// The recipe keys that `group` stands for among these runs.
function groupKeysOf(runs, by = groupedBy()) {
  return by.includes(ALL_BUT_SEED) ? differing(runs, keysOf(runs).filter((key) => key !== "seed" && !isAside(key))) : by;
}

// These runs in groups, in the order of their first runs: { id, label, colour, runs, total, values }. `total` is how many there are of
// it among `all`, `values` are the keys that tell it from the others. Without `by`, each run is a group of its own, with its own name and colour.
export function groupsOf(runs, by = groupedBy(), all = store.runs) {
  if (!by.length) return runs.map((run) => ({ id: run.id, label: run.id, colour: run.colour, runs: [run], values: new Map(), grouped: false }));
  const keys = groupKeysOf(all, by), places = new Map();
  for (const run of byBegin(all)) { const id = signatureOf(run, keys); if (!places.has(id)) places.set(id, places.size); }  // a colour stays when runs are hidden, and when new ones come
  const telling = differing(all, keys), groups = new Map(), totals = new Map();
  for (const run of all) { const id = signatureOf(run, keys); totals.set(id, (totals.get(id) ?? 0) + 1); }
  const labels = labelsOf(all, telling.length ? telling : keys);
  for (const run of runs) {
    const id = signatureOf(run, keys);
    if (!groups.has(id)) {
      const values = new Map(keys.map((key) => [key, recipeText(flat(run).get(key))]));
      groups.set(id, { id, label: labels(values), total: totals.get(id), colour: RUN_COLOURS[places.get(id) % RUN_COLOURS.length], runs: [], values, grouped: true });
    }
    groups.get(id).runs.push(run);
  }
  return [...groups.values()];
}

// The groups that are drawn, each of its shown runs alone.
export const shownGroups = () => groupsOf(store.shown);

// Makes runs one group each of these keys, or none. Groups are chosen whole: a mean over those runs that happen to be shown is no group's.
export function groupBy(keys) {
  const before = address.list("runs");
  address.set({ group: keys.length ? keys : null });
  if (!before || !keys.length) return store.choose(before);
  const wanted = new Set(groupsOf(store.shown).map((group) => group.id));
  return store.choose(groupsOf(store.runs).filter((group) => wanted.has(group.id)).flatMap((group) => group.runs.map((run) => run.id)));
}

const MOST_AT_ONCE = 60;  // runs that are read where nobody has chosen any; a group is never cut

// The groups of the newest runs, as many as there are colours, with all of their runs.
store.byGroup = () => {
  if (!groupedBy().length) return null;
  const chosen = [];
  for (const { runs } of groupsOf(store.newest()).slice(0, RUN_COLOURS.length)) {
    if (chosen.length && chosen.length + runs.length > MOST_AT_ONCE) break;
    chosen.push(...runs.map((run) => run.id));
  }
  return chosen;
};

// `temperature 0.7, lr 0.001`: with a key's table where two keys have one name; short values first, so that what differs is seen where
// a label is cut. Of a long value its ends are shown.
function labelsOf(runs, keys) {
  if (!keys.length) return () => "all runs";
  const name = (key) => { const last = key.split(".").pop(); return keys.filter((other) => other.split(".").pop() === last).length > 1 ? key : last; };
  const texts = new Map(keys.map((key) => [key, endsOf([...new Set(runs.map((run) => recipeText(flat(run).get(key))))])]));
  const longest = (key) => Math.max(...[...texts.get(key).values()].map((text) => text.length));
  const order = [...keys].sort((a, b) => (longest(a) > MOST_CHARACTERS / 2) - (longest(b) > MOST_CHARACTERS / 2));
  return (values) => order.map((key) => `${name(key)} ${texts.get(key).get(values.get(key)) ?? values.get(key)}`).join(", ");
}

const MOST_CHARACTERS = 24;  // of a value in a label

// Each of these texts -> itself, or its end where it is long: as much of it as tells them apart.
function endsOf(texts) {
  for (const length of [MOST_CHARACTERS, 2 * MOST_CHARACTERS]) {
    const ends = texts.map((text) => (text.length > length ? `…${text.slice(1 - length)}` : text));
    if (new Set(ends).size === texts.length) return new Map(texts.map((text, i) => [text, ends[i]]));
  }
  return new Map(texts.map((text) => [text, text]));
}

// Mean and band of some runs' values; null where there is none. One run has no band, and null in its place.
export function summaryOf(values, band = bandNow()) {
  const known = values.filter((value) => Number.isFinite(value)), n = known.length;
  if (!n) return null;
  const mean = known.reduce((total, value) => total + value, 0) / n;
  if (n === 1) return { mean, low: null, high: null, deviation: null, n };
  const deviation = Math.sqrt(known.reduce((total, value) => total + (value - mean) ** 2, 0) / (n - 1));
  const [low, high] = BANDS[band].of(mean, deviation, n, known);
  return { mean, low, high, deviation, n };
}

// A group's line of `key` in `from` ("train" or "eval"): { step, mean, low, high, n, of }, one entry a step at which any of its runs
// has a value; `n` is of how many, and `of` how many have the key at all. null where none has.
export function combine(runs, from, key, { band = bandNow() } = {}) {
  const at = new Map();  // step -> values
  let of = 0;
  for (const run of runs) {
    const column = run[from]?.values[key];
    if (!column?.some((value) => Number.isFinite(value))) continue;
    of += 1;
    run[from].step.forEach((step, i) => {
      if (!Number.isFinite(column[i])) return;
      if (!at.has(step)) at.set(step, []);
      at.get(step).push(column[i]);
    });
  }
  if (!at.size) return null;
  const line = { step: [...at.keys()].sort((a, b) => a - b), mean: [], low: [], high: [], n: [], of };
  for (const step of line.step) {
    const summary = summaryOf(at.get(step), band);
    for (const part of ["mean", "low", "high", "n"]) line[part].push(summary[part]);
  }
  return line;
}

// The last step at which a group has a value of its evaluations, and those of its runs there: { step, values: [[run, value], ...] }, or null.
export function lastCommon(runs, key) {
  const line = combine(runs.map((run) => ({ eval: run.info.summary?.evaluations })), "eval", key);
  const i = line ? line.n.findLastIndex((n) => isMost(n, line.of)) : -1;
  if (i < 0) return null;
  const there = (run) => { const { step, values } = run.info.summary?.evaluations ?? { step: [], values: {} }; return values[key]?.[step.indexOf(line.step[i])]; };
  return { step: line.step[i], values: runs.map((run) => [run, there(run)]).filter(([, value]) => Number.isFinite(value)) };
}
