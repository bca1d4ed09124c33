// Where student and teacher disagree, over all of the run: tokens, special tokens, positions, places.
import { address } from "./address.js";
import { Chart } from "./charts.js";
import { choice, colour, el, scroller } from "./dom.js";
import { num, percent, whole } from "./format.js";
import { tokenText } from "./inspector.js";
import { source } from "./source.js";
import { store } from "./store.js";

export class DisagreementPanel {
  constructor() {
    this.span = "all";
    this.head = el("div", { class: "toolbar" });
    this.body = el("div");
    this.node = el("div", { class: "disagreement" }, this.head, this.body);
  }

  async open() {
    const run = store.run(address.get("run"));
    if (!run) { this.body.replaceChildren(el("p", { class: "card blank" }, "There is no run here yet.")); return; }
    const third = Math.floor(run.step / 3);
    const spans = { all: [0, -1], first: [0, third], last: [run.step - third, -1] };
    this.head.replaceChildren(
      store.runs.length > 1 && choice("Run", store.runs.map((r) => [r.id, r.id]), run.id, (id) => { address.set({ run: id }); this.open(); }) || "",
      source.live && choice("Steps", [["all", "all"], ["first", `the first third (to ${third})`], ["last", `the last third (from ${run.step - third})`]], this.span, (value) => { this.span = value; this.open(); }) || "",
      this.about = el("span", { class: "hint" }, "Reading…"));
    const asked = this.asked = {};
    const data = await source.disagreement(run.id, ...spans[this.span]).catch((error) => ({ rollouts: 0, problems: [`The sums cannot be read: ${error.message}.`] }));
    if (asked === this.asked) this.draw(run, data);
  }

  draw(run, data) {
    this.chart?.remove();
    const problems = data.problems.map((text) => el("p", { class: "problem" }, text));
    this.about.textContent = data.rollouts ? `${whole(data.tokens_seen)} tokens of ${whole(data.rollouts)} rollouts, steps ${data.steps[0]} to ${data.steps[1]}; ${data.exact ? "exact KL" : "sampled log-ratio"}, ${num(data.kl_total / data.tokens_seen)} nats a token` : "";
    if (!data.rollouts) { this.body.replaceChildren(...problems); return; }
    const bins = data.positions;
    this.chart = new Chart({ title: "KL by position in the response", unit: "nats / token", height: 220, axis: "position", build: () => ({ alarms: [], lines: [{
      x: bins.map((b) => b.start), raw: bins.map((b) => b.kl_mean), errors: bins.map((b) => b.se), label: "mean", colour: colour("--c1"), band: `${colour("--c1")}2e`,
      columns: [0, -1, 1].map((sideways) => bins.map((b) => b.kl_mean + sideways * b.se)) }] }) });
    this.body.replaceChildren(...problems, el("div", { class: "columns" },
      el("div", {}, this.chart.node, this.tokens(data)), el("div", {}, this.special(data), this.places(run, data))));
  }

  special(data) {
    const rows = data.special.map((t) => tokenRow(t, data.kl_total));
    return el("section", { class: "card" }, el("h3", {}, "End-of-sequence and template tokens"),
      rows.length ? tokenTable(rows) : el("p", { class: "blank" }, "The student sampled no special token in these steps."),
      el("p", { class: "hint" }, "A large KL here, small elsewhere, is the usual sign of a chat template or an end token that the two do not share."));
  }

  tokens(data) {
    return el("section", { class: "card" }, el("h3", {}, "Tokens that carry the most KL"), tokenTable(data.tokens.filter((t) => t.kl > 0).slice(0, 25).map((t) => tokenRow(t, data.kl_total))));
  }

  places(run, data) {
    const rows = data.places.slice(0, 25).map((place) => el("li", {}, el("button", { type: "button", class: "place", onclick: () => address.go("samples", { run: run.id, "samples.rollout": place.id, "samples.token": place.position }) },
      el("span", { class: "step" }, String(place.step)),
      el("span", { class: "context" }, el("bdi", {}, place.before.map(tokenText).join("")), el("mark", {}, tokenText(place.token))),
      el("span", { class: "p" }, percent(place.student_p), " → ", percent(place.teacher_p)), el("b", {}, num(place.kl, 2)))));
    return el("section", { class: "card" }, el("h3", {}, "Single places"),
      el("div", { class: "place head" }, ["Step", "Context and sampled token", "Student p → teacher p", "KL"].map((text) => el("span", {}, text))),
      el("ol", { class: "places" }, rows), el("p", { class: "hint" }, "Press a place to see it in its response."));
  }
}

function tokenRow(t, total) {
  const share = total > 0 ? Math.max(0, t.kl / total) : 0;
  return el("tr", {}, el("th", { scope: "row" }, el("code", { title: `token ${t.token_id}` }, tokenText(t.token))),
    el("td", {}, whole(t.count)), el("td", {}, num(t.kl_mean, 3)), el("td", {}, num(t.log_ratio_mean, 3)),
    el("td", {}, percent(t.student_p)), el("td", {}, percent(t.teacher_p)),
    el("td", { class: "share" }, el("i", { vars: { "--p": share.toFixed(4) } }), el("span", {}, percent(share))));
}

function tokenTable(rows) {
  return scroller("Tokens", el("table", { class: "figures" }, el("thead", {}, el("tr", {},
    ["Token", "Sampled", "Mean KL", "Log-ratio", "Student p", "Teacher p", "Share of KL"].map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, rows)));
}
