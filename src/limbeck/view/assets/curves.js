// The Curves tab: what is drawn from metrics.jsonl, in which order, and how it is looked at.
import { address } from "./address.js";
import { X_AXES, placeOf, places, placesOfSeveral } from "./axes.js";
import { Chart, rescaleAll, updateAll } from "./charts.js";
import { DIAGNOSTICS, HEADLINES, LEARNING, PHASES, PHASE_CHART, PHASE_INKS, brokenAt, healthOf, notFinite, otherMetrics, partCharts, valuesOf } from "./chartlist.js";
import { check, choice, colour, el, segments } from "./dom.js";
import { significant } from "./format.js";
import { ALL_BUT_SEED, BANDS, bandNow, combine, groupBy, groupedBy, isMost, shownGroups } from "./groups.js";
import { aroundOf, helpOf, helpOfKey } from "./help.js";
import { known, smooth } from "./series.js";
import { alarmList, legendBar, runHead } from "./runhead.js";
import { store } from "./store.js";
import { dependsOnT, inOrder, nameOfT, temperatureOf } from "./temperature.js";
import { setView, view } from "./viewstate.js";

const sum = (values) => values.reduce((total, value) => total + (value ?? 0), 0);
const measured = (run, line) => valuesOf(run, line)?.some(known);

// The line with the key that the run has, and its name.
function found(run, line) {
  if (measured(run, line)) return line;
  return line.instead && measured(run, { ...line, key: line.instead }) ? { ...line, key: line.instead, label: `${line.label}, sampled` } : null;
}

// A group's line of what is `wanted`, of its runs at `at`: one run's own, or the mean of several with a band. A faint line is
// behind a stronger one of its chart; where several groups are overlaid it is not drawn. Bands of a chart mean one thing: where
// some are a `spread` of runs, a group of one run has none.
function lineOf(group, spec, wanted, { several, spread }) {
  const having = group.runs.map((run) => [run, found(run, wanted)]).filter(([run, line]) => line && places(run, line.from ?? "train", view.x) && (spec.at === undefined || atT(run, line) === spec.at));
  if (!having.length) return null;
  const line = having[0][1], runs = having.filter(([, one]) => one.key === line.key).map(([run]) => run);
  const stronger = wanted.faint ? spec.lines.some((other) => !other.faint && found(runs[0], other)) : wanted.behind && measured(runs[0], { ...wanted, key: wanted.behind });
  if (stronger && several) return null;
  const ink = colour(several ? group.colour : line.ink), drawn = runs.length > 1 ? together(runs, line, group.runs.length) : alone(runs[0], spread ? { ...line, band: "" } : line);
  return drawn.steps.length === 0 ? null : {
    ...drawn, sources: runs, colour: ink, band: `${ink}2e`, key: line.key, from: line.from, label: line.label, about: stronger && line.about, group: group.label,
    run: runs.length > 1 ? group.label : runs[0].id, owner: several ? group.label : undefined, temperatures: runs.map((run) => atT(run, line)),
    dash: line.dash, width: stronger ? 1 : 1.75, alpha: stronger ? 0.55 : 1, faint: Boolean(stronger), points: line.points,
  };
}

function alone(run, line) {
  const from = line.from ?? "train", raw = valuesOf(run, line), { values } = run[from];
  const errors = line.band === "se" ? values[`${line.key}/se`] : undefined;
  const ends = line.band === "interval" ? ["low", "high"].map((end) => values[`${line.key}/${end}`]) : [];
  const interval = ends.length && ends.every(Boolean) ? ends : undefined;
  const [mean, error] = view.smooth && !line.points ? smooth(raw, errors, view.smooth) : [raw, errors];
  const around = errors ? [-1, 1].map((side) => mean.map((v, i) => (known(v) && known(error[i]) ? v + side * error[i] : null))) : interval ?? [];
  return { x: places(run, from, view.x), steps: run[from].step, raw, errors, interval, columns: [mean, ...around], broken: brokenAt(run, line) };
}

