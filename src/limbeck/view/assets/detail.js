// One rollout with its tokens coloured, and the same prompt across steps.
import { el, segments, printable } from "./dom.js";
import { num, whole } from "./format.js";
import { heat, MEASURES, measure, scaleOf } from "./heat.js";
import { inspector } from "./inspector.js";
import { source } from "./source.js";

// Tokens laid out together; blocks out of sight cost nothing. One ends with a line, where there are lines.
const BLOCK = 150, LONGEST_BLOCK = 400;
const COMPARED = 12;

const state = { measure: "log_ratio", across: false };

// Tokens as spans. Text is text: the only thing a response decides here is what the spans say.
function tokenFlow(rollout, which, scale, label) {
  const flow = el("div", { class: "flow", role: "group", tabIndex: 0, "aria-label": label });
  let block, count = LONGEST_BLOCK, before = "";
  for (let i = 0; i < rollout.tokens.length; i += 1, count += 1) {
    const text = rollout.tokens[i];
    if (count >= LONGEST_BLOCK || (count >= BLOCK && before.endsWith("\n"))) {
      flow.append(block = el("div", { class: "block" }));
      count = 0;
    }
    before = text;
    const [hue, strength] = heat(which, which.at(rollout, i), scale);
    const shown = printable(text).replaceAll("\t", "⇥\t").replaceAll("\n", "↵\n");
    const span = el("span", { class: `t ${hue}${rollout.special?.[i] ? " special" : ""}${rollout.trained?.[i] === false ? " untrained" : ""}`, data: { i } }, shown || "∅");
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
    ["step", whole(rollout.step)], ["policy", `after ${rollout.policy_version} updates`], ["teacher", rollout.teacher], ["T", num(rollout.temperature, 2)],
    ["tokens", rollout.sampled_tokens === undefined ? null : whole(rollout.sampled_tokens)], ["mean KL", num(rollout.reverse_kl_mean ?? rollout.log_ratio_mean)],
    ["reward", reward === null || reward === undefined ? null : num(reward, 2)], ["advantage", rollout.advantage ? num(rollout.advantage, 2) : null],
    ["answer", rollout.answer], ["task", rollout.task],
  ];
  return el("dl", { class: "facts" }, items.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    rollout.finish === "length" && el("div", { class: "flag" }, "cut at max_tokens"));
}

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
      el("section", { class: "prompt" }, el("h3", {}, "Prompt"), el("pre", {}, main.prompt_text ?? "")),
      el("div", { class: "measures" }, pick, which.empty && this.rollouts.every((r) => r.tokens.every((_, i) => !which.at(r, i)))
        ? el("p", { class: "hint" }, which.empty) : legend(which, scale)),
      ...(state.across && this.rollouts.length > 1 ? this.drawAcross(which, scale) : this.drawOne(main, which, scale, token)));
  }

  drawOne(main, which, scale, token) {
    const flow = tokenFlow(main, which, scale, "Response, token by token. Arrow keys move along the tokens.");
    if (token !== undefined) requestAnimationFrame(() => { flow.focus({ preventScroll: true }); flow.point(token, true); });
    return [flow];
  }

  drawAcross(which, scale) {
    return this.rollouts.map((r) => el("section", { class: "version" },
      el("h3", {}, el("b", {}, `step ${r.step}`), el("span", {}, `KL ${num(r.reverse_kl_mean ?? r.log_ratio_mean)}`), mark(r)),
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

export function mark(row) {
  if (row.reward === null || row.reward === undefined) return el("span", { class: "mark" }, "");
  const right = row.reward >= 1;
  return el("span", { class: `mark ${right ? "right" : "wrong"}`, title: `reward ${row.reward}` }, right ? "✓" : row.reward > 0 ? num(row.reward, 2) : "✗", el("span", { class: "hidden" }, right ? " right" : " wrong"));
}

// Some of the rows at even distances, the first, the last and the present one among them.
function evenly(rows, count, present) {
  if (rows.length <= count) return rows;
  const chosen = new Set(Array.from({ length: count }, (_, i) => rows[Math.round((i * (rows.length - 1)) / (count - 1))]));
  chosen.add(present);
  return rows.filter((row) => chosen.has(row));
}

