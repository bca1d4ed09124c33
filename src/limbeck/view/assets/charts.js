// One chart: lines with bands over steps, drawn by uPlot, with the values under the cursor in its head.
import { announce, colour, el, printable } from "./dom.js";
import { num, percent, significant } from "./format.js";

// Shared by all charts: smoothing in [0, 1), log scale, the steps zoomed to.
export const view = { smoothing: 0, log: false, zoom: null, charts: new Set() };
const FONT = '11px "Inter", system-ui, sans-serif';

// Exponential mean without the pull towards 0 at the start. A standard error is carried along as that
// of independent steps: the weights' squares.
export function smooth(values, errors, amount) {
  const mean = new Array(values.length).fill(null);
  const error = errors && new Array(values.length).fill(null);
  let total = 0, weight = 0, square = 0;
  for (let i = 0; i < values.length; i += 1) {
    if (values[i] === null || values[i] === undefined) continue;
    total = amount * total + (1 - amount) * values[i];
    weight = amount * weight + (1 - amount);
    mean[i] = total / weight;
    if (errors && errors[i] !== null && errors[i] !== undefined) {
      square = amount * amount * square + ((1 - amount) * errors[i]) ** 2;
      error[i] = Math.sqrt(square) / weight;
    }
  }
  return [mean, error];
}

// Puts several [x, y] on the union of their steps.
function align(lines) {
  const first = lines[0]?.x ?? [];
  if (lines.every((line) => line.x === first)) return [first, lines.map((line) => line.columns)];
  const steps = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, index) => [step, index]));
  const spread = (x, column) => {
    const out = new Array(steps.length).fill(null);
    x.forEach((step, i) => { out[place.get(step)] = column[i]; });
    return out;
  };
  return [steps, lines.map((line) => line.columns.map((column) => spread(line.x, column)))];
}

export class Chart {
  // build() -> { lines, alarms }: see `curves.js`. Drawn when it comes into sight. A line of `points` is measured at
  // some steps only: it is drawn as points with error bars, and nothing between them.
  constructor({ title, unit = "", about = "", size = "", format = num, height = 200, stacked = false, linear = stacked || format === percent, span = 0, axis = "step", build }) {
    Object.assign(this, { title, format, height, stacked, linear, span, axis, build });
    this.values = el("div", { class: "values" });
    this.step = el("span", { class: "at" });
    this.note = el("p", { class: "note", hidden: true });
    this.plot = el("div", { class: "plot", tabIndex: 0, role: "img", onkeydown: (event) => this.key(event), onblur: () => this.leave() });
    this.node = el("figure", { class: `card chart ${size}` },
      el("figcaption", {}, this.heading = el("h3", { title: about || undefined }, title, this.unit = el("small", {}, unit)), this.step, this.values),
      this.plot, this.note);
    view.charts.add(this);
    this.dirty = true;
    new IntersectionObserver((entries) => {
      this.seen = entries.some((entry) => entry.isIntersecting);
      if (this.seen && this.dirty) this.draw();
    }, { rootMargin: "200px" }).observe(this.plot);
    new ResizeObserver(() => {
      if (this.u && this.plot.clientWidth) this.u.setSize({ width: this.plot.clientWidth, height: this.height });
    }).observe(this.plot);
  }

  // A label on the axis, with as many digits as tell it from the next one, `apart` away.
  tick(value, apart) {
    const digits = Math.ceil(-Math.log10(apart * (this.format === percent ? 100 : 1)) - 1e-9);
    const text = (this.format === num ? significant : this.format)(value, Math.min(Math.max(digits + 1, 1), 8));
    return text.replace(/(\.\d*?)0+(%?|e.*)$/, "$1$2").replace(/\.(%?|e.*)$/, "$1");
  }

  update(anew = false) {
    this.anew ||= anew;
    this.dirty = true;
    if (this.seen) this.draw();
  }

  draw() {
    this.dirty = false;
    const { lines, alarms = [], missing = "", unit, ...changes } = this.build();
    Object.assign(this, changes);  // such as the title of a chart that shows another quantity for these runs
    this.heading.firstChild.data = this.title;
    if (unit) this.unit.textContent = printable(unit);
    this.lines = lines;
    this.alarms = alarms;
    this.plot.classList.toggle("empty", lines.length === 0);
    if (!lines.length) {
      this.u?.destroy();
      this.u = null;
      this.plot.replaceChildren(el("p", {}, missing || "No values yet"));
      this.values.replaceChildren();
      return;
    }
    const logarithmic = view.log && !this.linear;
    const [xs, columns] = align(lines);
    const positive = (column) => (logarithmic ? column.map((value) => (value > 0 ? value : null)) : column);
    this.data = [xs, ...columns.flat().map(positive)];
    const signature = JSON.stringify([lines.map((line) => [line.label, line.colour, line.columns.length]), logarithmic]);
    if (this.u && signature === this.signature && !this.anew) this.u.setData(this.data, !this.zoomed);
    else this.create(logarithmic);
    this.anew = false;
    this.signature = signature;
    this.describe(null);
  }

