// Numbers as people read them.

// A number in the units of its column: no exponent, no negative zero. `formatting.number` of Python is the same.
export function num(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e6) return value.toLocaleString("en-US").replace("-", "−");
  if (size >= 1e6) return exponential(value);
  if (value > ROUNDING_NOISE && value < 0.5 * 10 ** -digits) return `<${(10 ** -digits).toFixed(digits)}`;
  const text = size >= 1000 ? Math.round(value).toLocaleString("en-US")
    : size >= 100 ? value.toFixed(Math.min(digits, 1))
    : value.toFixed(size >= 10 ? Math.min(digits, 2) : digits);
  return /^-0\.?0*$/.test(text) ? text.slice(1) : text.replace("-", "−");
}
const ROUNDING_NOISE = 1e-7;  // float32 resolves no more: what is smaller is 0 with a rounding error
const exponential = (value) => value.toExponential(2).replace("e+", "e").replace("-", "−").replace("e-", "e−");

// A number whose size is not known beforehand, such as a learning rate.
export function significant(value, digits = 4) {
  const size = Math.abs(value ?? 0);
  if (size > 0 && size < 10 ** -Math.min(digits, 4)) return exponential(value);
  return size > 0 && size < 10 ** (1 - digits) ? value.toPrecision(2).replace("-", "−") : num(value, digits);
}

export function percent(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  const hundred = 100 * value;
  if (hundred < 0) return `−${percent(-value, digits)}`;
  if (value > 0 && hundred < 0.01) return "<0.01%";
  if (value > 0 && hundred < 0.1) return `${hundred.toFixed(2)}%`;
  return `${hundred.toFixed(hundred >= 99.95 ? 0 : digits)}%`;
}

export function seconds(value, digits = 3) {
  return num(value, digits);
}

export function whole(value) {
  return value === null || value === undefined ? "–" : Math.round(value).toLocaleString("en-US");
}

export const counted = (count, what) => `${whole(count)} ${what}${count === 1 ? "" : "s"}`;

export function ago(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 129600) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

// `0.7 s`, `42 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`. `formatting.duration` of Python is the same up to hours.
export function timeTaken(seconds) {
  const rounded = Math.round(seconds), two = (value) => String(value).padStart(2, "0");
  if (seconds > 0 && seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (rounded < 60) return `${rounded} s`;
  if (rounded < 3600) return `${Math.floor(rounded / 60)} min ${two(rounded % 60)} s`;
  if (rounded < 172800) return `${Math.floor(rounded / 3600)} h ${two(Math.floor((rounded % 3600) / 60))} min`;
  return `${Math.floor(rounded / 86400)} d ${Math.floor((rounded % 86400) / 3600)} h`;
}

export const last = (list) => list[list.length - 1];

export function firstAndLast(values = []) {
  const known = values.filter((value) => value !== null);
  return [known[0], last(known)];
}
