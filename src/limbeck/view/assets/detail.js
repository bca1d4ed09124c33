// One rollout: its conversation, its tokens coloured, and the same prompt at other steps and in other runs.
import { address } from "./address.js";
import { comparison, otherRuns } from "./compare.js";
import { headsOf, promptChat, rawTokens, responseChat } from "./conversation.js";
import { el, segments } from "./dom.js";
import { legend, tokenFlow } from "./flow.js";
import { num, whole } from "./format.js";
import { grade } from "./grade.js";
import { MEASURES, scaleOf } from "./heat.js";
import { inspector } from "./inspector.js";
import { source } from "./source.js";
import { store } from "./store.js";

const COMPARED = 12;
const MOST_SIBLINGS = 60;
const SHAPES = [["chat", "Chat"], ["tokens", "Tokens"], ["raw", "Raw tokens"]];

function facts(rollout) {
  const reward = rollout.reward;
  const items = [
    ["step", whole(rollout.step)], ["policy", rollout.policy_version < 0 ? "none: the teacher's or a data set's words" : `after ${rollout.policy_version} updates`], ["teacher", rollout.teacher], ["T", num(rollout.temperature, 2)],
    ["tokens", rollout.sampled_tokens === undefined ? null : whole(rollout.sampled_tokens)], ["mean KL", num(rollout.reverse_kl_mean ?? rollout.log_ratio_mean)],
    ["segment", rollout.segment ? `${rollout.segment + 1}${rollout.segment_reason ? `: ${rollout.segment_reason}` : ""}` : null],
    ["reward", reward === null || reward === undefined ? null : num(reward, 2)], ["advantage", rollout.advantage ? num(rollout.advantage, 2) : null],
    ["right answer", rollout.answer], ["task", rollout.task],
  ];
  return el("dl", { class: "facts" }, items.filter(([, value]) => value !== null && value !== undefined && value !== "").map(([name, value]) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, value))),
    rollout.finish === "length" && el("div", { class: "flag" }, "cut at max_tokens"));
}

export class Detail {
  // onstep(row): another rollout of the same prompt was chosen
  constructor(onstep) {
    this.onstep = onstep;
    this.node = el("article", { class: "card detail", "aria-label": "Rollout" }, el("p", { class: "blank" }, "Choose a rollout."));
  }

  get shape() { return address.get("samples.shape", "tokens"); }
  get compared() { return address.get("samples.compare", ""); }

  // `versions`: the same prompt and sample at every step; `siblings`: all rollouts of the prompt.
  async show(run, row, versions, siblings, token) {
    const asked = this.asked = {};
    Object.assign(this, { run, row, versions, siblings });
    let rollouts;
    try {
      const others = this.compared === "runs" ? await otherRuns(run, row) : [];
      const wanted = others.length ? [[run, row], ...others] : this.compared === "steps" && versions.length > 1 ? evenly(versions, COMPARED, row).map((r) => [run, r]) : [[run, row]];
      rollouts = await Promise.all(wanted.map(async ([of, r]) => ({ ...await source.rollout(of.id, r.id), run: of })));
    } catch (error) {
      if (asked === this.asked) this.node.replaceChildren(el("p", { class: "blank" }, error.message));
      return;
    }
    if (asked !== this.asked) return;  // another one was chosen meanwhile
    this.rollouts = rollouts;
    this.draw(token);
  }

  again(changes) {
    address.set(changes);
    this.show(this.run, this.row, this.versions, this.siblings);
  }

  draw(token) {
    inspector.hide();
    this.node.dataset.id = this.row.id;
    const main = this.rollouts.find((r) => r.id === this.row.id && r.run === this.run) ?? this.rollouts[0];
    const known = MEASURES.filter((m) => main.tokens?.some((_, i) => m.at(main, i) !== null));
    if (!known.length) {
      this.node.replaceChildren(el("p", { class: "blank" }, "This file has no tokens for this rollout: it was written by another version."), el("pre", {}, main.response_text ?? ""));
      return;
    }
    this.node.replaceChildren(
      el("header", {}, el("h2", {}, main.prompt_id ?? "rollout"), el("span", { class: "tag" }, main.source === "watch" ? "watched" : "training"), this.strip()),
      this.siblingStrip(), facts(main), this.prompt(main), ...this.response(main, known, token));
  }

  pick(label, options, value, key) {
    return segments(label, options, value, (chosen) => { address.set({ [key]: chosen }); this.draw(); this.node.querySelector(`[data-value="${chosen}"]`)?.focus(); });
  }

  // The turns of the prompt as its template's tokens divide it, or those tokens themselves.
  prompt(main) {
    const shapes = main.prompt_tokens?.length ? SHAPES : SHAPES.slice(0, 2);
    const pick = this.compared === "" || this.rollouts.length < 2 ? this.pick("Show as", shapes, this.shape, "samples.shape") : "";
    const raw = this.shape === "raw" && shapes === SHAPES;
    return el("section", { class: "prompt" }, el("div", { class: "measures" }, el("h3", {}, raw ? "Tokens of the prompt" : "Conversation"), pick), raw ? rawTokens(main) : promptChat(main));
  }

