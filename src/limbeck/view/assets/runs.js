// All runs as a table: find, sort, group and compare them, and choose which are drawn.
import { address } from "./address.js";
import { csvText, saveText } from "./clip.js";
import { allColumns, columnOf, comparing, csvValue, STATE_NAMES, usualColumns } from "./columns.js";
import { choice, debounce, el, scroller } from "./dom.js";
import { finder } from "./find.js";
import { differing, isAside, keysOf } from "./flat.js";
import { counted } from "./format.js";
import { ALL_BUT_SEED, BANDS, bandNow, groupBy, groupedBy, groupsOf } from "./groups.js";
import { boxes, menu } from "./menu.js";
import { cellOf, isMixed, keepingFocus, Row } from "./runrows.js";
import { store } from "./store.js";

const FIRST_FEW = 5, MOST_SHOWN = 50;  // that are drawn at a press
const NEWEST = "-started";

export class RunsPanel {
  constructor() {
    this.rows = new Map();
    this.search = el("input", { type: "search", id: "find-runs", placeholder: "Find: a name, accuracy>0.8, lr=0.001, -failed", "aria-label": "Find runs", title: "Words of a name, a state or a host; - before a word leaves it out. Comparisons of any column or recipe key: accuracy>0.8 temperature=0.7 host!=gpu-02",
      oninput: debounce(120, () => this.keep({ "runs.find": this.search.value || null })) });
    this.hint = el("span", { class: "hint", role: "status" });
    this.states = el("div", { class: "states", role: "group", "aria-label": "States" });
    this.grouping = menu("Group by", () => this.groupMenu());
    this.choosing = menu("Columns", () => this.columnMenu());
    this.bar = el("div", { class: "shown-bar" });
    this.head = el("thead");
    this.body = el("tbody");
    this.table = el("table", { class: "run-table" }, el("caption", { class: "hidden" }, "Runs"), this.head, this.body);
    this.node = el("div", { class: "runs-tab" },
      el("div", { class: "toolbar" }, this.search, this.states, el("span", { class: "spring" }), this.grouping, this.choosing,
        el("button", { type: "button", class: "quiet", title: "The listed runs with these columns, as a file", onclick: () => saveText("runs.csv", "text/csv", csvText(this.csvRows())) }, "CSV")),
      this.bar, el("div", { class: "card listed" }, scroller("Runs", this.table)));
    for (const event of ["described", "metrics", "round"]) store.addEventListener(event, () => { if (address.tab === "runs") this.draw(); });
  }

  open() {
    this.search.value = address.get("runs.find", "");
    this.draw();
  }

  keep(changes) { address.set(changes); this.draw(); }

  get columns() { return (address.list("runs.columns") ?? usualColumns()).map(columnOf).filter(Boolean); }
  get sort() { const text = address.get("runs.sort", NEWEST); return { id: text.replace(/^-/, ""), descending: text.startsWith("-") }; }

  // The runs that are found, in order.
  listed() {
    const hidden = new Set(address.get("runs.hide", [])), { test, problem } = finder(address.get("runs.find", ""));
    const matching = store.runs.filter(test);
    this.hint.textContent = problem;
    return [matching, this.sorted(matching.filter((run) => !hidden.has(run.state)), (run) => [run], (run) => run.id)];
  }

  sorted(things, runsOf, nameOf) {
    const { id, descending } = this.sort, column = columnOf(id), compare = comparing(column, descending);
    const names = comparing(null, id === "name" && descending);
    const keyed = things.map((thing) => [thing, column && id !== "name" ? cellOf(column, runsOf(thing)).value : "", nameOf(thing)]);
    return keyed.sort((a, b) => compare(a[1], b[1]) || names(a[2], b[2])).map(([thing]) => thing);
  }

