// What is typed to find runs: words of their names, and comparisons such as `accuracy>0.8 lr=0.001 -failed`.
import { alarmNames, asTyped, columnOf, LABELS } from "./columns.js";
import { flat } from "./flat.js";
import { store } from "./store.js";

const OPERATORS = { "!=": (a, b) => a !== b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "=": (a, b) => a === b, "<": (a, b) => a < b, ">": (a, b) => a > b };

// The column that somebody means: by its id, its label, or the last part of a recipe's key.
function meant(name) {
  const wanted = name.toLowerCase();
  const byLabel = [...LABELS].find(([label]) => asTyped(label) === asTyped(name))?.[1];
  const byId = columnOf(name) ?? columnOf(wanted) ?? (byLabel && columnOf(byLabel));
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
    if (typeof value === "number" && !column.asText && !Number.isNaN(number)) return compare(value, number);
    const texts = (column.texts?.(run) ?? [String(column.text?.(run) ?? value)]).map((one) => one.toLowerCase());
    if (!column.texts) return compare(texts[0], wanted);
    const begins = texts.some((one) => one.startsWith(wanted));  // a commit by its first digits, an alarm by its name
    return operator === "!=" ? !begins : operator === "=" ? begins : texts.some((one) => compare(one, wanted));
  };
}

// What is outside of quotes without spaces around operators, and with column heads of several words, such as `Reverse KL`, in quotes.
const WORDY_HEADS = new RegExp(`(^|\\s)(${[...LABELS.keys()].filter((label) => label.includes(" ")).join("|")})(?=[!<>=])`, "gi");
const tidied = (query) => query.split(/("[^"]*")/).map((part, i) => (i % 2 ? part : part.replaceAll(/\s*(!=|<=|>=|=|<|>)(?:\s+(?!\S*[!<>=]))?/g, "$1").replaceAll(WORDY_HEADS, '$1"$2"'))).join("");

// Of a column whose numbers or dates are compared with what is none: what is wrong with it.
function notComparable(column, text) {
  if (column.asText) return /^\d/.test(text) ? "" : `${column.label} is a date such as 2026-11-30, and ${text} is not.`;
  const values = store.runs.map((run) => column.of(run)).filter((value) => value !== undefined && value !== null);
  const numbers = !column.texts && values.length > 0 && values.every((value) => typeof value === "number");
  return numbers && Number.isNaN(asNumber(text)) ? `${column.label} is a number, and ${text} is not.` : "";
}

// { test(run), problem }: `problem` names what cannot be understood, which finds nothing and hides nothing.
export function finder(query) {
  const tests = [], unknown = [], problems = [];
  for (const [term] of tidied(query).matchAll(/(?:[^\s"]|"[^"]*")+/g)) {
    const plain = term.replaceAll('"', ""), parts = /^(.+?)(!=|<=|>=|=|<|>)(.*)$/.exec(plain);
    if (parts) {
      const column = meant(parts[1]);
      if (column && !parts[3]) continue;  // half typed
      const problem = column && notComparable(column, parts[3]);
      if (problem) problems.push(problem);
      else if (column) tests.push(comparingWith(column, parts[2], parts[3]));
      else unknown.push(parts[1]);
      continue;
    }
    const not = /^[-!]./.test(plain), word = (not ? plain.slice(1) : plain).toLowerCase();
    tests.push((run) => [run.id, run.state, run.info.history?.place?.host ?? "", ...alarmNames(run)].some((text) => text.toLowerCase().includes(word)) !== not);
  }
  return { test: (run) => tests.every((test) => test(run)), problem: [...(unknown.length ? [`There is no column ${unknown.join(", ")}.`] : []), ...problems].join(" ") };
}
