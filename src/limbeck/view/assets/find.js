// What is typed to find runs: words of their names, and comparisons such as `accuracy>0.8 lr=0.001 -failed`.
import { alarmNames, columnOf } from "./columns.js";
import { flat } from "./flat.js";
import { store } from "./store.js";

const OPERATORS = { "!=": (a, b) => a !== b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b, "<": (a, b) => a < b, ">": (a, b) => a > b };

// The column that somebody means: by its id, its label, or the last part of a recipe's key.
function meant(name) {
  const wanted = name.toLowerCase();
  const byId = columnOf(name) ?? columnOf(wanted);
  if (byId) return byId;
  const keys = [...new Set(store.runs.flatMap((run) => [...flat(run).keys()]))];
  const key = keys.find((one) => one.toLowerCase() === wanted) ?? keys.find((one) => one.toLowerCase().endsWith(`.${wanted}`));
  if (key) return columnOf(`recipe:${key}`);
  for (const part of ["eval", "train"]) if (store.runs.some((run) => name in (run.info.summary?.[part] ?? {}))) return columnOf(`${part}:${name}`);
  return undefined;
}

const asNumber = (text) => (/%$/.test(text) ? Number(text.slice(0, -1)) / 100 : Number(text));

function comparingWith(column, operator, text) {
  const compare = OPERATORS[operator], wanted = text.toLowerCase(), number = text === "" ? NaN : asNumber(text);
  return (run) => {
    const value = column.of(run);
    if (value === undefined || value === null) return operator === "!=";
    if (typeof value === "number" && !Number.isNaN(number)) return compare(value, number);
    const texts = (column.texts?.(run) ?? [String(column.text?.(run) ?? value)]).map((one) => one.toLowerCase());
    if (!column.texts) return compare(texts[0], wanted);
    const begins = texts.some((one) => one.startsWith(wanted));  // a commit by its first digits, an alarm by its name
    return operator === "!=" ? !begins : operator === "=" ? begins : texts.some((one) => compare(one, wanted));
  };
}

// { test(run), problem }: `problem` names what cannot be understood, which finds nothing and hides nothing.
export function finder(query) {
  const tests = [], problems = [];
  for (const [term] of query.matchAll(/(?:[^\s"]|"[^"]*")+/g)) {
    const plain = term.replaceAll('"', ""), parts = /^(.+?)(!=|<=|>=|=|<|>)(.*)$/.exec(plain);
    if (parts) {
      const column = meant(parts[1]);
      if (column && !parts[3]) continue;  // half typed
      if (column) tests.push(comparingWith(column, parts[2], parts[3]));
      else problems.push(parts[1]);
      continue;
    }
    const not = /^[-!]./.test(plain), word = (not ? plain.slice(1) : plain).toLowerCase();
    tests.push((run) => [run.id, run.state, run.info.history?.place?.host ?? "", ...alarmNames(run)].some((text) => text.toLowerCase().includes(word)) !== not);
  }
  return { test: (run) => tests.every((test) => test(run)), problem: problems.length ? `There is no column ${problems.join(", ")}.` : "" };
}
