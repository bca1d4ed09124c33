// A chart of lines over steps, tokens or time, drawn by uPlot, with the values under the cursor in its head.
import { X_AXES, logTicks, roomFor, tickTexts } from "./axes.js";
import { announce, colour, el, printable } from "./dom.js";
import { saveCsv, saveSvg } from "./export.js";
import { num, percent } from "./format.js";
import { legendOf } from "./legend.js";
import { dodged, drawAlarms, drawClipped, drawPoints } from "./marks.js";
import { align, dotsOf, extent, gapsOf, known, outside } from "./series.js";
import { setView, view } from "./viewstate.js";

const FONT = '11px "Inter", system-ui, sans-serif';
const charts = new Set();

// Where along x a line has gaps and dots. A plot is made for these, and made anew where they change: new numbers alone do not tell it.
function breaksOf(line) {
  const place = (i) => (i === null ? null : line.x[i]);
  return { between: gapsOf(line).map((ends) => ends.map(place)), dots: dotsOf(line).map(place) };
}

export class Chart {
  // build() -> { lines, alarms, missing, notice }: see `curves.js`. Drawn when it comes into sight. A line of `points` is measured at
  // some steps only: it is drawn as points with error bars, and nothing between them. `help`: what it is, what is good, what to do.
  // `axis`: what runs along x, where it is not a run's steps. These are along what the Curves tab asks for, or always `along`.
  constructor({ title, unit = "", size = "", format = num, height = 200, stacked = false, linear = stacked || format === percent, span = 0, axis = "step", along = null, name = title, help, build }) {
    Object.assign(this, { title, size, format, height, stacked, linear, span, axis, along, name, help, build });
    this.values = el("div", { class: "values" });
    this.step = el("span", { class: "at" });
    this.note = el("p", { class: "note", hidden: true });
    this.notice = el("p", { class: "notice", hidden: true });
    this.tip = el("div", { class: "tip", hidden: true });
    this.beyond = el("button", { type: "button", class: "beyond", hidden: true, title: "Show all values of all charts", onclick: () => setView({ outliers: true }) });
    this.plot = el("div", { class: "plot", tabIndex: 0, role: "img", onkeydown: (event) => this.key(event), onblur: () => this.leave() });
    this.node = el("figure", { class: `card chart ${size}`, data: { chart: name } },
      el("figcaption", {}, this.heading = el("h3", {}, title, this.unit = el("small", {}, unit)), this.step, this.tools(), this.values, this.notice),
      el("div", { class: "stage" }, this.plot, this.beyond, this.tip), this.note);
    charts.add(this);
    this.dirty = true;
    new IntersectionObserver((entries) => {
      this.seen = entries.some((entry) => entry.isIntersecting);
      if (this.seen && this.dirty) this.draw();
    }, { rootMargin: "200px" }).observe(this.plot);
    new ResizeObserver(() => this.resize()).observe(this.plot);
  }

  tools() {
    const tool = (text, label, onclick) => el("button", { type: "button", title: label, "aria-label": `${label}: ${this.title}`, onclick }, text);
    if (this.help) {
      this.helped = tool("?", "What is this?", () => this.showHelp(this.explained.hidden));
      this.helped.setAttribute("aria-expanded", "false");
      this.helped.classList.add("ask");
    }
    this.grow = this.axis === "step" && tool("⤢", "Enlarge", () => setView({ chart: view.chart === this.name ? "" : this.name }));
    return el("div", { class: "tools", onkeydown: (event) => { if (event.key === "Escape") this.showHelp(false); } },
      this.helped, tool("CSV", "The numbers as CSV", () => saveCsv(this)), tool("SVG", "The chart as SVG", () => saveSvg(this)), this.grow || "", this.explain());
  }

  explain() {
    if (!this.help) return "";
    this.explained = el("dl", { class: "help", hidden: true, role: "note" });
    return this.explained;
  }

  // Of what is drawn now.
  fillHelp() {
    const titles = ["What it is", "What is good", "What to do"];
    this.explained.replaceChildren(...this.help.flatMap((text, i) => [el("dt", {}, titles[i]), el("dd", {}, text, i === 0 && this.around ? ` ${this.around}` : "")]));
  }

