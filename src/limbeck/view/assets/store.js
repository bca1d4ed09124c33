// What is known of each run, kept up to date while it goes on.
import { address } from "./address.js";
import { Lost, source } from "./source.js";

const MAX_STEP_SECONDS = 86400;  // a process that is still there and silent for longer is another one of the same number
const RACE_SECONDS = 20;  // a machine's name does not prove that its processes are seen: a line this young does
export const RUN_COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7"];

class RunData {
  constructor(info) {
    this.id = info.id;
    this.place = undefined;
    this.shown = false;
    this.describe(info);
    this.forget();
    this.rows = [];
    this.known = 0;
    this.lastFile = "";
    this.rolloutsAsked = false;
    this.problems = { recipe: info.problems, skipped: [], metrics: [], rollouts: [], server: [] };
  }
  describe(info) {
    this.info = info;
    this.aged = performance.now();
    if (this.problems) this.problems = { ...this.problems, recipe: info.problems };
  }
  forget() {
    for (const kind of ["train", "eval"]) this[kind] = { step: [], values: Object.create(null), not_finite: Object.create(null) };
    this.alarms = [];
    this.offset = 0;
  }
  async readMetrics() {
    const part = await source.metrics(this.id, this.offset);
    this.problems.metrics = part.problems;
    this.problems.skipped = part.reset ? part.skipped : [...this.problems.skipped, ...part.skipped];  // lines that were read once are not read again
    this.info.changed_seconds_ago = part.changed_seconds_ago;
    this.aged = performance.now();
    const changed = part.offset !== this.offset || (part.reset && this.offset > 0);
    if (part.reset) this.forget();
    this.offset = part.offset;
    if (part.train.step.length) this.alarms = this.alarms.filter((alarm) => alarm.step < part.train.step[0]);
    append(this.train, part.train);
    append(this.eval, part.eval);
    const raised = new Set(this.alarms.map((alarm) => JSON.stringify(alarm)));  // as of an evaluation that was made again
    this.alarms.push(...part.alarms.filter((alarm) => !raised.has(JSON.stringify(alarm))));
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
  // What its evaluation at a step says of a set of prompts.
  evaluated(step, set) {
    const at = this.eval.step.indexOf(step), of = (key) => this.eval.values[set ? `${set}/${key}` : key]?.[at] ?? undefined;
    return { failed: of("env/failed") ?? 0, accuracy: of("accuracy"), prompts: of("prompts") };
  }
  // Whether there is something to see: `steps`, `rollouts` or `evaluations`.
  has(what) { return what === "steps" ? this.step > 0 : Boolean(this.info.recorded?.[what]); }
  get step() { return this.train.step[this.train.step.length - 1] ?? this.info.summary?.step ?? 0; }
  get finished() { return Boolean(this.info.steps) && this.step >= this.info.steps; }
  // Seconds since its last line; null where there is none. In a report, when that was written.
  get age() {
    const age = this.info.changed_seconds_ago;
    return age === null || age === undefined ? null : source.live ? age + (performance.now() - this.aged) / 1000 : age;
  }
  // A process of the server's machine is there or not; of another one, a file that changed lately has to do.
  get live() {
    const { history = {}, alive, live_seconds: soon } = this.info;
    if (!source.live || this.finished || history.outcome) return false;
    const age = this.age ?? (history.since ? Date.now() / 1000 - history.since : null);
    return age !== null && (alive === true ? age < MAX_STEP_SECONDS : age < (alive === false ? RACE_SECONDS : soon));
  }
  // running, finished, failed, stopped, killed; `new` before the first line, `silent` where nobody knows.
  get state() {
    const { history = {}, alive } = this.info;
    if (history.outcome === "failed") return "failed";
    if (this.finished) return "finished";
    if (this.live) return "running";
    if (history.outcome) return history.outcome === "finished" ? "silent" : history.outcome;
    if (alive === false) return "killed";
    return this.age === null ? "new" : "silent";
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
  for (const key of new Set([...Object.keys(columns.not_finite), ...Object.keys(part.not_finite)])) {
    columns.not_finite[key] = [...(columns.not_finite[key] ?? []).filter((step) => step < part.step[0]), ...(part.not_finite[key] ?? [])];
  }
}

class Store extends EventTarget {
  runs = [];
  reported = [];  // of the server, what is wrong with the folder
  missing = new Set();  // runs that the address names and that are not here: a panel may show another one instead
  version = 0;  // of what the server has answered
  edition = 0;  // counts its answers that had something new
  watchRollouts = false;
  tell(what) { this.dispatchEvent(new Event(what)); }
  get problems() {
    const names = [...this.missing];
    return [...this.reported, ...(names.length ? [`The address names ${names.length === 1 ? "a run that is" : "runs that are"} not here: ${names.slice(0, 5).join(", ")}${names.length > 5 ? `, and ${names.length - 5} more` : ""}.`] : [])];
  }
  lookForMissing() {
    const named = [...(address.list("runs") ?? []), address.get("run"), address.tab === "samples" ? address.get("samples.with") : null].filter(Boolean);
    this.missing = new Set([...this.missing, ...named].filter((id) => !this.runs.some((run) => run.id === id)));
  }
  get shown() { return this.runs.filter((run) => run.shown); }
  // The run of that name; else the newest one that has something to show, of those that are shown if one of them has.
  run(id, what = "steps") {
    const having = (runs) => this.byAge(runs).find((run) => run.has(what));
    return this.runs.find((run) => run.id === id) ?? having(this.shown) ?? having(this.runs) ?? this.shown[0] ?? this.runs[0];
  }
  // The metrics of a run that may not be shown.
  async readOnce(run) {
    if (!run.offset) await run.attempt(run.readMetrics).catch(() => {});  // lost: the next round says so
  }

  async start() {
    await this.refresh();
    if (source.live) this.follow();
  }
  // One round: new runs, new lines, new rollouts. Returns nothing; tells who listens.
  async refresh() {
    const before = JSON.stringify([this.problems, this.runs.map((run) => run.problems)]);
    const answer = await source.runs(this.version);
    this.reported = answer.problems;
    this.version = answer.version;
    this.folder = answer.folder;
    let changed = this.runs.length > 0 && this.runs.some((run) => !answer.ids.includes(run.id));
    if (changed) this.runs = this.runs.filter((run) => answer.ids.includes(run.id));
    for (const info of answer.runs) {
      const known = this.runs.find((run) => run.id === info.id);
      if (known) known.describe(info);
      else { this.runs.push(new RunData(info)); changed = true; }
    }
    this.lookForMissing();
    this.colourAll();
    if (changed) {
      const places = new Map(answer.ids.map((id, place) => [id, place]));
      this.runs.sort((a, b) => places.get(a.id) - places.get(b.id));
      this.setShown(address.list("runs"));
    }
    if (changed || answer.runs.length) { this.edition += 1; this.tell("described"); }
    const followed = this.runs.filter((run) => run.shown || run.id === address.get("run"));
    const read = await Promise.all(followed.map((run) => run.attempt(run.readMetrics)));
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
  // By when they began: a run that is new changes no other's colour.
  colourAll() {
    byBegin(this.runs).forEach((run, place) => { if (run.place !== place) Object.assign(run, { place, colour: RUN_COLOURS[place % RUN_COLOURS.length] }); });
  }
  // Which runs are shown: those named, or the newest few; of groups the newest few, with all of their runs (`byGroup`, of groups.js). A colour of its own for each, as long as there are some.
  setShown(ids) {
    const wanted = new Set(ids ?? this.usual());
    for (const run of this.runs) run.shown = wanted.has(run.id);
    const taken = new Set();
    const repeated = byBegin(this.shown).filter((run) => taken.size === taken.add(run.colour).size);
    const free = RUN_COLOURS.filter((colour) => !taken.has(colour));
    for (const run of repeated) run.colour = free.shift() ?? run.colour;
  }
  // Without those that ended before there was anything to see, unless there is no other run.
  usual() {
    const newest = this.newest(), drawn = newest.filter((run) => run.live || ["steps", "evaluations"].some((what) => run.has(what)));
    return this.byGroup?.() ?? (drawn.length ? drawn : newest).slice(0, RUN_COLOURS.length).map((run) => run.id);
  }
  byAge(runs) {
    const started = (run) => run.info.history?.started ?? 0;
    return [...runs].sort((a, b) => started(b) - started(a));
  }
  newest() { return this.byAge(this.runs); }
  show(run, on) { return this.choose(this.runs.filter((other) => (other === run ? on : other.shown)).map((other) => other.id)); }
  // Shows these runs, and no others. null: the newest few.
  async choose(ids) {
    this.setShown(ids);
    const few = new Set(this.usual());
    const same = this.shown.length === few.size && this.shown.every((run) => few.has(run.id));
    address.set({ runs: same ? null : this.shown.map((run) => run.id) });
    await Promise.all(this.shown.map((run) => this.readOnce(run)));
    this.tell("metrics");
    this.tell("problems");
  }
}

// The oldest first; names decide where two began together. A run without a history is an old one, or is just being made.
const beganOf = (run) => run.info.history?.started ?? (run.step ? 0 : Infinity);
export const byBegin = (runs) => [...runs].sort((a, b) => (beganOf(a) === beganOf(b) ? 0 : beganOf(a) - beganOf(b)) || (a.id < b.id ? -1 : 1));

export const store = new Store();
address.addEventListener("navigate", () => {
  store.missing.clear();
  store.lookForMissing();
  const wanted = address.list("runs") ?? store.usual();
  if (wanted.length !== store.shown.length || store.shown.some((run) => !wanted.includes(run.id))) store.choose(address.list("runs"));
});
