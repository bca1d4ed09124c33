// What is known of each run, kept up to date while it goes on.
import { address } from "./address.js";
import { Lost, source } from "./source.js";

export const RUN_COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];

class RunData {
  constructor(info, index) {
    this.id = info.id;
    this.colour = RUN_COLOURS[index % RUN_COLOURS.length];
    this.shown = address.list("runs")?.includes(info.id) ?? index < RUN_COLOURS.length;
    this.info = info;
    this.forget();
    this.rows = [];
    this.known = 0;
    this.lastFile = "";
    this.rolloutsAsked = false;
    this.problems = { recipe: info.problems, metrics: [], rollouts: [], server: [] };
  }
  forget() {
    this.train = { step: [], values: {} };
    this.eval = { step: [], values: {} };
    this.alarms = [];
    this.offset = 0;
  }
  async readMetrics() {
    const part = await source.metrics(this.id, this.offset);
    this.problems.metrics = part.problems;
    this.info.changed_seconds_ago = part.changed_seconds_ago;
    const changed = part.offset !== this.offset || (part.reset && this.offset > 0);
    if (part.reset) this.forget();
    this.offset = part.offset;
    if (part.train.step.length) this.alarms = this.alarms.filter((alarm) => alarm.step < part.train.step[0]);
    append(this.train, part.train);
    append(this.eval, part.eval);
    this.alarms.push(...part.alarms);
    return changed;
  }
  async readRollouts() {
    this.rolloutsAsked = true;
    const part = await source.rollouts(this.id, this.known, this.lastFile);
    const changed = part.rows.length > 0 || (part.reset && this.rows.length > 0);
    if (part.reset) this.rows = part.rows;
    else this.rows.push(...part.rows);
    this.known = part.known;
    this.lastFile = part.last;
    this.recorded = part.recorded;
    this.problems.rollouts = part.problems;
    return changed;
  }
  // What cannot be read of one run keeps no other from being shown.
  async attempt(read) {
    try {
      const changed = await read.call(this);
      this.problems.server = [];
      return changed;
    } catch (error) {
      if (error instanceof Lost) throw error;
      this.problems.server = [`${error.message}.`];
      return false;
    }
  }
  get step() { return this.train.step[this.train.step.length - 1] ?? 0; }
  get finished() { return this.info.steps && this.step >= this.info.steps; }
  get live() {
    const age = this.info.changed_seconds_ago;
    return source.live && !this.finished && age !== null && age < this.info.live_seconds;
  }
}

// A step that comes again replaces what stood from there on: the run was resumed.
function append(columns, part) {
  if (!part.step.length) return;
  let keep = columns.step.length;
  while (keep && columns.step[keep - 1] >= part.step[0]) keep -= 1;
  columns.step.length = keep;
  for (const key of new Set([...Object.keys(columns.values), ...Object.keys(part.values)])) {
    const before = (columns.values[key] ??= new Array(keep).fill(null));
    before.length = keep;
    const added = part.values[key];
    for (let i = 0; i < part.step.length; i += 1) before.push(added ? added[i] : null);
  }
  for (const step of part.step) columns.step.push(step);
}

class Store extends EventTarget {
  runs = [];
  problems = [];
  watchRollouts = false;
  tell(what) { this.dispatchEvent(new Event(what)); }
  get shown() { return this.runs.filter((run) => run.shown); }
  run(id) { return this.runs.find((run) => run.id === id) ?? this.shown[0] ?? this.runs[0]; }

  async start() {
    await this.refresh();
    if (source.live) this.follow();
  }
  // One round: new runs, new lines, new rollouts. Returns nothing; tells who listens.
  async refresh() {
    const before = JSON.stringify([this.problems, this.runs.map((run) => run.problems)]);
    const answer = await source.runs();
    this.problems = answer.problems;
    let changed = false;
    for (const info of answer.runs) {
      const known = this.runs.find((run) => run.id === info.id);
      if (known) Object.assign(known, { info, problems: { ...known.problems, recipe: info.problems } });
      else { this.runs.push(new RunData(info, this.runs.length)); changed = true; }
    }
    const read = await Promise.all(this.shown.map((run) => run.attempt(run.readMetrics)));
    if (changed || read.some(Boolean)) this.tell("metrics");
    this.tell("round");
    const wanted = this.runs.filter((run) => run.rolloutsAsked && this.watchRollouts);
    const rows = await Promise.all(wanted.map((run) => run.attempt(run.readRollouts)));
    if (rows.some(Boolean)) this.tell("rollouts");
    if (before !== JSON.stringify([this.problems, this.runs.map((run) => run.problems)])) this.tell("problems");
  }
  async follow() {
    for (;;) {
      await new Promise((done) => setTimeout(done, 2000));
      if (document.hidden) continue;
      try {
        await this.refresh();
        this.lost = false;
      } catch {
        this.lost = true;  // the server was stopped: what was read stays on the page
        this.tell("round");
      }
    }
  }
  show(run, on) { return this.choose(this.runs.filter((other) => (other === run ? on : other.shown)).map((other) => other.id)); }
  // Shows these runs, and no others. null: the first few.
  async choose(ids) {
    const first = this.runs.slice(0, RUN_COLOURS.length).map((run) => run.id);
    const wanted = new Set(ids ?? first);
    for (const run of this.runs) run.shown = wanted.has(run.id);
    const same = wanted.size === first.length && first.every((id) => wanted.has(id));
    address.set({ runs: same ? null : this.shown.map((run) => run.id) });
    await Promise.all(this.shown.filter((run) => !run.offset).map((run) => run.attempt(run.readMetrics).catch(() => {})));  // lost: the next round says so
    this.tell("metrics");
    this.tell("problems");
  }
}

export const store = new Store();
address.addEventListener("navigate", () => {
  const wanted = address.list("runs");
  const before = store.shown.map((run) => run.id).join("\n");
  if (before !== (wanted ?? store.runs.slice(0, RUN_COLOURS.length).map((run) => run.id)).join("\n")) store.choose(wanted);
});
