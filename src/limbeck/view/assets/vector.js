// A chart as SVG for a paper: drawn anew from the numbers on the page's own scales, with axes, units and a legend.
import { logTicks, tickTexts, ticks } from "./axes.js";
import { colour } from "./dom.js";
import { align, dotsOf, gapsOf, known, spans, thin } from "./series.js";

const WIDTH = 640, HEIGHT = 360, FAMILY = "Inter, Helvetica, Arial, sans-serif";
const round = (value) => Math.round(value * 100) / 100;

// A scale: where a value is, in points of the picture.
function pictureScale([low, high], [from, to], log) {
  const size = log ? Math.log : (value) => value, [start, end] = [size(low), size(high)];
  return (value) => round(from + ((size(value) - start) / (end - start || 1)) * (to - from));
}

class Drawing {
  constructor(width, height) {
    this.document = document.implementation.createDocument("http://www.w3.org/2000/svg", "svg", null);
    this.root = this.document.documentElement;
    for (const [name, value] of Object.entries({ width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FAMILY, "font-size": 12 })) this.root.setAttribute(name, value);
    this.at = this.root;
  }
  add(tag, attributes, text, parent = this.at) {
    const node = this.document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== undefined && value !== null) node.setAttribute(name, value);
    if (text !== undefined) node.textContent = text;
    parent.append(node);
    return node;
  }
  toString() { return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(this.document)}\n`; }
}

export function svgOf(chart, across) {
  const lines = chart.lines, [xs, columns] = align(lines);
  chart.data = [xs, ...columns.flat()];
  const { from, to, shifts } = chart.spread(WIDTH - 80), wide = [from, to], range = chart.yRange(chart.visible);
  const labelled = lines.filter((line) => line.label), rows = legendRows(labelled);
  const height = HEIGHT + rows.length * 18, box = { left: 66, right: WIDTH - 14, top: 40 + rows.length * 18, bottom: height - 44 };
  const x = pictureScale(wide, [box.left, box.right]), y = pictureScale(range, [box.bottom, box.top], chart.logarithmic);
  const drawing = new Drawing(WIDTH, height);
  drawing.add("title", {}, chart.title);
  drawing.add("rect", { width: WIDTH, height, fill: "#ffffff" });
  drawing.add("text", { x: 14, y: 22, "font-size": 14, "font-weight": 600, fill: "#11181f" }, chart.title);
  drawLegend(drawing, rows);
  drawAxes(drawing, chart, { x, y, wide, range, box, across });
  const clip = drawing.add("clipPath", { id: "plot" });
  drawing.add("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }, undefined, clip);
  drawing.at = drawing.add("g", { "clip-path": "url(#plot)" });
  drawLines(drawing, chart, { x, y, wide, box });
  drawing.at = drawing.root;
  for (const line of lines.filter((one) => one.points)) drawMarkers(drawing, line, { moved: shifts.get(line), x, y, wide, range, box });
  for (const { line, i, above } of chart.clipped) drawing.add("path", { class: "clipped", fill: line.colour, d: arrow(x(line.x[i]), above ? box.top : box.bottom, above ? 1 : -1) });
  const seen = chart.alarms.filter((alarm) => alarm.x >= wide[0] && alarm.x <= wide[1]), alarms = seen.map((alarm) => x(alarm.x)), whose = [...new Set(seen.map((alarm) => alarm.run).filter(Boolean))];
  for (const [start, end] of spans(alarms, 10)) drawing.add("path", { class: "alarm", fill: colour("--alarm"), d: `${arrow(start, box.bottom - 8, 1)}${start < end ? `M${start} ${box.bottom}H${end}v-2.5H${start}z` : ""}` });
  if (alarms.length) drawing.add("text", { x: box.right, y: 22, "text-anchor": "end", fill: colour("--alarm") }, `▲ alarms${whose.length ? ` of ${whose.length > 2 ? `${whose.length} runs` : whose.join(", ")}` : ""}`);
  return drawing.toString();
}

const arrow = (x, y, down) => `M${x} ${y}l4 ${down * 8}h-8z`;
const legendName = (line) => [line.owner, line.label].filter(Boolean).join(", ");
const widthOf = (line) => 34 + 6.4 * legendName(line).length;

// As many entries in a row as there is room for.
function legendRows(lines) {
  const rows = [[]];
  for (const line of lines) {
    const row = rows[rows.length - 1];
    if (row.length && row.reduce((total, one) => total + widthOf(one), 0) + widthOf(line) > WIDTH - 28) rows.push([line]);
    else row.push(line);
  }
  return rows;
}

function drawLegend(drawing, rows) {
  rows.forEach((row, i) => {
    let left = 14;
    for (const line of row) {
      const middle = 40 + i * 18;
      if (line.points) drawing.add("circle", { cx: left + 9, cy: middle, r: 3, fill: "#ffffff", stroke: line.colour, "stroke-width": 1.75 });
      else drawing.add("line", { x1: left, x2: left + 18, y1: middle, y2: middle, ...strokeOf(line), ...(line.fillTo !== undefined || line.width === 0 ? { "stroke-width": 8 } : {}) });
      drawing.add("text", { x: left + 24, y: middle + 4, fill: "#27323d" }, legendName(line));
      left += widthOf(line);
    }
  });
}

const strokeOf = (line) => ({ stroke: line.colour, "stroke-width": line.width || 1.75, "stroke-dasharray": line.dash?.join(" "), "stroke-opacity": (line.alpha ?? 1) === 1 ? undefined : line.alpha });

function drawAxes(drawing, chart, { x, y, wide, range, box, across }) {
  const [down, apart] = chart.logarithmic ? [logTicks(...range), 0] : ticks(...range, 6), [along] = ticks(...wide, 7, across.incrs);
  const label = { fill: "#4a5663" };
  const texts = tickTexts(chart.format, down, apart);
  down.forEach((value, i) => {
    drawing.add("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value), stroke: "#e1e5ea" });
    drawing.add("text", { x: box.left - 8, y: y(value) + 4, "text-anchor": "end", ...label }, texts[i]);
  });
  for (const value of along.filter((one) => across.tick(one))) {
    drawing.add("line", { x1: x(value), x2: x(value), y1: box.bottom, y2: box.bottom + 4, stroke: "#8893a0" });
    drawing.add("text", { x: x(value), y: box.bottom + 18, "text-anchor": "middle", ...label }, across.tick(value));
  }
  drawing.add("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, stroke: "#8893a0" });
  drawing.add("text", { x: (box.left + box.right) / 2, y: box.bottom + 36, "text-anchor": "middle", ...label }, across.label);
  const middle = (box.top + box.bottom) / 2;
  drawing.add("text", { x: 16, y: middle, transform: `rotate(-90 16 ${middle})`, "text-anchor": "middle", ...label }, chart.unit.textContent);
}

// One point alone is a dot, which is no part of a line.
const path = (points) => (points.length === 1 ? "" : points.map((point, i) => `${i ? "L" : "M"}${point.join(" ")}`).join(""));
const area = (above, below) => `${path([...thin(above, 1200), ...thin(below, 1200).reverse()])}Z`;

function drawLines(drawing, chart, { x, y, wide, box }) {
  const usable = (value) => known(value) && (!chart.logarithmic || value > 0);
  // With `floor`, what a log axis cannot show stands at its foot. The neighbours of what is seen lead out of the picture.
  const pointsOf = (line, column, { floor = false, from = 0, to = Infinity } = {}) => line.x.flatMap((place, i) => {
    if (i < from || i > to || !known(column[i]) || line.x[i + 1] < wide[0] || line.x[i - 1] > wide[1]) return [];
    return usable(column[i]) ? [[x(place), y(column[i])]] : floor ? [[x(place), box.bottom]] : [];
  });
  chart.lines.forEach((line, index) => {
    const pieces = piecesOf(line);
    for (const part of line.columns.length === 3 && !line.points ? pieces : []) {
      const [above, below] = [pointsOf(line, line.columns[2], part), pointsOf(line, line.columns[1], { ...part, floor: true })];
      if (above.length > 1) drawing.add("path", { class: "band", d: area(above, below), fill: line.colour, "fill-opacity": 0.16 });
    }
    if (chart.stacked) drawLayer(drawing, line, index ? pointsOf(chart.lines[index - 1], chart.lines[index - 1].columns[0]) : null, pointsOf(line, line.columns[0]), box);
    else if (!line.points) drawing.add("path", { class: "line", d: pieces.map((part) => path(thin(pointsOf(line, line.columns[0], part), 1200))).join(""), fill: "none", "stroke-linejoin": "round", ...strokeOf(line) });
    for (const i of chart.stacked ? [] : dotsOf(line)) if (usable(line.columns[0][i])) drawing.add("circle", { class: "dot", cx: x(line.x[i]), cy: y(line.columns[0][i]), r: 3, fill: line.colour, "fill-opacity": line.alpha });
  });
}

// The parts of a line between its gaps, as the indices where they begin and end.
function piecesOf(line) {
  const gaps = gapsOf(line);
  return [{ from: 0, to: gaps.length ? gaps[0][0] ?? -1 : Infinity }, ...gaps.map(([, from], i) => ({ from: from ?? Infinity, to: gaps[i + 1]?.[0] }))].map(({ from, to }) => ({ from, to: to ?? Infinity }));
}

// The area between a line of a stack and the one below it.
function drawLayer(drawing, line, below, points, box) {
  if (!points.length) return;
  const floor = below ?? [[points[0][0], box.bottom], [points[points.length - 1][0], box.bottom]];
  drawing.add("path", { d: area(points, floor), fill: line.colour, "fill-opacity": 0.7 });
}

// Not cut at the edges of the plot: a point at the first step is whole.
function drawMarkers(drawing, line, { moved, x, y, wide, range, box }) {
  const usable = (value) => known(value) && value >= range[0] && value <= range[1];
  line.x.forEach((place, i) => {
    if (place < wide[0] || place > wide[1] || !usable(line.columns[0][i])) return;
    const at = round(x(place) + moved[i]), [low, high] = [line.columns[1]?.[i], line.columns[2]?.[i]];
    if (known(high) && known(low)) {
      const foot = usable(low) ? y(low) : box.bottom, top = usable(high) ? y(high) : box.top;
      drawing.add("path", { class: "bar", d: `M${at} ${foot}V${top}M${at - 3} ${foot}h6M${at - 3} ${top}h6`, stroke: line.colour, "stroke-width": 1.25 });
    }
    drawing.add("circle", { class: "point", cx: at, cy: y(line.columns[0][i]), r: 3, fill: "#ffffff", stroke: line.colour, "stroke-width": 1.75 });
  });
}
