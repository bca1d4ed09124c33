// The rows of the runs table: what each shows, as text, and the element that is kept as long as that stays.
import { address } from "./address.js";
import { copyButton } from "./clip.js";
import { comparing, STATE_NAMES } from "./columns.js";
import { el } from "./dom.js";
import { bandNow, lastCommon, summaryOf } from "./groups.js";
import { areMixed, nameOfT } from "./temperature.js";

const PILLS = { running: "pill live", finished: "pill", failed: "pill warn", killed: "pill warn" };
const LONGEST_LIST = 24;  // characters of several values in one cell

export function statePill(run) {
  const why = run.state === "failed" && run.info.history?.message;
  return [el("span", { class: PILLS[run.state] ?? "pill off", title: why }, run.state === "running" && el("i"), STATE_NAMES[run.state]), why && el("small", { class: "why", title: why }, why)];
}

// The temperatures of a column's numbers in these runs; none where they do not depend on it.
const temperaturesIn = (column, runs) => (column.atT ? runs.filter((run) => typeof column.of(run) === "number").map(column.atT) : []);
export const isMixed = (column, runs) => areMixed(temperaturesIn(column, runs));

// One cell: { text, value } of a run or of a group's runs. A group's number is its mean, with its band's half width. Numbers at
// different temperatures have no mean; `mixed`: the column has several, and each cell says its own.
export function cellOf(column, runs, mixed = false) {
  const values = runs.map((run) => column.of(run)), at = temperaturesIn(column, runs);
  if (areMixed(at)) return { value: undefined, text: "–", note: nameOfT(at), title: "Numbers at different temperatures are different quantities: they have no mean" };
  const cell = plainCell(column, runs, values);
  return mixed && at.length ? { ...cell, note: [cell.note, nameOfT(at)].filter(Boolean).join(", ") } : cell;
}

function plainCell(column, runs, values) {
  if (runs.length === 1) {
    const value = values[0], missing = value === undefined || value === null;
    const at = missing ? undefined : column.at?.(runs[0]);
    return { value, text: missing ? "–" : column.show(value, runs[0]), note: at === undefined ? "" : `at ${at.toLocaleString("en-US")}`, title: missing ? undefined : column.title?.(value, runs[0]) };
  }
  const known = values.filter((value) => value !== undefined && value !== null);
  if (!known.length) return { value: undefined, text: "–", note: "" };
  if (known.every((value) => typeof value === "number") && !column.id.startsWith("recipe:")) return numberOf(column, known, runs);
  const order = comparing(column, false), shown = [...new Map([...known].sort(order).map((value) => [column.show(value), value])).keys()];
  if (column.id === "state") return { value: known[0], text: shown.map((text) => `${known.filter((value) => column.show(value) === text).length} ${text}`).join(", "), note: "" };
  const list = shown.join(", ");
  return { value: known.sort(order)[0], text: list.length > LONGEST_LIST ? `${shown.length} values` : list, note: "", title: shown.length > 1 ? list : undefined };
}

function numberOf(column, known, runs) {
  const of = known.length < runs.length ? `of ${known.length} of ${runs.length} runs` : undefined;
  if (column.sum) { const total = known.reduce((sum, value) => sum + value, 0); return { value: total, text: column.show(total), note: "", title: of }; }
  const [least, most] = [Math.min(...known), Math.max(...known)];
  if (column.spread) {
    const ends = [...new Set([column.show(least), column.show(most)])];
    return { value: most, text: ends.join(" to "), note: "", title: of };
  }
  return column.evaluated ? evaluatedOf(column, runs) : meanCell(column, known, column.ofLastStep ? stepsOf(runs) : "", of);
}

function meanCell(column, values, where, title) {
  const { mean, low, high } = summaryOf(values), band = bandNow(), show = (value) => column.show(value);
  const around = low === null ? "" : band === "range" ? `${show(low)} to ${show(high)}` : `± ${show((high - low) / 2)}`;
  return { value: mean, text: show(mean), note: [around, where].filter(Boolean).join(" "), title };
}

// Of a group's evaluations those at one step, as its curves: runs that stopped early or evaluate at other steps are without one.
function evaluatedOf(column, runs) {
  const common = lastCommon(runs, column.evaluated(runs));
  if (!common) return { value: undefined, text: "–", note: "", title: "There is no step that more than half of these runs have an evaluation of" };
  const step = common.step.toLocaleString("en-US"), n = common.values.length, own = runs.every((run) => run.info.summary.evaluations.step.at(-1) === common.step);
  const where = n === runs.length && own ? "" : `at ${step}, ${n === runs.length ? `all ${n}` : `${n} of ${runs.length}`}`;
  return meanCell(column, common.values.map(([run, value]) => value - (column.since?.(run) ?? 0)), where, `mean of ${n} of ${runs.length} runs at step ${step}, the last one that more than half of them have evaluated`);
}

function stepsOf(runs) {
  const steps = runs.map((run) => run.step), [least, most] = [Math.min(...steps), Math.max(...steps)];
  return least === most ? "" : `at ${least.toLocaleString("en-US")} to ${most.toLocaleString("en-US")}`;
}