  showHelp(on) {
    if (!this.help) return;
    if (on) for (const chart of charts) chart.showHelp(false);
    if (on) this.fillHelp();
    this.explained.hidden = !on;
    this.helped.setAttribute("aria-expanded", on);
  }

  get x() { return this.along ?? view.x; }
  get shared() { return this.axis === "step" && this.x === view.x; }
  get across() { return this.axis === "step" ? X_AXES[this.x] : { label: this.axis, tick: X_AXES.steps.tick }; }
  get full() { return this.axis === "step" && view.chart === this.name ? Math.max(320, Math.min(620, innerHeight - 260)) : this.height; }
  resize() {
    if (this.u && this.plot.clientWidth && (this.u.width !== this.plot.clientWidth || this.u.height !== this.full)) this.u.setSize({ width: this.plot.clientWidth, height: this.full });
  }

  update(anew = false) {
    this.anew ||= anew;
    this.dirty = true;
    if (this.seen) this.draw();
  }

  // Takes from `build` what is drawn, as for a picture of it too.
  rebuild() {
    const { lines, alarms = [], missing = "", unit, notice = "", ...changes } = this.build();
    Object.assign(this, changes, { lines, alarms: alarms.map((alarm) => ({ x: alarm.step, ...alarm })), missing });  // such as the title of a chart that shows another quantity for these runs
    if (unit !== undefined) this.unit.textContent = printable(unit);
    this.notice.hidden = !notice;
    this.notice.textContent = printable(notice);
    this.heading.firstChild.data = printable(this.title);
    this.logarithmic = view.log && !this.linear;
  }

  draw() {
    this.dirty = false;
    this.rebuild();
    const { lines } = this, big = this.axis === "step" && view.chart === this.name;
    this.node.classList.toggle("big", big);
    if (this.grow) this.grow.textContent = big ? "⤡" : "⤢";
    this.plot.classList.toggle("empty", lines.length === 0);
    if (!lines.length) {
      this.u?.destroy();
      this.u = null;
      this.clipped = [];
      this.beyond.hidden = true;
      this.plot.replaceChildren(el("p", {}, this.missing || "No values yet"));
      this.values.replaceChildren();
      this.plot.setAttribute("aria-label", `${this.title}: ${this.missing || "no values yet"}`);
      return;
    }
    const [xs, columns] = align(lines);
    const positive = (column) => (this.logarithmic ? column.map((value) => (value > 0 ? value : null)) : column);
    this.data = [xs, ...columns.flat().map(positive)];
    const signature = JSON.stringify([lines.map((line) => [line.owner, line.label, line.colour, line.columns.length, breaksOf(line)]), this.logarithmic, this.x]);
    if (this.u && signature === this.signature && !this.anew) {
      this.u.setData(this.data, false);
      this.scale();
      this.resize();
    } else this.create();
    this.anew = false;
    this.signature = signature;
    this.describe(null);
  }

  // The part of the x axis that is seen.
  get visible() {
    const xs = this.data[0];
    return this.zoomed ?? [xs[0], xs[xs.length - 1]];
  }
  // What the y axis shows of it; and what that leaves out.
  yRange(visible = this.visible) {
    const clip = this.axis === "step" && !view.outliers && this.format !== percent, log = this.logarithmic;
    const judged = this.stacked ? this.lines.slice(-1) : this.lines;
    const found = extent(judged, visible, { clip, log });
    if (!found) { this.clipped = []; return log ? [0.1, 1] : [0, 1]; }
    const range = roomFor(this.stacked ? [Math.min(0, found[0]), found[1]] : found, { span: this.span, share: this.format === percent, log });
    this.clipped = clip ? outside(judged, visible, range) : [];
    return range;
  }

