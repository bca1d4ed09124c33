// Tokens as coloured spans, and what opens at one of them.
import { el, printable } from "./dom.js";
import { num } from "./format.js";
import { heat } from "./heat.js";
import { inspector } from "./inspector.js";

// Tokens laid out together; blocks out of sight cost nothing. One ends with a line, where there are lines.
const BLOCK = 150, LONGEST_BLOCK = 400;

export const withBreaks = (text) => printable(text).replaceAll("\t", "⇥\t").replaceAll("\n", "↵\n") || "∅";

// Tokens as spans. Text is text: the only thing a response decides here is what the spans say. `heads` has what heads the
// turn that begins at a token.
export function tokenFlow(rollout, which, scale, label, heads = new Map()) {
  const flow = el("div", { class: "flow", role: "group", tabIndex: 0, "aria-label": label });
  let block, count = LONGEST_BLOCK, before = "";
  for (let i = 0; i < rollout.tokens.length; i += 1, count += 1) {
    const text = rollout.tokens[i];
    if (heads.has(i)) { flow.append(heads.get(i)); count = LONGEST_BLOCK; }
    if (count >= LONGEST_BLOCK || (count >= BLOCK && before.endsWith("\n"))) {
      flow.append(block = el("div", { class: "block" }));
      count = 0;
    }
    before = text;
    const [hue, strength] = heat(which, which.at(rollout, i), scale);
    const span = el("span", { class: `t ${hue}${rollout.special?.[i] ? " special" : ""}${rollout.trained?.[i] === false ? " untrained" : ""}`, data: { i } }, withBreaks(text));
    if (strength) span.style.setProperty("--s", strength.toFixed(3));
    block.append(span);
  }
  const span = (i) => flow.querySelector(`[data-i="${i}"]`);
  const point = (i, scroll) => {
    const target = span(i);
    if (!target) return;
    flow.querySelector(".at")?.classList.remove("at");
    target.classList.add("at");
    flow.at = i;
    if (scroll) intoSight(target);
    inspector.show(rollout, i, target);
    flow.setAttribute("aria-describedby", "inspector");
  };
  flow.addEventListener("pointerover", (event) => {
    const target = event.target.closest(".t");
    if (target) point(Number(target.dataset.i), false);
  });
  flow.addEventListener("pointerleave", () => { if (document.activeElement !== flow) inspector.hide(); });
  flow.addEventListener("blur", () => inspector.hide());
  flow.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") inspector.hide();
    if (by === undefined) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(rollout.tokens.length - 1, (flow.at ?? -1) + by));
    point(next, true);
    inspector.say(rollout, next);
  });
  flow.point = point;
  return flow;
}

// Blocks that come into sight are laid out a frame later, and may push the token out again: so for some frames.
function intoSight(span, frames = 6) {
  const { top, bottom } = span.getBoundingClientRect();
  if (top < 80 || bottom > innerHeight - 20) span.scrollIntoView({ block: "center" });
  if (frames) requestAnimationFrame(() => intoSight(span, frames - 1));
}

export function legend(which, scale) {
  const low = which.diverging ? num(-scale, 2) : which.flat ? "" : "0";
  return el("div", { class: "legend", "aria-hidden": "true" }, el("span", {}, which.ends[0], low && el("small", {}, low)),
    el("i", { class: which.diverging ? "ramp diverging" : "ramp" }), el("span", {}, !which.flat && el("small", {}, num(scale, 2)), which.ends[1]));
}