  draw() {
    const [matching, runs] = this.listed();
    const by = groupedBy(), columns = this.columns;
    const groups = by.length ? this.sorted(groupsOf(runs, by), (group) => group.runs, (group) => group.label) : [];
    const numbers = new Set(columns.filter((column) => !column.id.startsWith("recipe:") && runs.some((run) => typeof column.of(run) === "number")).map((column) => column.id));
    const mixed = new Set(columns.filter((column) => isMixed(column, runs)).map((column) => column.id));
    const best = bestOf(columns.filter((column) => !mixed.has(column.id)), by.length ? groups.map((group) => group.runs) : runs.map((run) => [run]));
    const look = { columns, numbers, best, mixed };
    const opened = new Set(address.get("runs.open", []));
    const rows = by.length ? groups.flatMap((group) => [this.row(group.id, group.runs, group, look, false, opened.has(group.label)),
      ...(opened.has(group.label) ? group.runs.map((run) => this.row(run.id, [run], null, { ...look, best: new Map() }, true)) : [])])
      : runs.map((run) => this.row(run.id, [run], null, look, false));
    this.drawn = runs;
    this.drawHead(columns, numbers, runs);
    const nodes = rows.map((row) => row.node);
    if (nodes.length !== this.body.children.length || nodes.some((node, i) => node !== this.body.children[i])) keepingFocus(this.body, () => this.body.replaceChildren(...nodes));
    if (!rows.length) this.body.replaceChildren(el("tr", {}, el("td", { colSpan: columns.length + 1, class: "blank" }, store.runs.length ? "No run is found. " : "There is no run here yet.", store.runs.length > 0 && el("button", { type: "button", class: "quiet", onclick: () => { this.search.value = ""; this.keep({ "runs.find": null, "runs.hide": null }); } }, "Show all runs"))));
    this.drawStates(matching);
    this.drawBar(runs, groups);
    this.grouping.relabel(by.length ? `Group by: ${by.includes(ALL_BUT_SEED) ? "all but seed" : by.map((key) => key.split(".").pop()).join(", ")}` : "Group by");
  }

  row(id, runs, group, look, within, open) {
    const key = `${group ? "group" : "run"} ${id}`;
    const act = { toggle: (row, on, range) => this.toggle(row, on, range), open: (which) => this.fold(which) };
    if (!this.rows.has(key)) this.rows.set(key, new Row(id, runs, group, act));
    const row = this.rows.get(key);
    Object.assign(row, { runs, group });
    row.draw(look, within, open);
    return row;
  }

  fold({ label }) {
    const open = address.get("runs.open", []);
    this.keep({ "runs.open": open.includes(label) ? open.filter((one) => one !== label) : [...open, label] });
  }

  // With the shift key, all rows from the last one that was pressed.
  toggle(row, on, range) {
    let runs = row.runs;
    const [from, to] = [this.pressed, row.runs[0]].map((run) => this.drawn.indexOf(run));
    if (range && from >= 0 && to >= 0) runs = [...this.drawn.slice(Math.min(from, to), Math.max(from, to) + 1), ...runs];
    this.pressed = row.runs[0];
    const changed = new Set(runs);
    store.choose(store.runs.filter((run) => (changed.has(run) ? on : run.shown)).map((run) => run.id));
  }

  drawHead(columns, numbers, runs) {
    const { id, descending } = this.sort, shown = runs.filter((run) => run.shown).length;
    const signature = JSON.stringify([columns.map((column) => column.id), [...numbers], id, descending, shown, runs.length]);
    if (signature === this.headed) return;
    this.headed = signature;
    const focused = this.head.contains(document.activeElement) ? document.activeElement.dataset.act : null;
    const all = el("input", { type: "checkbox", checked: shown > 0 && shown === runs.length, indeterminate: shown > 0 && shown < runs.length, "aria-label": "Show all listed runs", data: { act: "all" } });
    all.addEventListener("click", () => this.only(all.checked ? runs.slice(0, MOST_SHOWN) : []));
    const head = (column, label, about) => {
      const on = column === id, turn = () => this.keep({ "runs.sort": this.turned(column, on, descending) });
      return el("th", { scope: "col", "aria-sort": on ? (descending ? "descending" : "ascending") : "none", title: about },
        column === "name" && all, el("button", { type: "button", class: "sort", data: { act: `sort ${column}` }, onclick: turn }, label, el("span", { class: "arrow", "aria-hidden": "true" }, on ? (descending ? " ↓" : " ↑") : "")));
    };
    this.head.replaceChildren(el("tr", {}, head("name", "Run"), columns.map((column) => { const node = head(column.id, column.label, column.about); node.classList.toggle("number", numbers.has(column.id)); return node; })));
    if (focused) this.head.querySelector(`[data-act="${CSS.escape(focused)}"]`)?.focus();
  }