export class Row {
  // `act`: { toggle(runs, on, shift), open(group) } of the table.
  constructor(id, runs, group, act) {
    Object.assign(this, { id, group, act });
    this.runs = runs;
    this.cells = new Map();  // column id -> [signature, element]
    this.node = el("tr", { data: group ? { group: id } : { run: id }, class: group ? "of-group" : "" });
  }

  // `numbers`: the ids of columns that hold them; `best`: column id -> the value to point out; `mixed`: see `cellOf`; `within` a group that is open.
  draw({ columns, numbers, best, mixed }, within, open) {
    const shown = this.runs.filter((run) => run.shown).length;
    const parts = [["", [shown, this.runs.length, this.group?.total, this.ink(), within, open].join(), () => this.head(shown, open)]];
    for (const column of columns) {
      const cell = cellOf(column, this.runs, mixed.has(column.id)), isBest = best.has(column.id) && cell.value === best.get(column.id);
      const one = this.group ? null : this.runs[0];
      parts.push([column.id, [cell.text, cell.note, cell.title, isBest, numbers.has(column.id), one && column.id === "step" ? one.state : ""].join("\u0000"), () => cellNode(column, cell, one, isBest, numbers.has(column.id))]);
    }
    const nodes = parts.map(([id, signature, make]) => {
      if (this.cells.get(id)?.[0] !== signature) this.cells.set(id, [signature, make()]);
      return this.cells.get(id)[1];
    });
    if (nodes.length !== this.node.children.length || nodes.some((node, i) => node !== this.node.children[i])) keepingFocus(this.node, () => this.node.replaceChildren(...nodes));
    this.node.classList.toggle("off", shown === 0);
    this.node.classList.toggle("within", Boolean(within));
    return this.node;
  }

  ink() { return this.group ? this.group.colour : this.runs[0].colour; }

  // Of a group that is found in part, of how many: its numbers are of those alone.
  count() {
    const { total } = this.group, found = this.runs.length, part = found < total;
    return el("span", { class: part ? "count warn" : "count", title: part ? "The others are not listed, and not in these numbers" : undefined }, `${part ? `${found} of ` : ""}${total} ${total === 1 ? "run" : "runs"}`);
  }

  head(shown, open) {
    const all = shown === this.runs.length, run = this.runs[0];
    const box = el("input", { type: "checkbox", checked: all, indeterminate: shown > 0 && !all, "aria-label": `Show ${this.group ? this.group.label : run.id}`, data: { act: "show" } });
    box.addEventListener("click", (event) => this.act.toggle(this, box.checked, event.shiftKey));
    const dot = el("i", { class: "dot", vars: { "--ink": `var(${this.ink()})` } });
    if (this.group) {
      return el("th", { scope: "row" }, el("div", { class: "name" }, box, dot,
        el("button", { type: "button", class: "fold", "aria-expanded": String(Boolean(open)), data: { act: "fold" }, onclick: () => this.act.open(this.group) }, el("span", { class: "arrow", "aria-hidden": "true" }, "▸"), el("span", { class: "text", title: this.group.label }, this.group.label)),
        this.count()));
    }
    const link = (text, tab, changes, title) => el("a", { class: "act", href: address.link(tab, changes), title, "aria-label": `${title}: ${run.id}` }, text);
    return el("th", { scope: "row" }, el("div", { class: "name" }, box, dot,
      el("a", { class: "text", href: address.link("curves", { runs: [run.id] }), title: `${run.id}: its curves alone`, data: { act: "open" } }, run.id),
      el("span", { class: "acts" }, link("Samples", "samples", { run: run.id, "samples.rollout": null }, "Samples of this run"), link("Recipe", "recipe", { runs: [run.id] }, "Recipe of this run"),
        copyButton("Copy", () => run.id, { title: `Copy the name ${run.id}`, name: "act" }))));
  }
}

function cellNode(column, cell, run, isBest, isNumber) {
  const name = [isNumber && "number", column.mono && "mono", isBest && "best", column.id === "alarms" && cell.value > 0 && "warn"].filter(Boolean).join(" ");
  if (column.id === "state" && run) return el("td", {}, statePill(run));
  return el("td", { class: name, title: cell.title ?? (isBest ? "the best of those listed" : undefined) }, el("span", {}, cell.text), cell.note && el("small", {}, ` ${cell.note}`),
    column.id === "step" && run && run.state !== "finished" && run.info.steps && el("progress", { max: 1, value: run.step / run.info.steps, "aria-label": "steps made" }));
}

// Elements that move in the document lose the focus: it goes back to the same control.
export function keepingFocus(node, change) {
  const focused = document.activeElement, act = node.contains(focused) ? focused.dataset?.act : undefined;
  const row = focused?.closest?.("tr")?.dataset;
  change();
  if (!act || document.activeElement === focused) return;
  const key = row.run !== undefined ? `[data-run="${CSS.escape(row.run)}"]` : `[data-group="${CSS.escape(row.group ?? "")}"]`;
  (node.matches(key) ? node : node.querySelector(key))?.querySelector(`[data-act="${act}"]`)?.focus({ preventScroll: true });
}