// The band is the spread of the runs around their mean, not the error of each. Drawn is what more than half of them have; `whole` is
// all, for a file of the numbers.
function together(runs, line, size) {
  const from = line.from ?? "train";
  const columns = runs.map((run) => ({ run, [from]: { step: run[from].step, values: { [line.key]: valuesOf(run, line) } } }));
  const all = combine(columns, from, line.key), most = new Map(all.n.flatMap((n, i) => (isMost(n, all.of) ? [[all.step[i], i]] : [])));
  const step = [...new Set([...most.keys(), ...(most.size ? runs.flatMap((run) => [...notFinite(run, line)]) : [])])].sort((a, b) => a - b), broken = step.flatMap((one, i) => (most.has(one) ? [] : [i]));
  const [mean, low, high, n] = ["mean", "low", "high", "n"].map((name) => step.map((one) => all[name][most.get(one)] ?? null));
  const drawn = view.smooth && !line.points ? [mean, low, high].map((column) => smooth(column, undefined, view.smooth)[0]) : [mean, low, high];
  return { x: placesOfSeveral(runs, step, view.x), steps: step, raw: mean, interval: [low, high], counts: n, of: size, columns: drawn, broken, whole: { steps: all.step, raw: all.mean, interval: [all.low, all.high], counts: all.n } };
}

// Faintly, what is smoothed: nothing is hidden by it.
const unsmoothed = (lines) => (!view.smooth ? [] : lines.filter((line) => !line.points && !line.faint).map((line) => (
  { ...line, columns: [line.raw], width: 1, alpha: 0.22, label: "" })));

// Of several runs each alarm says whose it is.
const alarmsOf = (runs) => runs.flatMap((run) => run.alarms.map((alarm) => ({ ...alarm, run: store.shown.length > 1 ? run.id : "", x: placeOf(run, alarm.step, view.x) })))
  .filter((alarm) => known(alarm.x)).sort((a, b) => a.x - b.x);

function missingOf(spec, runs) {
  if (!runs.some((run) => run.train.step.length)) return "No steps yet";
  const needed = X_AXES[view.x].key;
  if (needed && !runs.some((run) => places(run, "train", view.x))) return `Not in metrics.jsonl: ${needed}, which this axis needs. Choose Steps.`;
  if (runs.some((run) => spec.lines.some((line) => found(run, line)))) return "No step that more than half of a group's runs have a value of";
  return `Not in metrics.jsonl: ${[...new Set(spec.lines.map((line) => line.key))].join(", ")}`;
}

function build(spec) {
  const runs = store.shown, groups = shownGroups(), how = { several: groups.length > 1, spread: groups.some((group) => group.runs.length > 1) };
  const lines = groups.flatMap((group) => spec.lines.map((line) => lineOf(group, spec, line, how))).filter(Boolean);
  const adapted = spec.adapt?.(runs), help = adapted && helpOf(adapted.title);
  return { notice: "", ...saidOf(spec, lines), ...adapted, ...(help && { help }), ...mixed(spec, lines), alarms: alarmsOf(runs.filter((run) => lines.some((line) => line.sources.includes(run)))), missing: missingOf(spec, runs) };
}

// What a chart's heading says after its title, and its help of bands and bars: of what is drawn.
function saidOf(spec, lines) {
  const where = spec.heldOut && (lines.length && !lines.some((line) => line.from === "eval") ? "training" : "held-out"), banded = lines.filter((line) => line.columns.length === 3);
  const band = banded.some((line) => line.counts) ? BANDS[bandNow()].said : banded.some((line) => line.interval) ? "95% interval" : banded.length ? "± 1 standard error" : "";
  return { unit: [where, spec.unit, band].filter(Boolean).join(", "), around: [...new Set(lines.map((line) => line.about)), aroundOf(banded, BANDS[bandNow()])].filter(Boolean).join(" ") };
}

const atT = (run, line) => temperatureOf(run, line.from ?? "train", line.key);
const temperaturesOf = (spec, runs) => inOrder(runs.flatMap((run) => spec.lines.filter((line) => found(run, line)).map((line) => atT(run, line))));