  // What a press on a head makes of the order: first what one looks for, then the other way, then as before.
  turned(id, on, descending) {
    const column = columnOf(id), first = id !== "name" && (column?.better ? column.better > 0 : typeof store.runs.map(column.of).find((value) => value !== undefined) === "number" && id !== "eta");
    if (!on) return `${first ? "-" : ""}${id}`;
    return descending === first ? `${first ? "" : "-"}${id}` : null;
  }

  only(runs) { store.choose(runs.map((run) => run.id)); }

  drawStates(matching) {
    const counts = new Map(), hidden = address.get("runs.hide", []);
    for (const state of Object.keys(STATE_NAMES)) counts.set(state, matching.filter((run) => run.state === state).length);
    const there = [...counts].filter(([state, count]) => count || hidden.includes(state));
    const signature = JSON.stringify([there, hidden]);
    if (signature === this.stated) return;
    this.stated = signature;
    const focused = document.activeElement?.dataset?.state;
    this.states.replaceChildren(...there.map(([state, count]) => el("button", { type: "button", class: "state-chip", "aria-pressed": String(!hidden.includes(state)), data: { state }, title: hidden.includes(state) ? `List ${STATE_NAMES[state]} runs` : `Leave out ${STATE_NAMES[state]} runs`,
      onclick: () => this.keep({ "runs.hide": hidden.includes(state) ? hidden.filter((one) => one !== state) : [...hidden, state] }) }, STATE_NAMES[state], el("b", {}, String(count)))));
    if (focused) this.states.querySelector(`[data-state="${focused}"]`)?.focus();
  }

  // How many are listed and drawn, and what to do with them.
  drawBar(runs, groups) {
    const listed = new Set(runs), shown = store.shown, aside = shown.filter((run) => !listed.has(run)), inOrder = groups.length ? groups.flatMap((group) => group.runs) : runs;
    const signature = JSON.stringify([runs.length, groups.length, shown.map((run) => run.id), aside.length, inOrder.map((run) => run.id).join(), this.hint.textContent, store.runs.length]);
    if (signature === this.barred) return;
    this.barred = signature;
    const act = (text, title, run) => el("button", { type: "button", class: "quiet", title, onclick: run }, text);
    const go = (text, tab, title) => el("a", { class: "quiet", href: address.link(tab), title }, text);
    const few = groups.length ? groups.slice(0, FIRST_FEW).flatMap((group) => group.runs) : runs.slice(0, FIRST_FEW), isFew = few.length === shown.length && few.every((run) => run.shown);
    this.bar.replaceChildren(
      el("span", { role: "status" }, el("b", {}, runs.length < store.runs.length ? `${runs.length} of ${counted(store.runs.length, "run")}` : counted(runs.length, "run")), groups.length ? ` in ${counted(groups.length, "group")}` : "", `, ${shown.length} shown`),
      this.hint,
      aside.length ? act(`Hide ${aside.length} that ${aside.length === 1 ? "is" : "are"} not listed`, "They are shown in the curves, and not in this table", () => this.only(shown.filter((run) => listed.has(run)))) : "",
      (groups.length || runs.length) > FIRST_FEW && !isFew ? act(`Show the first ${FIRST_FEW}${groups.length ? " groups" : ""}`, `Those at the top of this table, and no others`, () => this.only(few)) : "",
      runs.length && runs.some((run) => !run.shown) ? act(runs.length > MOST_SHOWN ? `Show the first ${MOST_SHOWN}` : `Show all ${runs.length}`, "In the curves and the comparison of recipes", () => this.only(inOrder.slice(0, MOST_SHOWN))) : "",
      shown.length ? act("Show none", "", () => this.only([])) : "",
      el("span", { class: "spring" }),
      shown.length ? el("span", { class: "compare" }, el("span", { class: "hint" }, shown.length > 1 ? `Compare these ${shown.length}:` : "This one:"), go("Curves", "curves", "Their curves"), go(shown.length > 1 ? "What differs" : "Recipe", "recipe", "Their recipes"), go("Samples", "samples", "What they wrote")) : "");
  }

