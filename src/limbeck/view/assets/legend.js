// The head of a chart: what its lines are, and their values at a place, as the file has them: never smoothed.
import { el } from "./dom.js";
import { known, lastAt, nearestAt } from "./series.js";

// The value of a line at a place: of points, the nearest. `elsewhere`: the step it is of, where that is not the one pointed at.
function valueAt(line, place, shared) {
  const i = (line.points ? nearestAt : lastAt)(line.x, line.raw, place);
  if (i < 0) return { value: null };
  const apart = line.x[i] !== place && (line.points || !shared || line.x === line.steps);
  return { value: line.raw[i], error: line.errors?.[i], range: line.interval?.map((column) => column[i]), runs: line.counts && (`n = ${line.counts[i]}${line.counts[i] < line.of ? ` of ${line.of}` : ""}`), elsewhere: apart ? (shared ? `step ${line.steps[i].toLocaleString("en-US")}` : `position ${line.x[i]}`) : "" };
}

function valueNodes(line, place, { format, shared, pointed }) {
  const { value, error, range, runs, elsewhere } = valueAt(line, place, shared);
  return [` ${format(value)}`, known(error) && el("small", {}, ` ± ${format(error)}`),
    known(range?.[0]) && el("small", {}, ` [${format(range[0])}, ${format(range[1])}]`), runs && el("small", {}, ` ${runs}`),
    elsewhere && (pointed || line.x === line.steps) && el("small", {}, ` at ${elsewhere}`)];
}

const swatch = (line, ink = line.colour) => el("i", { class: line.points ? "swatch point" : line.dash ? "swatch dashed" : "swatch", vars: { ...(ink && { "--ink": ink }), "--alpha": line.alpha ?? 1 } });

// { head, table, said }: entries side by side; where several runs are overlaid, the names of the quantities, and a table with
// a row a run. `said` is all of it as a sentence. `focus(owner)` receives the row that is pointed at.
export function legendOf(lines, place, options) {
  const labelled = lines.filter((line) => line.label), ordered = [...labelled.filter((line) => !line.faint), ...labelled.filter((line) => line.faint)];
  const nodes = (line) => (options.valued ? valueNodes(line, place, options) : []);
  if (!ordered.some((line) => line.owner)) {
    const entries = ordered.map((line) => el("span", { class: line.faint ? "entry faint" : "entry" }, swatch(line), el("b", {}, line.label), nodes(line)));
    return { head: el("div", { class: "entries" }, entries), said: entries.map((entry) => entry.textContent).join(", ") };
  }
  const labels = [...new Set(ordered.map((line) => line.label))], owners = [...new Set(ordered.map((line) => line.owner))];
  const named = (label) => [swatch(ordered.find((line) => line.label === label), ""), label];
  const find = (owner, label) => ordered.find((line) => line.owner === owner && line.label === label);
  const rows = owners.map((owner) => el("tr", { onmouseenter: () => options.focus(owner), onmouseleave: () => options.focus(null) },
    el("th", { scope: "row", title: owner }, el("i", { class: "dot", vars: { "--ink": ordered.find((line) => line.owner === owner).colour } }), el("span", {}, owner)),
    labels.map((label) => { const line = find(owner, label); return el("td", {}, line ? nodes(line) : ""); })));
  const said = owners.map((owner) => `${owner}: ${labels.map((label) => [label, find(owner, label)]).filter(([, line]) => line)
    .map(([label, line]) => `${label}${el("span", {}, nodes(line)).textContent}`).join(", ")}`).join("; ");
  const table = el("table", { class: "overlaid" }, el("thead", {}, el("tr", {}, el("th", {}), labels.map((label) => el("th", { scope: "col" }, named(label))))), el("tbody", {}, rows));
  return { head: el("div", { class: "entries" }, labels.map((label) => el("span", { class: "entry" }, named(label)))), table, said };
}