// Numbers at different temperatures are different quantities: where a chart has several, each line says its own.
function mixed(spec, lines) {
  const drawn = [...lines.filter((line) => line.faint), ...unsmoothed(lines), ...lines.filter((line) => !line.faint)], all = inOrder(lines.flatMap((line) => line.temperatures));
  if (!(spec.kl || spec.atT) || all.length < 2) return { lines: drawn, ...(spec.kl && all[0] === null && { notice: "At which temperature these KLs are is not known." }) };
  const named = drawn.map((line) => {
    const t = nameOfT(line.temperatures);
    return line.owner ? { ...line, owner: `${line.owner}, ${t}` } : { ...line, label: line.label && `${line.label}, ${t}` };
  });
  return { lines: named, notice: spec.kl ? `KLs at different temperatures (${nameOfT(all)}) are different quantities: compare within one only.` : `Lines at different temperatures (${nameOfT(all)}) are different quantities. Pointing says which line has which.` };
}

// Seconds of each phase, one on top of the other, of the newest run shown that has them. A step without a phase spent
// no time in it; what is in no phase is the last layer, where it is worth one.
function buildPhases() {
  const run = store.byAge(store.shown).find((one) => PHASES.some((phase) => one.train.values[`seconds/${phase}`])) ?? store.shown[0], values = run?.train.values ?? {}, x = run && places(run, "train", view.x);
  const layers = PHASES.filter((phase) => values[`seconds/${phase}`]).map((phase) => [phase, values[`seconds/${phase}`].map((value) => value ?? 0)]);
  if (!layers.length || !x) return { lines: [], missing: run?.train.step.length ? "Not in metrics.jsonl: seconds/…" : "No steps yet" };
  const step = values["seconds/step"];
  const rest = step?.map((total, i) => Math.max(0, (total ?? 0) - sum(layers.map(([, column]) => column[i]))));
  if (rest && sum(rest) > 0.01 * sum(step)) layers.push(["rest", rest]);
  let below = new Array(run.train.step.length).fill(0);
  const lines = layers.map(([phase, raw], i) => {
    const [mean] = view.smooth ? smooth(raw, undefined, view.smooth) : [raw];
    below = below.map((height, j) => height + mean[j]);
    const ink = colour(PHASE_INKS[PHASES.indexOf(phase)] ?? "--muted");
    return { x, steps: run.train.step, raw, columns: [below], colour: ink, band: `${ink}b0`, label: phase, key: `seconds/${phase}`, run: run.id, sources: [run], width: 0, fillTo: i ? i : undefined };
  });
  return { lines, alarms: alarmsOf([run]), unit: store.shown.length > 1 ? `seconds / step, of ${run.id}` : "seconds / step" };
}

// The charts of a list of specs, kept from one drawing to the next. One of KLs is split by temperature, unless they are
// overlaid on purpose; one of which no run shown has a value is left out, unless the spec has `keep`.
class ChartGrid {
  constructor(className = "grid") {
    this.charts = new Map();
    this.node = el("div", { class: className });
  }
  show(specs) {
    const runs = store.shown, wanted = (runs.length ? specs : []).flatMap((spec) => {
      const all = spec.kl && !view.overlay ? temperaturesOf(spec, runs) : [];
      if (all.length > 1) return all.map((at) => ({ ...spec, at, title: at === null ? `${spec.title}, T unknown` : `${spec.title} at T = ${at}`, help: helpOf(spec.title) }));
      return spec.keep || spec.make || !runs.some((run) => run.train.step.length) || runs.some((run) => spec.lines.some((line) => found(run, line))) ? [spec] : [];
    }).filter((spec) => matches(spec));
    const names = new Set(wanted.map(specName));
    for (const [name, chart] of this.charts) if (!names.has(name)) { chart.remove(); chart.node.remove(); this.charts.delete(name); }
    const nodes = wanted.map((spec) => {
      const name = specName(spec);
      if (!this.charts.has(name)) this.charts.set(name, new Chart({ ...spec, name, help: spec.help ?? helpOf(spec.title) ?? helpOfKey(spec.lines[0].key), build: spec.make ?? (() => build(this.specs.get(name))) }));
      return this.charts.get(name).node;
    });
    this.specs = new Map(wanted.map((spec) => [specName(spec), spec]));
    nodes.forEach((node, i) => { if (this.node.children[i] !== node) this.node.insertBefore(node, this.node.children[i] ?? null); });
    this.node.hidden = nodes.length === 0;
    return nodes.length;
  }
}
const specName = (spec) => `${spec.title}${spec.from ? ` (${spec.from})` : ""}`;
const matches = (spec) => `${spec.title} ${(spec.lines ?? []).map((line) => line.key).join(" ")}`.toLowerCase().includes(view.find.toLowerCase());
const PHASE_SPEC = { ...PHASE_CHART, make: buildPhases, lines: PHASES.map((phase) => ({ key: `seconds/${phase}` })) };

