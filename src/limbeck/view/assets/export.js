// A chart as files: its numbers, as the run's files have them, and its drawing.
import { places } from "./axes.js";
import { known } from "./series.js";
import { svgOf } from "./vector.js";

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const fileName = (chart, ending) => `${chart.title.toLowerCase().replace(/[^a-z0-9@.]+/g, "-").replace(/^-|-$/g, "")}.${ending}`;
const csvCell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);

export function saveCsv(chart) {
  chart.rebuild();
  save(fileName(chart, "csv"), "text/csv", csvOf(chart));
}

// One row a run and step. Every number is the file's, in the shortest decimals that give it back: nothing is smoothed
// or left out. `/low` and `/high` are the ends of an interval; a line of several seeds has its mean, and how many they are.
export function csvOf(chart) {
  const rows = new Map(), columns = new Set(), [place] = chart.axis === "step" ? ["step"] : [chart.axis];
  for (const line of chart.lines.filter((one) => one.label)) {
    const name = `${line.from === "eval" ? "eval/" : ""}${line.key ?? line.label}`;
    const parts = [["", line.raw], ["/se", line.errors], ["/low", line.interval?.[0]], ["/high", line.interval?.[1]], ["/runs", line.counts]];
    for (const [ending, values] of parts) values?.forEach((value, i) => {
      if (!known(value)) return;
      columns.add(`${name}${ending}`);
      const at = (line.steps ?? line.x)[i], key = `${line.run ?? ""} ${at}`;
      const row = rows.get(key) ?? { run: line.run ?? "", [place]: at, ...axesOf(line, i) };
      row[`${name}${ending}`] = value;
      rows.set(key, row);
    });
  }
  const order = [...new Set(chart.lines.map((line) => line.run ?? ""))];
  const sorted = [...rows.values()].sort((a, b) => order.indexOf(a.run) - order.indexOf(b.run) || a[place] - b[place]);
  const heads = ["run", place, ...(sorted.some((row) => row.tokens !== undefined) ? ["tokens"] : []), ...(sorted.some((row) => row.seconds !== undefined) ? ["seconds"] : []), ...columns];
  return [heads, ...sorted.map((row) => heads.map((head) => row[head] ?? ""))].map((row) => `${row.map((value) => csvCell(String(value))).join(",")}\r\n`).join("");
}

// How many tokens and seconds had been spent by then, where one run is behind the line.
function axesOf(line, i) {
  if (!line.source) return {};
  const [tokens, seconds] = ["tokens", "time"].map((axis) => places(line.source, line.from ?? "train", axis)?.[i]);
  return { ...(known(tokens) && { tokens }), ...(known(seconds) && { seconds }) };
}

// In the colours of the light theme, whichever is on: it is for paper. Nothing is painted in between.
export function saveSvg(chart) {
  const root = document.documentElement, { theme } = root.dataset;
  root.dataset.theme = "light";
  try {
    chart.rebuild();
    save(fileName(chart, "svg"), "image/svg+xml", svgOf(chart, chart.across));
  } finally {
    root.dataset.theme = theme;
    chart.rebuild();
  }
}
