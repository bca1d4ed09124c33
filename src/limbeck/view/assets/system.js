// What a run keeps busy: how long each role works and waits, processors, memory and GPUs.
import { address } from "./address.js";
import { brokenAt } from "./chartlist.js";
import { Chart } from "./charts.js";
import { choice, colour, el, scroller } from "./dom.js";
import { num, percent, whole } from "./format.js";
import { knownFrom, roleTimes, verdictOf } from "./roles.js";
import { meanOf } from "./series.js";
import { store } from "./store.js";

const GIGA = 1e9;
const SYSTEM_INKS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];
const hundredths = (value, digits = 2) => num(value, digits);
const SPANS_OF_TIME = { late: "the latest third", all: "all steps" };

// One entry a chart: which keys it has (`*` is a role, a GPU's number or a phase), what a line is called, and what it is for.
const SYSTEM_CHARTS = [
  { title: "Processors", unit: "in use", format: hundredths, keys: [["system/cpu", "the run's process"], ["system/cpu/*", "*"]], except: ["machine"],
    help: ["How many processors are kept busy, on average over a step. With a cluster a role's processes are added up.", "As many as the recipe's threads, or as the machine has.",
      "Far fewer, and a step is slow for another reason: the disk, a server that is waited for, or a GPU that does the work. Set `threads` where it is too low."] },
  { title: "Memory", unit: "GB", scale: GIGA, format: hundredths, keys: [["system/memory", "the run's process"], ["system/memory/*", "*, the largest"]], except: ["machine"],
    help: ["What the run's process has in memory, the most in a step. With a cluster the largest process of each role too.", "Level after the first steps.",
      "A line that climbs step after step is a leak: in a task, an environment or a part of your own. Lower engine.max_rows or learner.micro_batch_tokens where it is too high."] },
  { title: "The machine", unit: "in use, by anyone", format: percent, keys: [["system/cpu/machine", "processors"], ["system/memory/machine", "memory"]],
    help: ["The share of the whole machine's processors and memory that is in use, by whatever runs there.", "Memory well below 100%.", "Above 90% of memory the system may end the run. Something else may be running beside it."] },
  { title: "GPU memory", unit: "GB", scale: GIGA, format: hundredths, keys: [["system/gpu/*/memory", "GPU *, tensors"], ["system/gpu/*/reserved", "GPU *, held by torch"], ["system/gpu_memory/*", "*, at most so far"]],
    help: ["Memory of the GPUs: what tensors take at most in a step, and what torch holds for them.", "Level, and below what the GPU has.", "Far below it, raise learner.micro_batch_tokens or engine.max_rows; close to it, lower them."] },
  { title: "GPU in use", unit: "share", format: percent, keys: [["system/gpu/*/utilisation", "GPU *, computing"], ["system/gpu/*/machine", "GPU *, memory"]],
    help: ["The share of the time in which a GPU computed anything, where `nvidia-ml-py` is installed, and the share of its memory in use by anyone.", "Computing most of the time.", "A GPU that mostly waits is fed too slowly: larger micro-batches, more rows a unit, or the roles on fewer devices."] },
  { title: "Model FLOPs utilisation", unit: "of the device's peak", format: percent, keys: [["mfu/*", "*"]],
    help: ["How much of what the device could compute at best each phase used, attention not counted.", "Tens of percent for an update, a few for sampling.", "Larger batches raise it."] },
  { title: "Tokens a second", unit: "by phase", format: whole, keys: [["tokens_per_second/*", "*"]], except: ["step"],
    help: ["How fast each phase goes, counted in the tokens that it computes.", "Steady.", "A fall says which phase became slower: longer responses cost more a token in every phase."] },
  { title: "Weights on their way", unit: "GB an update", scale: GIGA, keys: [["weights/bytes", "to the engine"]],
    help: ["What an update sends to the engine's servers or to the samplers.", "The size of the weights, or with LoRA that of the adapter.", "LoRA, or weights in bfloat16, make it smaller."] },
];

export class SystemPanel {
  constructor() {
    this.charts = [];
    this.head = el("div", { class: "toolbar" });
    this.top = el("div");
    this.grid = el("div", { class: "grid" });
    this.node = el("div", { class: "system" }, this.head, this.top, this.grid);
    store.addEventListener("metrics", () => { if (address.tab === "system") this.open(); });
  }

  async open() {
    const run = store.run(address.get("run")), span = address.get("system.steps", "late");
    this.head.replaceChildren(...(!run ? [] : [
      store.runs.length > 1 ? choice("Run", store.runs.map((r) => [r.id, r.id]), run.id, (id) => { address.set({ run: id }); this.open(); }) : "",
      choice("Steps", Object.entries(SPANS_OF_TIME), span in SPANS_OF_TIME ? span : "late", (value) => { address.set({ "system.steps": value }); this.open(); })]));
    if (run && !run.offset) { await store.readOnce(run); if (run !== store.run(address.get("run"))) return; }  // another one was chosen meanwhile
    const columns = run?.train, keys = Object.keys(columns?.values ?? {});
    const charts = run ? chartsOf(keys) : [];
    if (!run || !columns.step.length) { this.draw(null, [], [el("p", { class: "card blank" }, run ? "No steps yet." : "There is no run here yet.")]); return; }
    const from = span === "all" ? 0 : Math.min(columns.step.length - 1, Math.floor(columns.step.length * 2 / 3));
    this.draw(run, charts, [numbersOf(run, from), rolesCard(run, from)]);
  }