  series() {
    const series = [{}], bands = [];
    for (const line of this.lines) {
      const base = series.length, stroke = line.colour, { between, dots } = breaksOf(line);
      const gaps = { spanGaps: !between.length, gaps: (u) => between.map((ends) => ends.map((place, at) => (place === null ? u.bbox.left + at * u.bbox.width : u.valToPos(place, "x", true)))) };
      series.push({
        stroke, width: line.width ?? 1.75, dash: line.dash, ...gaps, alpha: line.alpha ?? 1,
        points: { show: dots.length > 0, filter: (u) => dots.map((place) => u.data[0].indexOf(place)), size: 6, fill: stroke, stroke, width: 1.75 },
        ...(line.points && { paths: () => null }),
      });
      if (line.columns.length === 3) {
        for (let i = 0; i < 2; i += 1) series.push({ width: 0, ...gaps, points: { show: false } });
        if (!line.points) bands.push({ series: [base + 2, base + 1], fill: line.band });
      }
      if (line.fillTo !== undefined) bands.push({ series: [base, base - 1], fill: line.band });
    }
    if (this.stacked) series[1].fill = this.lines[0].band;
    return { series, bands };
  }

  // Of a series of uPlot's; the ends of a band have none.
  inkOf(series) {
    let place = 1;
    for (const line of this.lines) {
      if (place === series) return line.colour;
      place += line.columns.length;
    }
    return "transparent";
  }

  create() {
    this.u?.destroy();
    this.plot.replaceChildren();
    const axis = { stroke: colour("--muted"), font: FONT, ticks: { show: false }, grid: { stroke: colour("--grid"), width: 1 } };
    const { across } = this;
    this.u = new uPlot({
      width: this.plot.clientWidth || 400, height: this.full, ...this.series(), legend: { show: false }, padding: [8, this.x === "time" ? 22 : 14, 0, 0],
      scales: {
        x: { time: false, range: (u, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) },
        y: { distr: this.logarithmic ? 3 : 1, range: () => this.yRange() },
      },
      axes: [
        { ...axis, grid: { show: false }, size: 26, space: 70, ...(across.incrs && { incrs: across.incrs }), values: (u, ticks) => ticks.map(across.tick) },
        { ...axis, size: (u, texts) => Math.max(52, 14 + 6.4 * Math.max(...(texts ?? [""]).map((text) => text.length))), space: 34,
          ...(this.logarithmic && { splits: (u, i, low, high) => logTicks(low, high), filter: (u, all) => all }),
          values: (u, ticks, at, space, apart) => tickTexts(this.format, ticks, this.logarithmic ? 0 : apart) },
      ],
      cursor: { sync: this.shared ? { key: "steps", scales: ["x", null] } : undefined, y: false, points: { size: 7, fill: (u, i) => this.inkOf(i) }, drag: { x: true, y: false, setScale: false } },
      hooks: {
        setCursor: [(u) => this.describe(u.cursor.idx)],
        setSelect: [(u) => {
          if (u.select.width < 4) return;
          this.zoomTo([u.posToVal(u.select.left, "x"), u.posToVal(u.select.left + u.select.width, "x")]);
          u.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
        }],
        draw: [(u) => { drawPoints(u, this.lines, this.shifts); drawAlarms(u, this.alarms); drawClipped(u, this.clipped); this.sayClipped(); }],
      },
    }, this.data, this.plot);
    this.u.over.addEventListener("dblclick", () => this.zoomTo(null));
    this.scale();
  }

  sayClipped() {
    const count = this.clipped.length;
    this.beyond.hidden = !count;
    this.beyond.textContent = `▲ ${count} ${count === 1 ? "value is" : "values are"} beyond the axis`;
  }