  response(main, known, token) {
    if (this.rollouts.length > 1) return comparison(this.rollouts, this.compared, this.tools(known, this.rollouts), (key, value) => { address.set({ [key]: value }); this.draw(); });
    const lone = this.compared === "runs" ? [el("p", { class: "hint lone" }, "No other run has recorded this prompt. Runs that share it are compared here: a task that makes its own prompts makes others under another seed.")] : [];
    if (this.shape === "chat") return [responseChat(main), ...lone];
    const { which, scale, bar } = this.tools(known, [main])();
    const flow = tokenFlow(main, which, scale, "Response, token by token. Arrow keys move along the tokens.", this.shape === "raw" ? undefined : headsOf(main));
    if (token !== undefined) requestAnimationFrame(() => { flow.focus({ preventScroll: true }); flow.point(token, true); });
    return [bar, flow, ...lone];
  }

  // What colours the tokens, made where it is asked for: how they are coloured, and the bar to choose it with.
  tools(known, rollouts) {
    return () => {
      const which = known.find((m) => m.id === address.get("samples.colour", "log_ratio")) ?? known[0], scale = scaleOf(which, rollouts);
      const empty = which.empty && rollouts.every((r) => r.tokens.every((_, i) => !which.at(r, i)));
      const bar = el("div", { class: "measures" }, this.pick("Colour tokens by", known.map((m) => [m.id, m.label]), which.id, "samples.colour"),
        empty ? el("p", { class: "hint" }, which.empty) : legend(which, scale));
      return { which, scale, bar };
    };
  }

  strip() {
    const several = this.versions.length > 1, runs = store.runs.length > 1;
    const toggle = (what, text) => el("button", { type: "button", class: "quiet", "aria-pressed": this.compared === what, onclick: () => this.again({ "samples.compare": this.compared === what ? null : what }) }, text);
    return el("div", { class: "strip" }, runs && toggle("runs", "Compare runs"), several && toggle("steps", "Compare steps"), several && this.stepper());
  }

  stepper() {
    const { versions } = this, at = versions.findIndex((row) => row.id === this.row.id);
    const go = (by) => { const next = versions[at + by]; if (next) this.onstep(next); };
    const slider = el("input", { type: "range", min: 0, max: versions.length - 1, step: 1, "aria-label": "Step of the same prompt", oninput: () => this.onstep(versions[slider.valueAsNumber]) });
    slider.value = at;
    return el("div", { class: "stepper" },
      el("button", { type: "button", class: "quiet", title: "earlier step of this prompt", "aria-label": "Earlier step", disabled: at <= 0, onclick: () => go(-1) }, "‹"),
      slider, el("span", { class: "at", vars: { "--digits": String(versions.at(-1).step).length } }, `step ${this.row.step}`),
      el("button", { type: "button", class: "quiet", title: "later step of this prompt", "aria-label": "Later step", disabled: at >= versions.length - 1, onclick: () => go(1) }, "›"));
  }

  // Every rollout of the prompt, where the slider does not reach them all.
  siblingStrip() {
    const { siblings, versions, row } = this;
    if (siblings.length <= versions.length) return "";
    const samples = new Set(siblings.map((r) => r.sample)).size > 1, segmented = siblings.some((r) => r.segment);
    const shown = siblings.slice(0, MOST_SIBLINGS);
    if (!shown.includes(row)) shown.push(row);
    return el("nav", { class: "siblings", "aria-label": "Rollouts of this prompt" }, el("span", { class: "hint" }, `${siblings.length} rollouts of this prompt`),
      shown.map((r) => el("button", { type: "button", class: "sibling", "aria-current": r === row ? "true" : null, title: `step ${r.step}, sample ${(r.sample ?? 0) + 1}${segmented ? `, segment ${(r.segment ?? 0) + 1}` : ""}, ${r.source === "watch" ? "watched" : "training"}`, onclick: () => this.onstep(r) },
        `${r.step}${samples ? `·${(r.sample ?? 0) + 1}` : ""}${segmented ? `/${(r.segment ?? 0) + 1}` : ""}`, grade(r))),
      siblings.length > shown.length && el("span", { class: "hint" }, `and ${siblings.length - shown.length} more`));
  }
}

// Some of the rows at even distances, the first, the last and the present one among them.
function evenly(rows, count, present) {
  if (rows.length <= count) return rows;
  const chosen = new Set(Array.from({ length: count }, (_, i) => rows[Math.round((i * (rows.length - 1)) / (count - 1))]));
  chosen.add(present);
  return rows.filter((row) => chosen.has(row));
}