  // The same charts are kept: somebody may look at a step of one.
  draw(run, charts, top) {
    this.top.replaceChildren(...top.filter(Boolean));
    const wanted = JSON.stringify([run?.id, charts.map((chart) => [chart.title, chart.lines])]);
    if (wanted === this.drawn) { for (const chart of this.charts) chart.update(); return; }
    this.drawn = wanted;
    for (const chart of this.charts) chart.remove();
    this.charts = charts.map((spec) => new Chart({ ...spec, name: `system ${spec.title}`, along: "steps", linear: true, build: () => ({ alarms: run.alarms, lines: spec.lines.map((line, i) => lineOfKey(run, spec, line, SYSTEM_INKS[i % SYSTEM_INKS.length])) }) }));
    this.grid.replaceChildren(...this.charts.map((chart) => chart.node));
  }
}

function lineOfKey(run, spec, { key, label }, ink) {
  const raw = run.train.values[key].map((value) => (value === null ? null : value / (spec.scale ?? 1)));
  return { x: run.train.step, steps: run.train.step, raw, columns: [raw], broken: brokenAt(run, { key }), label, colour: colour(ink), band: `${colour(ink)}2e`, key, run: run.id, source: run };
}

// The charts of which the run has something, each with its lines.
function chartsOf(keys) {
  return SYSTEM_CHARTS.map((spec) => ({ ...spec, lines: spec.keys.flatMap(([pattern, label]) => {
    const found = new RegExp(`^${pattern.replace("*", "(.+?)")}$`);
    return keys.map((key) => [key, key.match(found)]).filter(([, match]) => match && !spec.except?.includes(match[1]) && !(match[1] ?? "").includes("/machine"))
      .map(([key, match]) => ({ key, label: label.replace("*", (match[1] ?? "").replace("/", " ")) })).sort((a, b) => a.label.localeCompare(b.label));
  }) })).filter((spec) => spec.lines.length);
}

// The few numbers at the top, of what the run has recorded.
function numbersOf(run, from) {
  const tile = (label, value, note) => el("div", { class: "tile" }, el("dt", {}, label), el("dd", {}, el("b", {}, value), note && el("small", {}, note)));
  const mean = (key) => meanOf(knownFrom(run, key, from));
  const most = (keys) => { const all = keys.flatMap((key) => knownFrom(run, key, from)); return all.length ? Math.max(...all) : null; };
  const gpus = Object.keys(run.train.values).filter((key) => /^system\/gpu\/.*\/memory$|^system\/gpu_memory\//.test(key));
  const busy = Object.keys(run.train.values).filter((key) => key.endsWith("/utilisation")).map(mean).filter((value) => value !== null);
  const found = [
    mean("seconds/step") !== null && tile("A step takes", `${num(mean("seconds/step"), 2)} s`, "on average"),
    mean("tokens_per_second/step") !== null && tile("Sampled tokens", `${whole(mean("tokens_per_second/step"))} / s`, "on average"),
    mean("system/cpu") !== null && tile("Processors in use", num(mean("system/cpu"), 2), mean("system/cpu/machine") === null ? "" : `machine ${percent(mean("system/cpu/machine"), 0)} busy`),
    most(["system/memory"]) !== null && tile("Memory of the process", `${num(most(["system/memory"]) / GIGA, 2)} GB`, `at most; machine ${percent(most(["system/memory/machine"]), 0)} full`),
    gpus.length > 0 && tile("GPU memory", `${num(most(gpus) / GIGA, 2)} GB`, "at most"),
    busy.length > 0 && tile("GPUs computing", percent(meanOf(busy), 0), "of the time"),
  ].filter(Boolean);
  return found.length ? el("dl", { class: "tiles" }, found) : null;
}

function rolesCard(run, from) {
  const roles = roleTimes(run, from);
  if (!roles.length) return null;
  const rows = roles.map(({ role, name, worked, waited }) => {
    const share = worked / Math.max(worked + waited, 1e-12), waits = (text) => (role === "rest" ? "–" : text);
    return el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, num(worked, 2)), el("td", {}, waits(num(waited, 2))),
      el("td", { class: "work" }, el("span", { class: "worked", role: "img", "aria-label": `works ${percent(share, 0)} of the time`, vars: { "--p": share.toFixed(4) } })),
      el("td", {}, waits(percent(1 - share, 0))));
  });
  const head = ["Role", "Works, s / step", "Waits, s / step", "", "Waits"];
  return el("section", { class: "card roles" }, el("h3", {}, "How long each role works and waits"), el("p", { class: "verdict" }, verdictOf(run, roles)),
    scroller("Roles", el("table", { class: "figures" }, el("thead", {}, el("tr", {}, head.map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, rows))));
}