  create(logarithmic) {
    this.u?.destroy();
    this.plot.replaceChildren();
    const series = [{}], bands = [];
    for (const line of this.lines) {
      const base = series.length;
      const stroke = line.colour;
      series.push({
        stroke, width: line.width ?? 1.75, dash: line.dash, spanGaps: true, alpha: line.alpha ?? 1, fill: undefined,
        points: { show: line.points ?? false, size: 6, fill: line.points ? colour("--card") : stroke, stroke, width: 1.75 },
        ...(line.points && { paths: () => null }),
      });
      if (line.columns.length === 3) {
        for (let i = 0; i < 2; i += 1) series.push({ width: 0, spanGaps: true, points: { show: false } });
        if (!line.points) bands.push({ series: [base + 2, base + 1], fill: line.band });
        line.ends = [base + 1, base + 2];
      }
      if (line.fillTo !== undefined) bands.push({ series: [base, base - 1], fill: line.band });
    }
    if (this.stacked) {
      series[1].fill = this.lines[0].band;
    }
    const axis = { stroke: colour("--muted"), font: FONT, ticks: { show: false }, grid: { stroke: colour("--grid"), width: 1 } };
    // `span` is the least that the axis covers, so that rounding errors do not look like a curve. No share is above 1.
    const spread = (least, most) => {
      const lack = Math.max(0, this.span - (most - least)), share = this.format === percent && most < 1 + 1e-6;
      const above = share ? Math.max(0, Math.min(lack / 2, 1 - most)) : lack / 2, below = least >= 0 ? Math.min(lack - above, least) : lack - above;
      const low = least - below, high = low + Math.max(most - least, this.span) || most;
      const room = (high - low || Math.abs(high) || 1) * 0.06;
      const bottom = low >= 0 && low < 0.35 * high ? 0 : low - room;
      return [bottom, high + room];
    };
    this.u = new uPlot({
      width: this.plot.clientWidth || 400, height: this.height, series, bands, legend: { show: false },
      padding: [8, 10, 0, 0],
      scales: {
        x: { time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
        y: logarithmic ? { distr: 3 } : { range: (u, low, high) => (low === null ? [0, 1] : spread(low, high)) },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 26, space: 70, values: (u, ticks) => ticks.map((t) => (Number.isInteger(t) ? t.toLocaleString("en-US") : "")) },
        { ...axis, size: (u, texts) => Math.max(52, 14 + 6.4 * Math.max(...(texts ?? [""]).map((text) => text.length))), space: 34, values: (u, ticks, at, space, apart) => ticks.map((t) => (t === null ? "" : this.tick(t, logarithmic ? t : apart))) },
      ],
      cursor: { sync: this.axis === "step" ? { key: "steps", scales: ["x", null] } : undefined, y: false, points: { size: 7 }, drag: { x: true, y: false, setScale: false } },
      hooks: {
        setCursor: [(u) => this.describe(u.cursor.idx)],
        setSelect: [(u) => {
          if (u.select.width < 4) return;
          this.zoomTo([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        }],
        drawAxes: [(u) => this.drawErrorBars(u)],
        draw: [(u) => this.drawAlarms(u)],
      },
    }, this.data, this.plot);
    this.u.over.addEventListener("dblclick", () => this.zoomTo(null));
    if (this.zoomed) this.u.setScale("x", { min: this.zoomed[0], max: this.zoomed[1] });
  }

  // All charts over steps are zoomed together; one over something else is on its own.
  get zoomed() { return this.axis === "step" ? view.zoom : this.zoom; }
  zoomTo(range) {
    if (this.axis === "step") return zoomTo(range);
    this.zoom = range;
    this.scaleTo(range);
  }
  scaleTo(range) {
    const [xs] = this.data;
    const [min, max] = range ?? [xs[0], xs[xs.length - 1]];
    this.u.setScale("x", { min, max });
  }

  // The values at a step (the last ones where no step is pointed at), as numbers beside their colours. A value that was
  // measured at another step says at which. A last position is no summary as a last step is: without a cursor, only
  // the labels stand there.
  describe(index) {
    if (!this.u) return;
    const pointed = index !== null && index !== undefined, valued = pointed || this.axis === "step";
    const step = this.data[0][pointed ? index : this.data[0].length - 1];
    this.step.textContent = pointed ? `${this.axis} ${step?.toLocaleString("en-US")}` : "";
    const labelled = this.lines.filter((line) => line.label);
    const entries = [...labelled.filter((line) => !line.faint), ...labelled.filter((line) => line.faint)].map((line) => this.entry(line, step, valued));
    this.values.replaceChildren(...entries);
    const near = !pointed ? [] : this.alarms.filter((alarm) => Math.abs(this.u.valToPos(alarm.step, "x") - this.u.cursor.left) < 5);
    this.note.hidden = near.length === 0;
    this.note.textContent = printable(near.slice(0, 3).map((alarm) => `▲ step ${alarm.step}: ${alarm.name}: ${alarm.message}`).join("\n"));
    this.summary = `${step === undefined || !valued ? "" : `at ${this.axis} ${step}: `}${entries.map((entry) => entry.textContent).join(", ")}`;
    this.plot.setAttribute("aria-label", `${this.title} ${this.unit.textContent}, ${this.summary}. Arrow keys move along the ${this.axis}s.`);
  }

  // A line's colour, label and value; of points, the nearest one.
  entry(line, step, valued) {
    const i = (line.points ? nearestAt : lastAt)(line.x, line.raw, step);
    const value = i < 0 ? null : line.raw[i];
    const error = line.errors && i >= 0 ? line.errors[i] : null;
    const range = line.interval && i >= 0 ? line.interval.map((column) => column[i]) : null;
    return el("span", { class: line.faint ? "entry faint" : "entry", vars: { "--ink": line.colour, "--alpha": line.alpha ?? 1 } },
      el("i", { class: line.points ? "swatch point" : line.dash ? "swatch dashed" : "swatch" }), el("b", {}, line.label), valued && ` ${this.format(value)}`,
      valued && error !== null && error !== undefined && el("small", {}, ` ± ${this.format(error)}`),
      valued && range && range[0] !== null && range[0] !== undefined && el("small", {}, ` [${this.format(range[0])}, ${this.format(range[1])}]`),
      valued && i >= 0 && line.x[i] !== step && el("small", {}, ` at ${this.axis} ${line.x[i].toLocaleString("en-US")}`));
  }

  drawErrorBars(u) {
    const { ctx, bbox } = u, cap = 3 * devicePixelRatio;
    ctx.save();
    ctx.beginPath();
    ctx.rect(bbox.left - 2 * cap, bbox.top, bbox.width + 4 * cap, bbox.height);
    ctx.clip();
    for (const line of this.lines.filter((each) => each.points && each.ends)) {
      ctx.strokeStyle = line.colour;
      ctx.lineWidth = 1.25 * devicePixelRatio;
      const [lows, highs] = line.ends.map((place) => this.data[place]);
      ctx.beginPath();
      this.data[0].forEach((step, i) => {
        if (lows[i] === null || highs[i] === null || lows[i] === undefined || highs[i] === undefined) return;
        const x = u.valToPos(step, "x", true), [from, to] = [lows[i], highs[i]].map((value) => u.valToPos(value, "y", true));
        for (const [x0, y0, x1, y1] of [[x, from, x, to], [x - cap, from, x + cap, from], [x - cap, to, x + cap, to]]) { ctx.moveTo(x0, y0); ctx.lineTo(x1, y1); }
      });
      ctx.stroke();
    }
    ctx.restore();
  }

  drawAlarms(u) {
    const { ctx, bbox } = u;
    ctx.save();
    ctx.strokeStyle = ctx.fillStyle = colour("--alarm");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([]);
    const size = 4.5 * devicePixelRatio;
    let before = -Infinity;
    for (const { step } of this.alarms) {
      const x = u.valToPos(step, "x", true);
      if (x < bbox.left || x > bbox.left + bbox.width || x - before < 2) continue;
      before = x;
      const foot = bbox.top + bbox.height;
      ctx.globalAlpha = 0.28;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, foot);
      ctx.stroke();
      ctx.globalAlpha = 1;
      ctx.beginPath();
      ctx.moveTo(x, foot - 2 * size);
      ctx.lineTo(x + size, foot);
      ctx.lineTo(x - size, foot);
      ctx.fill();
    }
    ctx.restore();
  }

  key(event) {
    const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape" && this.u) this.zoomTo(null);
    if (move === undefined || !this.u) return;
    event.preventDefault();
    const last = this.data[0].length - 1;
    this.at = Math.max(0, Math.min(last, (this.at ?? last) + move));
    this.u.setCursor({ left: this.u.valToPos(this.data[0][this.at], "x"), top: 10 });
    announce([this.summary, this.note.textContent].filter(Boolean).join(". "));
  }

  leave() {
    this.at = undefined;
    this.u?.setCursor({ left: -10, top: -10 });
  }

  remove() {
    this.u?.destroy();
    view.charts.delete(this);
  }
}

// Index of the last value at or before a step.
function lastAt(x, values, step) {
  let low = 0, high = x.length - 1;
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (x[middle] <= step) low = middle + 1;
    else high = middle - 1;
  }
  while (high >= 0 && (values[high] === null || values[high] === undefined)) high -= 1;
  return high;
}

// Index of the value nearest to a step.
function nearestAt(x, values, step) {
  let best = -1;
  for (let i = 0; i < x.length; i += 1) {
    if (values[i] !== null && values[i] !== undefined && (best < 0 || Math.abs(x[i] - step) <= Math.abs(x[best] - step))) best = i;
  }
  return best;
}

export function zoomTo(range) {
  view.zoom = range;
  for (const chart of view.charts) if (chart.u && chart.axis === "step") chart.scaleTo(range);
  document.dispatchEvent(new Event("zoom"));
}

export function updateAll(anew = false) {
  for (const chart of view.charts) chart.update(anew);
}