  // All charts along the same axis are zoomed together; one over something else is on its own.
  get zoomed() { return this.shared ? view.zoom : this.zoom; }
  zoomTo(range) {
    if (this.shared) { setView({ zoom: range }); return; }
    this.zoom = range;
    this.scale();
  }
  scale() {
    const { from, to, shifts } = this.spread(this.u.over.clientWidth || this.u.width - 70);
    this.shifts = shifts;
    this.u.setScale("x", { min: from, max: to });
  }
  // What is pointed at has a ring at each line, one a series: that of a moved point moves with it.
  moveRings(index) {
    const rings = this.u.over.querySelectorAll(".u-cursor-pt");
    let place = 0;
    for (const line of this.lines) {
      if (rings[place]) rings[place].style.translate = `${this.shifts.get(line)?.[line.x.indexOf(this.data[0][index])] ?? 0}px`;
      place += line.columns.length;
    }
  }
  // What the x axis shows on `width` pixels: [from, to], with room for points that stand beside each other at its ends.
  spread(width) {
    const [low, high] = this.visible, [from, to] = low === high ? [low - 1, high + 1] : [low, high], scale = width / (to - from);
    const shifts = dodged(this.lines, scale), ends = this.zoomed ? [] : [...shifts].flatMap(([line, moved]) => line.x.map((x, i) => x + moved[i] / scale)).filter(Number.isFinite);
    return { from: Math.min(from, ...ends), to: Math.max(to, ...ends), shifts };
  }

  // The values at a place (the last ones where none is pointed at), as numbers beside their colours. A value that was
  // measured at another step says at which. A last position is no summary as a last step is: without a cursor, only
  // the labels stand there.
  describe(index) {
    if (!this.u) return;
    if (known(index)) this.moveRings(index);
    const pointed = known(index), shared = this.axis === "step", valued = pointed || shared;
    const place = this.data[0][pointed ? index : this.data[0].length - 1];
    const where = !known(place) ? "" : shared ? this.stepAt(place) : `${this.axis} ${place.toLocaleString("en-US")}`;
    this.step.textContent = pointed ? where : "";
    const { head, table, said } = legendOf(this.lines, place, { format: this.format, valued, shared, pointed, focus: (owner) => this.focus(owner) });
    const roomy = this.size === "wide" || this.node.classList.contains("big");
    this.values.replaceChildren(table && roomy ? table : head);
    this.tip.hidden = !pointed || !table || roomy;
    if (!this.tip.hidden) {
      this.tip.replaceChildren(table);
      this.tip.classList.toggle("left", this.u.cursor.left > this.u.over.clientWidth / 2);
    }
    const near = !pointed ? [] : this.alarms.filter((alarm) => Math.abs(this.u.valToPos(alarm.x, "x") - this.u.cursor.left) < 5);
    this.note.hidden = near.length === 0;
    this.note.textContent = printable(near.slice(0, 3).map((alarm) => `▲ ${alarm.run ? `${alarm.run}, ` : ""}step ${alarm.step}: ${alarm.name}: ${alarm.message}`).join("\n"));
    this.summary = `${!valued ? "" : `at ${where}: `}${said}`;
    this.plot.setAttribute("aria-label", `${this.title} ${this.unit.textContent}, ${this.summary}. Arrow keys move along the ${shared ? "steps" : `${this.axis}s`}.`);
  }

  // `step 40`; on another axis also where that is, if all lines have the same steps there.
  stepAt(place) {
    const there = this.across.said(place), line = this.lines.find((one) => one.x.includes(place));
    const same = this.x === "steps" || this.lines.some((one) => one.owner);
    return same || !line ? there : `step ${line.steps[line.x.lastIndexOf(place)].toLocaleString("en-US")}, ${there}`;
  }

  // Where several runs are overlaid: the others step back.
  focus(owner) {
    if (!this.u || !this.lines.some((line) => line.owner)) return;
    let place = 1;
    for (const line of this.lines) {
      this.u.series[place].alpha = owner === null || line.group === owner || line.owner === owner ? line.alpha ?? 1 : 0.12;
      place += line.columns.length;
    }
    this.u.redraw(false);
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
    charts.delete(this);
  }
}

export function updateAll(anew = false) {
  for (const chart of charts) chart.update(anew);
}

// In all charts, what belongs to one run or group; null: everything again.
export function focusAll(owner) {
  for (const chart of charts) chart.focus(owner);
}

// After a zoom: the lines stay, the axes move.
export function rescaleAll() {
  for (const chart of charts) if (chart.u && chart.shared) chart.scale();
}

// Help closes where somebody presses beside it.
document.addEventListener("pointerdown", (event) => {
  if (!event.target.closest?.(".tools")) for (const chart of charts) chart.showHelp(false);
});