  groupMenu() {
    const by = groupedBy(), set = (keys) => { groupBy(keys); this.draw(); };
    const keys = keysOf(store.runs), differs = differing(store.runs, keys).filter((key) => key !== "name"), item = (key) => [key, key, key];
    const on = (id) => groupedBy().includes(id);
    const change = (id, add) => {
      const now = groupedBy();
      set(id === ALL_BUT_SEED ? (add ? [ALL_BUT_SEED] : []) : add ? [...now.filter((key) => key !== ALL_BUT_SEED), id] : now.filter((key) => key !== id));
      for (const box of list.querySelectorAll("input[data-id]")) box.checked = on(box.dataset.id);
    };
    const foot = el("div", { class: "menu-foot" }, choice("Band", Object.entries(BANDS).map(([id, { name }]) => [id, name]), bandNow(), (id) => { address.set({ band: id }); store.tell("metrics"); }),
      by.length ? el("button", { type: "button", class: "quiet", onclick: () => { set([]); this.grouping.close(true); } }, "No groups") : "");
    const list = boxes([["Repeats of one recipe", [[ALL_BUT_SEED, "all but seed", "Runs whose recipes differ in seed, name and place alone"]]], ["Keys that differ", differs.filter((key) => !isAside(key) || key === "threads").map(item)], ["Other keys", keys.filter((key) => !differs.includes(key) && key !== "name").map(item)]], on, change, foot);
    return list;
  }

  columnMenu() {
    const chosen = () => address.list("runs.columns") ?? usualColumns();
    const set = (ids) => this.keep({ "runs.columns": ids && JSON.stringify(ids) !== JSON.stringify(usualColumns()) ? ids : null });
    const foot = el("div", { class: "menu-foot" }, el("button", { type: "button", class: "quiet", onclick: () => { set(null); this.choosing.close(true); } }, "The usual columns"));
    const heads = allColumns().map(([head, ids]) => [head, ids.map((id) => { const column = columnOf(id); return [id, id.includes(":") ? id.slice(id.indexOf(":") + 1) : column.label, column.about]; })]);
    return boxes(heads, (id) => chosen().includes(id), (id, on) => set(on ? [...chosen(), id] : chosen().filter((one) => one !== id)), foot);
  }

  csvRows() {
    const columns = this.columns, [, runs] = this.listed();
    return [["run", ...columns.map((column) => (column.id.includes(":") ? column.id.slice(column.id.indexOf(":") + 1) : column.id))],
      ...runs.map((run) => [run.id, ...columns.map((column) => csvValue(column, run))])];
  }
}

// The best value of each column that has one, of several that differ.
function bestOf(columns, rows) {
  const best = new Map();
  for (const column of columns.filter((one) => one.better)) {
    const values = rows.map((runs) => cellOf(column, runs).value).filter((value) => typeof value === "number");
    if (new Set(values).size > 1) best.set(column.id, column.better > 0 ? Math.max(...values) : Math.min(...values));
  }
  return best;
}
