// The axes: what runs along x (steps, tokens or time), and how both are divided and labelled.
import { num, percent, significant, whole } from "./format.js";
import { known } from "./series.js";

const SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 432000, 864000];

// 1,234 tokens as they stand below an axis: 1.2k, 3M, 1.5B.
export function short(value) {
  const [size, unit] = value >= 1e9 ? [1e9, "B"] : value >= 1e6 ? [1e6, "M"] : value >= 1e3 ? [1e3, "k"] : [1, ""];
  return `${Number((value / size).toPrecision(3))}${unit}`;
}

// 5,400 seconds: 1.5 h.
export function duration(seconds) {
  const [size, unit] = seconds >= 172800 ? [86400, "days"] : seconds >= 3600 ? [3600, "h"] : seconds >= 60 ? [60, "min"] : [1, "s"];
  return `${Number((seconds / size).toPrecision(3))} ${unit}`;
}

export const X_AXES = {
  steps: { name: "Steps", label: "step", said: (x) => `step ${whole(x)}`, tick: (x) => (Number.isInteger(x) ? whole(x) : "") },
  tokens: { name: "Tokens", label: "sampled tokens", key: "tokens/sampled", said: (x) => `${short(x)} tokens`, tick: short },
  time: { name: "Time", label: "training time", key: "seconds/step", said: duration, tick: duration, incrs: SECONDS },
};

// Where each line of a run's file stands on the axis: null where the file does not say. Time is that of the steps
// themselves, so two runs are compared by what they worked, whatever was evaluated or saved between.
const placed = new WeakMap();
export function places(run, from, axis) {
  const steps = run[from].step, { key } = X_AXES[axis];
  if (!key) return steps;
  const amounts = run.train.values[key];
  if (!amounts?.some(known)) return null;
  const memo = placed.get(run) ?? {}, sign = [steps.length, steps[steps.length - 1], run.train.step.length, run.train.step[run.train.step.length - 1]].join();
  if (memo[`${axis} ${from}`]?.sign === sign) return memo[`${axis} ${from}`].x;
  let total = 0;
  const sums = amounts.map((amount) => (total += amount ?? 0));
  const x = from === "train" ? sums : steps.map((step) => {
    let i = run.train.step.length - 1;
    while (i >= 0 && run.train.step[i] > step) i -= 1;
    return i < 0 ? 0 : sums[i];
  });
  placed.set(run, { ...memo, [`${axis} ${from}`]: { sign, x } });
  return x;
}

// Where steps of several runs stand together: what a step took is the mean over the runs that made it, so that the axis goes on
// where one of them ends, and each step has one place whichever of them have a value there. null where a run's file does not say.
export function placesOfSeveral(runs, steps, axis) {
  const { key } = X_AXES[axis];
  if (!key) return steps;
  if (!runs.every((run) => places(run, "train", axis))) return null;
  const amounts = new Map();
  for (const run of runs) run.train.step.forEach((step, i) => {
    const [total, n] = amounts.get(step) ?? [0, 0];
    amounts.set(step, [total + (run.train.values[key][i] ?? 0), n + 1]);
  });
  const made = [...amounts.keys()].sort((p, q) => p - q);
  let i = 0, sum = 0;
  return steps.map((step) => {
    for (; i < made.length && made[i] <= step; i += 1) { const [total, n] = amounts.get(made[i]); sum += total / n; }
    return sum;
  });
}

// Where a step of a run stands on the axis.
export function placeOf(run, step, axis) {
  const x = places(run, "train", axis);
  const i = run.train.step.indexOf(step);
  return axis === "steps" ? step : x?.[i] ?? null;
}

const SMALLEST = 0.01;

// What a y axis shows of [low, high], with some room. `span` is the least that it covers, and never less than a hundredth of the
// values: rounding errors do not look like a curve. No share is above 1.
export function roomFor([least, most], { span = 0, share = false, log = false } = {}) {
  if (log) return [firstDigit(least, Math.floor), firstDigit(most, Math.ceil)].map((value, i, both) => (both[0] === both[1] ? value * [0.5, 2][i] : value));
  span = Math.max(span, SMALLEST * Math.max(Math.abs(least), Math.abs(most)));
  const lack = Math.max(0, span - (most - least)), full = share && most < 1 + 1e-6;
  const above = full ? Math.max(0, Math.min(lack / 2, 1 - most)) : lack / 2, below = least >= 0 ? Math.min(lack - above, least) : lack - above;
  const low = least - below, high = low + Math.max(most - least, span) || most;
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  return [low >= 0 && low < 0.35 * high ? 0 : low - room, high + room];
}

// The value with one digit, as near as `round` says; what is a hair from such a number is it.
function firstDigit(value, round) {
  const size = 10 ** Math.floor(Math.log10(value)), digit = value / size;
  return Number((Math.max(1, Math.abs(digit - Math.round(digit)) < 1e-9 ? Math.round(digit) : round(digit)) * size).toPrecision(1));
}

// About `count` round numbers between two, as [value, ...], and how far apart they are.
export function ticks(low, high, count, increments) {
  const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
  const apart = (increments?.find((one) => one >= raw)) ?? ([1, 2, 2.5, 5, 10].map((one) => one * size).find((one) => one >= raw * 0.999) ?? 10 * size);
  const out = [];
  for (let i = Math.ceil(low / apart - 1e-9); i * apart <= high + apart * 1e-9; i += 1) out.push(Number((i * apart).toPrecision(12)));
  return [out, apart];
}

export function logTicks(low, high) {
  const digits = high / low > 300 ? [1] : high / low > 20 ? [1, 2, 5] : [1, 2, 3, 4, 5, 6, 7, 8, 9], out = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) for (const digit of digits) out.push(Number(`${digit}e${power}`));
  return out.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

// The labels of an axis of numbers `apart` from each other. Where the largest has an exponent, all have that one. `apart` is 0 along a
// logarithm: there each is by itself.
export function tickTexts(format, values, apart) {
  const size = Math.max(...values.map((value) => Math.abs(value ?? 0)));
  if (!apart || ![num, significant].includes(format) || size === 0 || (size >= 1e-3 && size < 1e6)) return values.map((value) => (known(value) ? tickText(format, value, apart || value) : ""));
  const power = Math.floor(Math.log10(size)), digits = Math.min(8, Math.max(0, Math.ceil(power - Math.log10(apart) - 1e-9) + 1));
  return values.map((value) => (!known(value) ? "" : value === 0 ? "0" : `${(value / 10 ** power).toFixed(digits).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "")}e${power}`.replaceAll("-", "−")));
}

// A label on the axis, with as many digits as tell it from the next one, `apart` away.
function tickText(format, value, apart) {
  const digits = Math.ceil(-Math.log10(apart * (format === percent ? 100 : 1)) - 1e-9);
  const text = (format === num ? significant : format)(value, Math.min(Math.max(digits + 1, 1), 8));
  return text.replace(/(\.\d*?)0+(%?|e.*)$/, "$1$2").replace(/\.(%?|e.*)$/, "$1");
}
