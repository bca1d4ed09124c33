// What is typed as a value, with the units and in the forms in which the table prints it.

// 43.8% and +1.5 pt are hundredths; 1,234 and 1.00e−5 as they are printed. NaN of what is no number.
export function typedNumber(text) {
  const plain = text.trim().replaceAll("−", "-").replaceAll(/(\d),(?=\d{3}(?!\d))/g, "$1");
  const [, digits, unit] = /^([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(%|pt)?$/i.exec(plain) ?? [];
  return digits === undefined ? NaN : unit ? Number((Number(digits) / 100).toPrecision(12)) : Number(digits);
}

const UNIT_SECONDS = { s: 1, m: 60, min: 60, h: 3600, d: 86400, day: 86400, days: 86400 };

// Seconds: 9, 9s, 3 min 05 s, 2 h 10 min, 3 d 4 h, 5 min ago. NaN of what is no duration.
export function typedSeconds(text) {
  const plain = text.trim().toLowerCase().replace(/\s*ago$/, "");
  if (!/^(?:\d+(?:\.\d+)?\s*(?:days|day|min|d|h|m|s)\s*)+$/.test(plain)) return typedNumber(plain);
  return [...plain.matchAll(/(\d+(?:\.\d+)?)\s*([a-z]+)/g)].reduce((total, [, count, unit]) => total + Number(count) * UNIT_SECONDS[unit], 0);
}

const DATE = /^(\d{4})(?:-(\d\d?)(?:-(\d\d?)(?:[t ]\s*(\d\d?)(?::(\d\d)(?::(\d\d)(?:\.\d+)?)?)?)?)?)?\s*(z|utc)?$/;
const TIME = /^(\d\d?):(\d\d)(?::(\d\d))?$/;
const MONTHS = Array.from({ length: 12 }, (_, month) => [undefined, "en"].flatMap((locale) => ["short", "long"].map((style) => new Date(2026, month, 1).toLocaleString(locale, { month: style }).toLowerCase().replace(".", ""))));
const SOON_DAYS = 31;

// [from, to) in seconds: of a year, month, day, hour, minute or second as 2026-11-30T13:52, of a time of today as 13:52, and of a
// date as the table prints it: Nov 30, 13:52. That has no year: it is of this one, or of the last where it would be far ahead.
// undefined of what is none of these. On this machine's clock, unless UTC or Z follows.
export function typedTime(text, now = new Date()) {
  const plain = text.trim().toLowerCase(), date = DATE.exec(plain), time = TIME.exec(plain);
  if (date) return spanOf(date.slice(1, 7), Boolean(date[7]));
  if (time) return spanOf([now.getFullYear(), now.getMonth() + 1, now.getDate(), ...time.slice(1)]);
  const words = plain.split(/[\s,.]+/).filter(Boolean), taken = (test) => { const i = words.findIndex(test); return i < 0 ? undefined : words.splice(i, 1)[0]; };
  const name = taken((word) => MONTHS.some((names) => names.includes(word))), clock = taken((word) => TIME.test(word)), year = taken((word) => /^\d{4}$/.test(word)), day = taken((word) => /^\d\d?$/.test(word));
  if (!name || !day || words.length) return undefined;
  const spanIn = (one) => spanOf([one, MONTHS.findIndex((names) => names.includes(name)) + 1, day, ...(clock ? TIME.exec(clock).slice(1) : [])]);
  const span = spanIn(year ?? now.getFullYear());
  return year || (span && span[0] - now / 1000 < SOON_DAYS * 86400) ? span : spanIn(now.getFullYear() - 1);
}

// Of [year, month, day, hour, minute, second], as far as they are there; undefined where there is no such day or time.
function spanOf(parts, utc = false) {
  const there = parts.filter((part) => part !== undefined).map(Number), [year, month = 1, day = 1, hour = 0, minute = 0, second = 0] = there;
  if (month < 1 || month > 12 || day < 1 || day > new Date(year, month, 0).getDate() || hour > 23 || minute > 59 || second > 59) return undefined;
  const at = (all) => (utc ? Date.UTC(...all) : new Date(...all).getTime()) / 1000, start = [year, month - 1, day, hour, minute, second];
  return [at(start), at(start.with(there.length - 1, start[there.length - 1] + 1))];
}