export function curvesPanel() {
  const run = runHead(), alarms = el("div"), bar = toolbar(), legend = legendBar();
  const first = new ChartGrid(), second = new ChartGrid(), health = healthSection(), more = moreSection();
  const nothing = el("p", { class: "card blank", hidden: true }, "No chart has that in its title or among its keys.");
  const draw = () => {
    run.draw();
    alarms.replaceChildren(...alarmList());
    redraw();
  };
  const redraw = () => {
    bar.show();
    legend.draw();
    const count = first.show(HEADLINES) + second.show([...health.show(), ...partCharts(store.shown, shownGroups().length > 1), ...LEARNING.slice(0, 2), PHASE_SPEC, ...LEARNING.slice(2)]) + more.show();
    nothing.hidden = count > 0 || !store.shown.length;
    updateAll();
  };
  store.addEventListener("metrics", draw);
  view.addEventListener("change", ({ keys }) => { if (keys.join() === "zoom") { bar.show(); rescaleAll(); } else redraw(); });
  draw();
  return { node: el("div", {}, run.node, alarms, bar.node, legend.node, first.node, health.node, second.node, more.node, nothing), open: () => { view.read(); redraw(); } };
}

// Diagnostics: the healthy ones in one line. `show` returns those to be drawn: where something is wrong or was, first.
function healthSection() {
  const bad = el("ul", { class: "findings" });
  const toggle = el("button", { type: "button", class: "quiet", onclick: () => setView({ healthy: !view.healthy }) });
  const line = el("p", {}), card = el("section", { class: "card health", "aria-label": "Diagnostics" }, el("div", { class: "healthy" }, line, toggle), bad);
  const show = () => {
    const runs = store.shown, several = runs.length > 1;
    const judged = DIAGNOSTICS.map((spec) => ({ spec, all: runs.map((run) => [run, healthOf(run, spec)]).filter(([, health]) => health) })).filter(({ all }) => all.length);
    const isOpen = ({ all }) => all.some(([, health]) => isNotable(health));
    const wrong = judged.filter(isOpen), fine = judged.filter((one) => !isOpen(one)).map(({ spec }) => spec);
    card.hidden = !judged.length || Boolean(view.find);
    line.replaceChildren(fine.length ? el("b", { class: "right" }, "✓ ") : "", fine.length ? `${fine.length} ${fine.length === 1 ? "diagnostic is" : "diagnostics are"} healthy` : "No diagnostic is healthy throughout",
      fine.length ? el("span", { class: "hint" }, `: ${fine.map((spec) => spec.title.toLowerCase()).join(", ")}`) : "");
    toggle.hidden = !fine.length;
    toggle.textContent = view.healthy ? "Hide" : "Show";
    toggle.setAttribute("aria-expanded", view.healthy);
    bad.replaceChildren(...wrong.flatMap(({ spec, all }) => all.filter(([, health]) => isNotable(health)).map(([run, health]) => el("li", {},
      el("b", { class: health.ok ? "was" : "" }, health.ok ? "△ " : "▲ ", spec.title), el("span", {}, several ? `${run.id}: ` : "", saidOfHealth(health))))));
    bad.hidden = !wrong.length;
    return [...wrong.map(({ spec }) => spec), ...(view.healthy || view.find ? fine : [])];
  };
  return { node: card, show };
}

const isNotable = (health) => !health.ok || health.was.length > 0 || health.far.length > 0;

function saidOfHealth({ ok, why, was, far }) {
  const alarms = was.length ? [`alarm at ${was.length === 1 ? `step ${was[0]}` : `${was.length} steps, ${Math.min(...was)} to ${Math.max(...was)}`}`] : [];
  return [...(ok ? alarms : [`${why.join("; ")}, in the last steps`]), ...far, ...(ok ? ["healthy in the last steps"] : [])].join("; ");
}

