// What is drawn on a chart's canvas over uPlot's lines: error bars, alarms, and where values are beyond the axis.
import { colour } from "./dom.js";
import { known, spans } from "./series.js";

function onCanvas(u, paint) {
  const { ctx, bbox } = u;
  ctx.save();
  ctx.setLineDash([]);
  paint(ctx, bbox, devicePixelRatio);
  ctx.restore();
}

// Evaluations of several runs at the same step stand beside each other, around it; one that is alone stands at it.
// line -> index -> by how many pixels the point is moved, where one of the x axis is `scale` pixels.
const APART = 6;
export function dodged(lines, scale) {
  const shifts = new Map(), at = new Map();  // place -> the points there
  for (const line of lines.filter((one) => one.points)) {
    shifts.set(line, line.x.map(() => 0));
    line.x.forEach((x, i) => { if (known(x) && known(line.columns[0][i])) at.set(x, [...(at.get(x) ?? []), [line, i]]); });
  }
  const places = [...at.keys()].sort((a, b) => a - b);
  places.forEach((x, place) => {
    const points = at.get(x), gap = Math.min(x - (places[place - 1] ?? -Infinity), (places[place + 1] ?? Infinity) - x);
    const apart = Math.min(APART, (0.8 * scale * gap) / points.length);
    points.forEach(([line, i], rank) => { shifts.get(line)[i] = (rank - (points.length - 1) / 2) * apart; });
  });
  return shifts;
}

// Points with error bars, each moved by its shift in pixels.
export function drawPoints(u, lines, shifts) {
  onCanvas(u, (ctx, bbox, ratio) => {
    const cap = 3 * ratio, beyond = Math.max(2 * cap, ...[...shifts.values()].flat().map((shift) => Math.abs(shift) * ratio + cap));
    ctx.beginPath();
    ctx.rect(bbox.left - beyond, bbox.top - cap - ratio, bbox.width + 2 * beyond, bbox.height + 2 * (cap + ratio));
    ctx.clip();
    let series = 1;
    for (const line of lines) {
      const { alpha } = u.series[series];
      series += line.columns.length;
      if (!line.points) continue;
      ctx.globalAlpha = alpha ?? 1;
      ctx.strokeStyle = line.colour;
      ctx.fillStyle = colour("--card");
      const yOf = (value) => Math.max(bbox.top, Math.min(bbox.top + bbox.height, u.scales.y.distr === 3 && !(value > 0) ? Infinity : u.valToPos(value, "y", true)));
      line.x.forEach((place, i) => {
        const x = u.valToPos(place, "x", true) + (shifts.get(line)?.[i] ?? 0) * ratio, [value, low, high] = line.columns.map((column) => column[i]);
        if (!known(value) || x < bbox.left - beyond || x > bbox.left + bbox.width + beyond) return;
        ctx.beginPath();
        if (known(low) && known(high)) for (const [x0, y0, x1, y1] of [[x, yOf(low), x, yOf(high)], [x - cap, yOf(low), x + cap, yOf(low)], [x - cap, yOf(high), x + cap, yOf(high)]]) { ctx.moveTo(x0, y0); ctx.lineTo(x1, y1); }
        ctx.lineWidth = 1.25 * ratio;
        ctx.stroke();
        if (u.scales.y.distr === 3 && !(value > 0)) return;
        ctx.beginPath();
        ctx.arc(x, u.valToPos(value, "y", true), 2.7 * ratio, 0, 2 * Math.PI);
        ctx.lineWidth = 1.75 * ratio;
        ctx.fill();
        ctx.stroke();
      });
    }
  });
}

// A triangle on the time axis; alarms that follow each other closely are one, with a bar to the last.
export function drawAlarms(u, alarms) {
  onCanvas(u, (ctx, bbox, ratio) => {
    ctx.strokeStyle = ctx.fillStyle = colour("--alarm");
    ctx.lineWidth = ratio;
    const size = 4.5 * ratio, foot = bbox.top + bbox.height;
    const seen = alarms.map((alarm) => u.valToPos(alarm.x, "x", true)).filter((x) => x >= bbox.left - 1 && x <= bbox.left + bbox.width + 1);
    for (const [from, to] of spans(seen, 2.2 * size)) {
      ctx.globalAlpha = 0.1;
      ctx.fillRect(from, bbox.top, to - from, bbox.height);
      ctx.globalAlpha = 0.35;
      ctx.fillRect(from - ratio / 2, bbox.top, ratio, bbox.height);
      ctx.globalAlpha = 1;
      ctx.fillRect(from, foot - 2.5 * ratio, to - from, 2.5 * ratio);
      triangle(ctx, from, foot, size, -1);
    }
  });
}

// An arrow at the edge, in the line's colour, where a value is beyond it.
export function drawClipped(u, clipped) {
  onCanvas(u, (ctx, bbox, ratio) => {
    for (const { line, i, above } of clipped) {
      ctx.fillStyle = line.colour;
      triangle(ctx, u.valToPos(line.x[i], "x", true), above ? bbox.top : bbox.top + bbox.height, 4.5 * ratio, above ? 1 : -1, true);
    }
  });
}

// Its base at `y` and its tip into the chart, or the other way round for an arrow out of it.
function triangle(ctx, x, y, size, down, out = false) {
  const [base, tip] = out ? [y + down * 2 * size, y] : [y, y + down * 2 * size];
  ctx.beginPath();
  ctx.moveTo(x, tip);
  ctx.lineTo(x + size, base);
  ctx.lineTo(x - size, base);
  ctx.fill();
}
