// What is typed to find runs: words of their names, and comparisons such as `accuracy>0.8 lr=0.001 -failed`.
import { alarmNames, asTyped, columnOf, LABELS } from "./columns.js";
import { flat } from "./flat.js";
import { num } from "./format.js";
import { store } from "./store.js";
import { temperatureOf } from "./temperature.js";
import { typedNumber, typedTime } from "./typed.js";

// Of how a value stands to what is typed: -1 below, 0 the same as far as the table shows it, 1 above.
const OPERATORS = { "!=": (side) => side !== 0, "<=": (side) => side <= 0, ">=": (side) => side >= 0, "=": (side) => side === 0, "<": (side) => side < 0, ">": (side) => side > 0 };
const MISSING = "–";
const MOST_WORDS = 5;  // of a value without quotes: `Nov 30, 13:52`
const TEMPERATURE = { id: "T", label: "T", of: (run) => temperatureOf(run, "train", ""), show: (value) => num(value) };

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
  return wanted === "t" ? TEMPERATURE : undefined;
}

const isMissing = (value) => value === undefined || value === null;
const plainText = (text) => text.toLowerCase().replaceAll("−", "-").replaceAll(/\s+/g, " ").trim();
const shownText = (column, run) => { const value = column.of(run); return plainText(isMissing(value) ? MISSING : column.show(value, run)); };
const numberIn = (column, text) => (column.typed ?? typedNumber)(text);

// What a typed text is in a column: { number } or { time: [from, to] }, by the forms that the table prints or by the run that shows it.
function asMeant(column, text) {
  const like = store.runs.find((run) => shownText(column, run) === plainText(text)), value = like && column.of(like);
  if (column.isTime) return { time: typedTime(text) ?? (isMissing(value) ? undefined : [60 * Math.floor(value / 60), 60 * Math.floor(value / 60) + 60]), shown: Boolean(like) };
  const number = numberIn(column, text);
  return { number: Number.isNaN(number) && typeof value === "number" ? value : number, shown: Boolean(like) };
}

function comparingWith(column, operator, text, { number, time }) {
  const holds = OPERATORS[operator], wanted = plainText(text);
  return (run) => {
    const value = column.of(run);
    if (isMissing(value)) return operator === "!=" ? wanted !== MISSING : operator === "=" && wanted === MISSING;
    if (time) return holds(value < time[0] ? -1 : value < time[1] ? 0 : 1);
    const shown = shownText(column, run);
    if (typeof value === "number" && !Number.isNaN(number)) return holds(value === number || shown === wanted || numberIn(column, shown) === number ? 0 : Math.sign(value - number));
    if (!column.texts) { const own = plainText(String(column.text?.(run) ?? value)); return holds(own === wanted || shown === wanted ? 0 : own < wanted ? -1 : 1); }
    const texts = [...column.texts(run), shown].map(plainText), begins = texts.some((one) => one.startsWith(wanted));  // a commit by its first digits, an alarm by its name
    return operator === "!=" ? !begins : operator === "=" ? begins : texts.some((one) => holds(one < wanted ? -1 : one > wanted ? 1 : 0));
  };
}

// What is outside of quotes without spaces around operators, and with column heads of several words, such as `Reverse KL`, in quotes.
const WORDY_HEADS = new RegExp(`(^|\\s)(${[...LABELS.keys()].filter((label) => label.includes(" ")).join("|")})(?=[!<>=])`, "gi");
const tidied = (query) => query.split(/("[^"]*")/).map((part, i) => (i % 2 ? part : part.replaceAll(/\s*(!=|<=|>=|=|<|>)(?:\s+(?!\S*[!<>=]))?/g, "$1").replaceAll(WORDY_HEADS, '$1"$2"'))).join("");

// Of a column whose numbers or dates are compared with what is none: what is wrong with it.
function notComparable(column, text, { number, time, shown }) {
  if (shown || plainText(text) === MISSING) return "";
  if (column.isTime) return time ? "" : `${column.label} is a date such as 2026-11-30 or Nov 30, or a time of today such as 13:52, and ${text} is not.`;
  const values = store.runs.map((run) => column.of(run)).filter((value) => !isMissing(value));
  const numbers = !column.texts && values.length > 0 && values.every((value) => typeof value === "number");
  return numbers && Number.isNaN(number) ? `${column.label} is a number${column.typed ? " of seconds, or a time such as 2 min or 1 h 05 min" : ""}, and ${text} is not.` : "";
}

const hasWord = (run, word) => [run.id, run.state, run.info.history?.place?.host ?? "", ...alarmNames(run)].some((text) => text.toLowerCase().includes(word));
const isWord = (term) => !/["!<>=]/.test(term) && !term.startsWith("-");

// The value at the start of these terms and how many of them it takes: as many words as are one, such as `2 min`. Of what cannot be
// understood also the words that no run has: they would hide every run.
function typedAt(column, first, terms) {
  const most = terms.findIndex((term) => !isWord(term)), words = terms.slice(0, most < 0 ? MOST_WORDS : Math.min(most, MOST_WORDS));
  for (let count = words.length; count > 0; count -= 1) {
    const text = [first, ...words.slice(0, count)].join(" "), read = asMeant(column, text);
    if (read.shown || read.time || (read.number !== undefined && !Number.isNaN(read.number))) return { text, read, count };
  }
  const read = asMeant(column, first), known = words.findIndex((word) => store.runs.some((run) => hasWord(run, word.toLowerCase())));
  const count = notComparable(column, first, read) ? (known < 0 ? words.length : known) : 0;
  return { text: [first, ...words.slice(0, count)].join(" "), read, count };
}

const LOGIC = /^(or|and|not|&&?|\|\|?)$|\*/i;

// { test(run), problem }: `problem` names what cannot be understood; a comparison of that kind hides nothing.
export function finder(query) {
  const tests = [], unknown = [], problems = [], logic = [], terms = [...tidied(query).matchAll(/(?:[^\s"]|"[^"]*")+/g)].map(([term]) => term);
  for (let i = 0; i < terms.length; i += 1) {
    const plain = terms[i].replaceAll('"', ""), parts = /^(.+?)(!=|<=|>=|=|<|>)(.*)$/.exec(plain), bare = /^(!=|<=|>=|=|<|>)/.test(plain);
    if (parts && !bare) {
      const [, name, operator, first] = parts, column = meant(name);
      if (!column) { unknown.push(name); continue; }
      if (!first) { problems.push(`${plain} is not finished: a value is missing.`); continue; }
      const { text, read, count } = terms[i].endsWith('"') ? { text: first, read: asMeant(column, first), count: 0 } : typedAt(column, first, terms.slice(i + 1));
      i += count;
      const problem = notComparable(column, text, read);
      if (problem) problems.push(problem);
      else tests.push(comparingWith(column, operator, text, read));
      continue;
    }
    if (bare) { problems.push(`${plain} is not finished: a column is missing before it.`); continue; }
    const not = /^[-!]./.test(plain), word = (not ? plain.slice(1) : plain).toLowerCase();
    if (LOGIC.test(terms[i])) logic.push(plain);
    tests.push((run) => hasWord(run, word) !== not);
  }
  const test = (run) => tests.every((one) => one(run));
  if (logic.length && !store.runs.some(test)) problems.push(`${logic.join(", ")} ${logic.length > 1 ? "are" : "is"} looked for as text: every word has to be found, a part of a name is enough, and - before a word leaves it out.`);
  return { test, problem: [...(unknown.length ? [`There is no column ${unknown.join(", ")}.`] : []), ...problems].join(" ") };
}
