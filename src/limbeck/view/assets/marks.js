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

export function drawErrorBars(u, lines) {
  onCanvas(u, (ctx, bbox, ratio) => {
    const cap = 3 * ratio;
    ctx.beginPath();
    ctx.rect(bbox.left - 2 * cap, bbox.top, bbox.width + 4 * cap, bbox.height);
    ctx.clip();
    ctx.lineWidth = 1.25 * ratio;
    for (const line of lines.filter((each) => each.points && each.columns.length === 3)) {
      ctx.strokeStyle = line.colour;
      ctx.beginPath();
      line.x.forEach((place, i) => {
        const [low, high] = [line.columns[1][i], line.columns[2][i]];
        if (!known(low) || !known(high)) return;
        const x = u.valToPos(place, "x", true), [from, to] = [low, high].map((value) => (
          u.scales.y.distr === 3 && !(value > 0) ? bbox.top + bbox.height : u.valToPos(value, "y", true)));
        for (const [x0, y0, x1, y1] of [[x, from, x, to], [x - cap, from, x + cap, from], [x - cap, to, x + cap, to]]) { ctx.moveTo(x0, y0); ctx.lineTo(x1, y1); }
      });
      ctx.stroke();
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
