// Values over steps, before anything is drawn: smoothing, a common axis, and what part of them a chart shows.
export const known = (value) => value !== null && value !== undefined;

// null of no values.
export const meanOf = (values) => (values.length ? values.reduce((total, value) => total + value, 0) / values.length : null);

// Exponential mean without the pull towards 0 at the start. A standard error is carried along as that
// of independent steps: the weights' squares.
export function smooth(values, errors, amount) {
  const mean = new Array(values.length).fill(null);
  const error = errors && new Array(values.length).fill(null);
  let total = 0, weight = 0, square = 0;
  for (let i = 0; i < values.length; i += 1) {
    if (!known(values[i])) continue;
    total = amount * total + (1 - amount) * values[i];
    weight = amount * weight + (1 - amount);
    mean[i] = total / weight;
    if (errors && known(errors[i])) {
      square = amount * amount * square + ((1 - amount) * errors[i]) ** 2;
      error[i] = Math.sqrt(square) / weight;
    }
  }
  return [mean, error];
}

// Puts several [x, y] on the union of their places.
export function align(lines) {
  const first = lines[0]?.x ?? [];
  if (lines.every((line) => line.x === first)) return [first, lines.map((line) => line.columns)];
  const places = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const index = new Map(places.map((place, i) => [place, i]));
  const spread = (x, column) => {
    const out = new Array(places.length).fill(null);
    x.forEach((place, i) => { out[index.get(place)] = column[i] ?? null; });
    return out;
  };
  return [places, lines.map((line) => line.columns.map((column) => spread(line.x, column)))];
}

// Where a line is broken: between the values on either side of those that are not finite, which `line.broken` has the indices
// of. Values that are absent, as most steps have no evaluation, are joined. [[from, to], ...] in indices, null at an end.
export function gapsOf({ broken, columns: [values] }) {
  const gaps = [];
  for (const i of broken ?? []) {
    if (gaps.length && (gaps[gaps.length - 1][1] ?? Infinity) > i) continue;
    let from = i - 1, to = i + 1;
    while (from >= 0 && !known(values[from])) from -= 1;
    while (to < values.length && !known(values[to])) to += 1;
    gaps.push([from < 0 ? null : from, to < values.length ? to : null]);
  }
  return gaps;
}

// The indices of values that are dots, as no line reaches them: the only one, or one between two gaps.
export function dotsOf(line) {
  if (line.points || !line.label) return [];
  const [values] = line.columns, first = values.findIndex(known), last = values.findLastIndex(known), gaps = gapsOf(line);
  if (first < 0) return [];
  const starts = [first, ...gaps.map(([, to]) => to)], ends = [last, ...gaps.map(([from]) => from)];
  return [...new Set(starts)].filter((i) => i !== null && ends.includes(i));
}

// Index of the last value at or before a place.
export function lastAt(x, values, place) {
  let low = 0, high = x.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (x[middle] <= place) low = middle + 1;
    else high = middle - 1;
  }
  while (high >= 0 && !known(values[high])) high -= 1;
  return high;
}

// Index of the value nearest to a place; the later one of two.
export function nearestAt(x, values, place) {
  let best = -1;
  for (let i = 0; i < x.length; i += 1) {
    if (known(values[i]) && (best < 0 || Math.abs(x[i] - place) <= Math.abs(x[best] - place))) best = i;
  }
  return best;
}

// What the axis has to cover, [low, high], of the lines between two places, or null where there is nothing. With `clip`
// the hundredth part of a line's values that is furthest out, rounded up, may be left outside at either end (of fewer than ten
// none); but only where it would take more of the axis than all the rest. Evaluations are few, and never left out; nor are
// the newest values of a line, which may be the start of a divergence.
export function extent(lines, [from, to], { clip = false, log = false } = {}) {
  const usable = (value) => known(value) && (!log || value > 0);
  const inside = lines.map((line) => [line, line.x.flatMap((x, i) => (x >= from && x <= to ? [i] : []))]);
  const values = inside.map(([line, places]) => [line, places.map((i) => line.columns[0][i]).filter(usable), newestOf(line, [from, to]).filter(usable)]);
  const [bottom, top] = clip ? clippedAt(values, log ? Math.log : (value) => value) : [-Infinity, Infinity];
  let low = Infinity, high = -Infinity;
  for (const [line, places] of inside) for (const i of places) {
    const mean = line.columns[0][i];
    if (known(mean) && (mean < bottom || mean > top)) continue;
    for (const column of line.columns) if (usable(column[i])) { low = Math.min(low, column[i]); high = Math.max(high, column[i]); }
  }
  return low > high ? null : [low, high];
}
const FEW = 10;  // values, of which none is called an outlier
const NEWEST_FEW = 3;

function newestOf(line, [from, to]) {
  const places = [];
  for (let i = line.x.length - 1; i >= 0 && places.length < NEWEST_FEW; i -= 1) if (known(line.columns[0][i])) places.push(i);
  return places.filter((i) => line.x[i] >= from && line.x[i] <= to).map((i) => line.columns[0][i]);
}

function clippedAt(values, size) {
  let low = Infinity, high = -Infinity, least = Infinity, most = -Infinity;
  for (const [line, all, newest] of values) {
    if (!all.length) continue;
    const sorted = Float64Array.from(all).sort(), out = line.points || all.length < FEW ? 0 : Math.ceil(all.length / 100);
    low = Math.min(low, sorted[out], ...newest);
    high = Math.max(high, sorted[sorted.length - 1 - out], ...newest);
    least = Math.min(least, sorted[0]);
    most = Math.max(most, sorted[sorted.length - 1]);
  }
  const rest = size(high) - size(low);
  return [rest > 0 && size(low) - size(least) > rest ? low : -Infinity, rest > 0 && size(most) - size(high) > rest ? high : Infinity];
}

// What is left outside of [low, high]: [{ line, i, above }].
export function outside(lines, [from, to], [low, high]) {
  const hair = 1e-6 * (high - low);
  return lines.filter((line) => !line.points && line.label).flatMap((line) => line.columns[0].flatMap((value, i) => (
    known(value) && line.x[i] >= from && line.x[i] <= to && (value > high + hair || value < low - hair) ? [{ line, i, above: value > high }] : [])));
}

// Fewer points that look the same: of each of `columns` equal parts of the axis the first, last, least and largest.
export function thin(points, columns) {
  if (points.length <= 4 * columns) return points;
  const start = points[0][0], width = (points[points.length - 1][0] - start) / columns || 1, kept = new Set();
  let part = -1, first = 0;
  const close = (end) => {
    let low = first, high = first;
    for (let i = first; i < end; i += 1) {
      if (points[i][1] < points[low][1]) low = i;
      if (points[i][1] > points[high][1]) high = i;
    }
    for (const i of [first, low, high, end - 1]) kept.add(i);
  };
  points.forEach(([x], i) => {
    const mine = Math.floor((x - start) / width);
    if (mine !== part) { if (i) close(i); part = mine; first = i; }
  });
  close(points.length);
  return points.filter((_, i) => kept.has(i));
}

// Sorted places, of which those that follow each other closer than `near` are one: [[from, to], ...].
export function spans(places, near) {
  const out = [];
  for (const place of places) {
    const span = out[out.length - 1];
    if (span && place - span[1] < near) span[1] = place;
    else out.push([place, place]);
  }
  return out;
}