// Every other key of the file, by its first part.
function moreSection() {
  const families = new Map(), body = el("div");
  const box = el("details", { class: "more", ontoggle: () => { if (!view.find && box.open !== view.more) setView({ more: box.open }); } }, el("summary", {}, "All other metrics"), body);
  const show = () => {
    box.open = view.more || Boolean(view.find);
    const all = box.open ? otherMetrics(store.shown) : new Map();
    for (const [name, family] of families) if (!all.has(name)) { family.grid.show([]); family.node.remove(); families.delete(name); }
    let count = 0;
    for (const [name, keys] of [...all].sort()) {
      if (!families.has(name)) { const grid = new ChartGrid(); families.set(name, { grid, node: el("section", { class: "family" }, el("h3", {}, name), grid.node) }); }
      const { grid, node } = families.get(name);
      const mine = grid.show(keys.map(([from, key]) => ({ title: key, from, format: significant, unit: from === "eval" ? "evaluation" : "", height: 150, atT: dependsOnT(key), help: helpOfKey(key),
        lines: [{ key, from, label: from === "eval" ? "evaluation" : "step", ink: "--c1", points: from === "eval", band: "se" }] })));
      node.hidden = !mine;
      body.append(node);
      count += mine;
    }
    box.hidden = !store.shown.length || (Boolean(view.find) && !count);
    return count;
  };
  return { node: box, show };
}

function toolbar() {
  const shown = el("output", {}, "off");
  const slider = el("input", { type: "range", min: "0", max: "0.99", step: "0.01", value: "0", id: "smoothing", oninput: () => setView({ smooth: Number(slider.value) }) });
  const axis = el("div", { class: "field" }, el("span", {}, "Along"));
  const boxes = [["log", "Log scale"], ["outliers", "Show outliers"], ["overlay", "Overlay temperatures"]].map(([key, label]) => [key, check(label, view[key], (on) => setView({ [key]: on }))]);
  const find = el("input", { type: "search", placeholder: "Find a chart", "aria-label": "Find a chart", oninput: () => setView({ find: find.value }) });
  const grouping = el("div", { class: "grouping" }), hint = el("span", { class: "hint" });
  const reset = el("button", { type: "button", class: "quiet", onclick: () => setView({ zoom: null }) }, "Show all");
  const show = () => {
    slider.value = view.smooth;
    shown.textContent = view.smooth ? view.smooth.toFixed(2) : "off";
    if (find.value !== view.find) find.value = view.find;
    if (axis.querySelector("[aria-checked=true]")?.dataset.value !== view.x) {
      axis.querySelector(".segments")?.remove();
      axis.append(segments("Along", Object.entries(X_AXES).map(([key, { name }]) => [key, name]), view.x, (x) => setView({ x })));
    }
    for (const [key, box] of boxes) box.querySelector("input").checked = view[key];
    boxes[2][1].hidden = !HEADLINES.some((spec) => spec.kl && temperaturesOf(spec, store.shown).length > 1);
    reset.hidden = !view.zoom;
    const by = groupedBy().join(","), band = bandNow();
    grouping.hidden = store.runs.length < 2;
    if (grouping.dataset.now !== `${by} ${band}`) {
      grouping.dataset.now = `${by} ${band}`;
      const custom = by && by !== ALL_BUT_SEED ? [[by, by]] : [];
      grouping.replaceChildren(choice("Group by", [["", "each run"], [ALL_BUT_SEED, "all but seed"], ...custom], by, (value) => groupBy(value ? value.split(",") : [])),
        by ? choice("Band", Object.entries(BANDS).map(([key, { name }]) => [key, name]), band, (value) => { address.set({ band: value }); store.tell("metrics"); }) : "");
    }
    hint.textContent = `Drag to zoom, double-click for all. ${by ? `Bands and bars: ${BANDS[band].name}, over a group's runs, where more than half of them have a value.` : "Bands and bars: ± 1 standard error, clustered by prompt."}`;
  };
  return { node: el("div", { class: "toolbar" }, axis, el("label", { class: "field" }, el("span", {}, "Smoothing"), slider, shown), boxes.map(([, box]) => box), grouping, find, reset, hint), show };
}
