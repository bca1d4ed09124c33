// One rollout with its tokens coloured, and the same prompt across steps.
import { isTemplateToken, saidIn, turnsOf } from "./chat.js";
import { el, printable, segments } from "./dom.js";
import { num, whole } from "./format.js";
import { heat, MEASURES, measure, scaleOf } from "./heat.js";
import { inspector } from "./inspector.js";
import { source } from "./source.js";

// Tokens laid out together; blocks out of sight cost nothing. One ends with a line, where there are lines.
const BLOCK = 150, LONGEST_BLOCK = 400;
const COMPARED = 12;

const state = { measure: "log_ratio", across: false, shape: "chat" };

const withBreaks = (text) => printable(text).replaceAll("\t", "⇥\t").replaceAll("\n", "↵\n") || "∅";

// Tokens as spans. Text is text: the only thing a response decides here is what the spans say. `roles` names the
// role of a turn that begins at a token.
function tokenFlow(rollout, which, scale, label, roles = new Map()) {
  const flow = el("div", { class: "flow", role: "group", tabIndex: 0, "aria-label": label });
  let block, count = LONGEST_BLOCK, before = "";
  for (let i = 0; i < rollout.tokens.length; i += 1, count += 1) {
    const text = rollout.tokens[i];
    if (roles.has(i)) { flow.append(el("div", { class: "role" }, roles.get(i))); count = LONGEST_BLOCK; }
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

function legend(which, scale) {
  const low = which.diverging ? num(-scale, 2) : which.flat ? "" : "0";
  return el("div", { class: "legend", "aria-hidden": "true" }, el("span", {}, which.ends[0], low && el("small", {}, low)),
    el("i", { class: which.diverging ? "ramp diverging" : "ramp" }), el("span", {}, !which.flat && el("small", {}, num(scale, 2)), which.ends[1]));
}

function facts(rollout) {
  const reward = rollout.reward;
  const items = [
    ["step", whole(rollout.step)], ["policy", rollout.policy_version < 0 ? "none: the teacher's or a data set's words" : `after ${rollout.policy_version} updates`], ["teacher", rollout.teacher], ["T", num(rollout.temperature, 2)],
    ["tokens", rollout.sampled_tokens === undefined ? null : whole(rollout.sampled_tokens)], ["mean KL", num(rollout.reverse_kl_mean ?? rollout.log_ratio_mean)],
    ["segment", rollout.segment ? `${rollout.segment + 1}${rollout.segment_reason ? `: ${rollout.segment_reason}` : ""}` : null],
    ["reward", reward === null || reward === undefined ? null : num(reward, 2)], ["advantage", rollout.advantage ? num(rollout.advantage, 2) : null],
    ["answer", rollout.answer], ["task", rollout.task],
  ];
  return el("dl", { class: "facts" }, items.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    rollout.finish === "length" && el("div", { class: "flag" }, "cut at max_tokens"));
}

function rawTokens(main) {
  return el("div", { class: "raw" }, main.prompt_tokens.map((text, i) => (
    el("span", { class: isTemplateToken(text.trim()) ? "p special" : "p", title: `token ${main.prompt_ids?.[i] ?? "?"} · position ${i} of the prompt` }, withBreaks(text)))));
}

function chatOf(main) {
  const tokens = main.prompt_tokens, turns = turnsOf(tokens);
  if (!turns.some((turn) => turn.role)) return el("pre", {}, main.prompt_text || tokens.join(""));
  const last = turns[turns.length - 1];
  const shown = turns.filter((turn) => turn !== last || turn.end < tokens.length || saidIn(tokens, turn));  // the last one may be the response's header
  const split = shown.some((turn) => saidIn(tokens, turn).includes("\ufffd"));
  return el("div", { class: "chat" }, shown.map((turn) => el("section", { class: "turn" }, el("h4", {}, turn.role || "no role"),
    saidIn(tokens, turn) ? el("pre", {}, saidIn(tokens, turn)) : el("p", { class: "hint" }, "empty"))),
    split && el("p", { class: "hint" }, "\ufffd stands for a part of a character that is split over several tokens."));
}

// The turns of the response, by place in it: as they were recorded where there are several, else by the template's tokens.
// The first of those began with the prompt's last header, at a place below 0.
function responseTurns(main) {
  const recorded = main.turns ?? [];
  if (recorded.length > 1) return recorded.map((turn) => ({ ...turn, role: labelOf(turn) }));
  const before = main.prompt_tokens?.length ?? 0;
  return turnsOf([...(main.prompt_tokens ?? []), ...main.tokens]).filter((turn) => turn.role && turn.end > before)
    .map((turn) => ({ ...turn, start: turn.start - before }));
}

const labelOf = ({ role, reward, finish }) => [role, finish === "length" && "cut at its limit", reward !== null && reward !== undefined && `reward ${num(reward, 2)}`].filter(Boolean).join(", ");

export class Detail {
  // onstep(row): another step of the same prompt was chosen
  constructor(onstep) {
    this.onstep = onstep;
    this.node = el("article", { class: "card detail", "aria-label": "Rollout" }, el("p", { class: "blank" }, "Choose a rollout."));
  }

  async show(run, row, versions, token) {
    const asked = this.asked = {};
    Object.assign(this, { run, row, versions });
    let rollouts;
    try {
      const wanted = state.across && versions.length > 1 ? evenly(versions, COMPARED, row) : [row];
      rollouts = await Promise.all(wanted.map((r) => source.rollout(run.id, r.id)));
    } catch (error) {
      if (asked === this.asked) this.node.replaceChildren(el("p", { class: "blank" }, error.message));
      return;
    }
    if (asked !== this.asked) return;  // another one was chosen meanwhile
    this.rollouts = rollouts;
    this.draw(token);
  }

  draw(token) {
    inspector.hide();
    this.node.dataset.id = this.row.id;
    const main = this.rollouts.find((r) => r.id === this.row.id) ?? this.rollouts[0];
    const known = MEASURES.filter((m) => main.tokens?.some((_, i) => m.at(main, i) !== null));
    if (!known.length) {
      this.node.replaceChildren(el("p", { class: "blank" }, "This file has no tokens for this rollout: it was written by another version."), el("pre", {}, main.response_text ?? ""));
      return;
    }
    const which = known.find((m) => m.id === state.measure) ?? known[0];
    const scale = scaleOf(which, this.rollouts);
    const pick = segments("Colour tokens by", known.map((m) => [m.id, m.label]), which.id, (id) => { state.measure = id; this.draw(); this.node.querySelector(`[data-value="${id}"]`)?.focus(); });
    this.node.replaceChildren(
      el("header", {}, el("h2", {}, main.prompt_id ?? "rollout"), el("span", { class: "tag" }, main.source === "watch" ? "watched" : "training"), this.stepStrip()),
      facts(main),
      this.prompt(main),
      el("div", { class: "measures" }, pick, which.empty && this.rollouts.every((r) => r.tokens.every((_, i) => !which.at(r, i)))
        ? el("p", { class: "hint" }, which.empty) : legend(which, scale)),
      ...(state.across && this.rollouts.length > 1 ? this.drawAcross(which, scale) : this.drawOne(main, which, scale, token)));
  }

  // The turns of the prompt as its template's tokens divide it, or those tokens themselves.
  prompt(main) {
    const tokens = main.prompt_tokens ?? [];
    if (!tokens.length) return el("section", { class: "prompt" }, el("h3", {}, "Prompt"), el("pre", {}, main.prompt_text ?? ""));
    const pick = segments("Show prompt and response as", [["chat", "Chat"], ["raw", "Raw tokens"]], state.shape, (shape) => { state.shape = shape; this.draw(); this.node.querySelector(`[data-value="${shape}"]`)?.focus(); });
    return el("section", { class: "prompt" }, el("div", { class: "measures" }, el("h3", {}, "Prompt"), pick), state.shape === "raw" ? rawTokens(main) : chatOf(main));
  }

  drawOne(main, which, scale, token) {
    const roles = new Map(state.shape === "raw" ? [] : responseTurns(main).map((turn) => [Math.max(0, turn.start), turn.role]));
    const flow = tokenFlow(main, which, scale, "Response, token by token. Arrow keys move along the tokens.", roles);
    if (token !== undefined) requestAnimationFrame(() => { flow.focus({ preventScroll: true }); flow.point(token, true); });
    return [flow];
  }

  drawAcross(which, scale) {
    return this.rollouts.map((r) => el("section", { class: "version" },
      el("h3", {}, el("b", {}, `step ${r.step}`), el("span", {}, `KL ${num(r.reverse_kl_mean ?? r.log_ratio_mean)}`), grade(r)),
      tokenFlow(r, which, scale, `Response at step ${r.step}`)));
  }

  stepStrip() {
    if (this.versions.length < 2) return null;
    const at = this.versions.findIndex((row) => row.id === this.row.id);
    const go = (by) => { const next = this.versions[at + by]; if (next) this.onstep(next); };
    const across = el("button", { type: "button", class: "quiet", "aria-pressed": state.across, onclick: () => { state.across = !state.across; this.show(this.run, this.row, this.versions); } }, "Compare steps");
    const slider = el("input", { type: "range", min: 0, max: this.versions.length - 1, step: 1, "aria-label": "Step of the same prompt", oninput: () => this.onstep(this.versions[slider.valueAsNumber]) });
    slider.value = at;
    return el("div", { class: "strip" }, across,
      el("button", { type: "button", class: "quiet", title: "earlier step of this prompt", "aria-label": "Earlier step", disabled: at <= 0, onclick: () => go(-1) }, "‹"),
      slider, el("span", { class: "at", vars: { "--digits": String(this.versions[this.versions.length - 1].step).length } }, `step ${this.row.step}`),
      el("button", { type: "button", class: "quiet", title: "later step of this prompt", "aria-label": "Later step", disabled: at >= this.versions.length - 1, onclick: () => go(1) }, "›"));
  }
}

export function grade(row) {
  if (row.reward === null || row.reward === undefined) return el("span", { class: "grade" }, "");
  const right = row.reward >= 1, sign = { 0: "✗", 1: "✓" }[row.reward] ?? num(row.reward, 2);
  return el("span", { class: `grade ${right ? "right" : "wrong"}`, title: `reward ${row.reward}` }, sign, el("span", { class: "hidden" }, right ? " right" : " wrong"));
}

// Some of the rows at even distances, the first, the last and the present one among them.
function evenly(rows, count, present) {
  if (rows.length <= count) return rows;
  const chosen = new Set(Array.from({ length: count }, (_, i) => rows[Math.round((i * (rows.length - 1)) / (count - 1))]));
  chosen.add(present);
  return rows.filter((row) => chosen.has(row));
}

