// Recipes as flat keys, what differs among several, and TOML of that.

// Keys that change nothing about what is trained: the place, what is kept, who hears of it, and how fast.
const ASIDE = ["name", "output", "checkpoint", "record", "trackers", "threads"];
const flats = new WeakMap();  // recipe -> its keys and values
const paths = new Map();  // key -> its parts; a list of tables counts as one value

const isTable = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const quoted = (part) => (/^[A-Za-z0-9_-]+$/.test(part) ? part : JSON.stringify(part));

function entriesOf(table, path = []) {
  return Object.entries(table).flatMap(([name, value]) => {
    const here = [...path, name], key = here.map(quoted).join(".");
    if (isTable(value)) return entriesOf(value, here);
    paths.set(key, here);
    return [[key, value]];
  });
}

// key -> value of a run's recipe, with the tables' names before the keys: `rollout.temperature`.
export function flat(run) {
  const recipe = run.info.recipe ?? {};
  if (!flats.has(recipe)) flats.set(recipe, new Map(entriesOf(recipe)));
  return flats.get(recipe);
}

const sameness = (value) => (value === undefined ? "" : JSON.stringify(value));
export const recipeText = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
export const isAside = (key) => ASIDE.includes(paths.get(key)?.[0]);
export const tableOf = (key) => { const path = paths.get(key) ?? [key]; return path.length > 1 ? path[0] : ""; };

// All keys of these runs' recipes, each table's together, as they stand in the files.
export function keysOf(runs) {
  const tables = new Map([["", []]]), seen = new Set();
  for (const run of runs) for (const key of flat(run).keys()) {
    if (seen.has(key)) continue;
    seen.add(key);
    const table = tableOf(key);
    if (!tables.has(table)) tables.set(table, []);
    tables.get(table).push(key);
  }
  return [...tables.values()].flat();
}

// The keys in which at least two of these runs differ.
export function differing(runs, keys = keysOf(runs)) {
  return keys.filter((key) => runs.some((run) => sameness(flat(run).get(key)) !== sameness(flat(runs[0]).get(key))));
}

// One text for all runs that have the same values of these keys.
export const signatureOf = (run, keys) => keys.map((key) => sameness(flat(run).get(key))).join("\u0000");

// These keys of a run's recipe as TOML, under the heads of their tables, each value as its file has it.
export function tomlOf(run, keys) {
  const values = new Map(entriesOf(run.info.written ?? {})), tables = new Map([["", []]]);
  for (const key of keys.filter((one) => values.has(one))) {
    const path = paths.get(key), table = path.slice(0, -1).map(quoted).join(".");
    if (!tables.has(table)) tables.set(table, []);
    tables.get(table).push(`${quoted(path[path.length - 1])} = ${values.get(key)}`);
  }
  return [...tables].filter(([, lines]) => lines.length).map(([table, lines]) => [...(table ? [`[${table}]`] : []), ...lines, ""].join("\n")).join("\n");
}
