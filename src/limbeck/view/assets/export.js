// A chart as files: its numbers, as the run's files have them, and its drawing.
import { placesOfSeveral } from "./axes.js";
import { csvText, saveText } from "./clip.js";
import { BANDS, bandNow } from "./groups.js";
import { known } from "./series.js";
import { svgOf } from "./vector.js";

const fileName = (chart, ending) => `${chart.title.toLowerCase().replace(/[^a-z0-9@.]+/g, "-").replace(/^-|-$/g, "")}.${ending}`;

export function saveCsv(chart) {
  chart.draw();
  saveText(fileName(chart, "csv"), "text/csv", csvOf(chart));
}

// One row a run and step. Every number is the file's, in the shortest decimals that give it back: nothing is smoothed
// or left out. `/low` and `/high` are the ends of a run's own interval. A line of several runs has their mean, how many they are (`/runs`), the
// ends of what is chosen as band, which say what they are (such as `/runs-ci95-low`), and what they spent on average.
function csvOf(chart) {
  const rows = new Map(), columns = new Set(), [place] = chart.axis === "step" ? ["step"] : [chart.axis];
  for (const line of chart.lines.filter((one) => one.label)) {
    const name = `${line.from === "eval" ? "eval/" : ""}${line.key ?? line.label}`;
    const of = line.whole ?? line, at = of.steps ?? of.x, spent = spentOf(line, at), [low, high] = of.counts ? BANDS[bandNow()].columns : ["low", "high"];
    const parts = [["", of.raw], ["/se", of.errors], [`/${low}`, of.interval?.[0]], [`/${high}`, of.interval?.[1]], ["/runs", of.counts]];
    for (const [ending, values] of parts) values?.forEach((value, i) => {
      if (!known(value)) return;
      columns.add(`${name}${ending}`);
      const key = `${line.run ?? ""} ${at[i]}`;
      const row = rows.get(key) ?? Object.assign(Object.create(null), { run: line.run ?? "", [place]: at[i], ...spent(i) });
      row[`${name}${ending}`] = value;
      rows.set(key, row);
    });
  }
  const order = [...new Set(chart.lines.map((line) => line.run ?? ""))];
  const sorted = [...rows.values()].sort((a, b) => order.indexOf(a.run) - order.indexOf(b.run) || a[place] - b[place]);
  const heads = ["run", place, ...(sorted.some((row) => row.tokens !== undefined) ? ["tokens"] : []), ...(sorted.some((row) => row.seconds !== undefined) ? ["seconds"] : []), ...columns];
  return csvText([heads, ...sorted.map((row) => heads.map((head) => row[head]))]);
}

// How many tokens and seconds had been spent by each of these steps.
function spentOf(line, steps) {
  if (!line.sources) return () => ({});
  const [tokens, seconds] = ["tokens", "time"].map((axis) => placesOfSeveral(line.sources, steps, axis));
  return (i) => ({ ...(tokens && { tokens: tokens[i] }), ...(seconds && { seconds: seconds[i] }) });
}

// In the colours of the light theme, whichever is on: it is for paper. Nothing is painted in between.
export function saveSvg(chart) {
  const root = document.documentElement, { theme } = root.dataset;
  root.dataset.theme = "light";
  try {
    chart.rebuild();
    saveText(fileName(chart, "svg"), "image/svg+xml", svgOf(chart, chart.across));
  } finally {
    root.dataset.theme = theme;
    chart.draw();
  }
}
