// Where student and teacher disagree: in the latest steps beside the first, by task, teacher and turn, by token and place.
import { address } from "./address.js";
import { Chart } from "./charts.js";
import { choice, colour, el, scroller, segments } from "./dom.js";
import { num, percent, whole } from "./format.js";
import { helpOf } from "./help.js";
import { tokenText } from "./inspector.js";
import { source } from "./source.js";
import { store } from "./store.js";

const SPANS = { late: "the latest third", early: "the first third", all: "all steps" };
const FACETS = { task: ["Task", "tasks"], teacher: ["Teacher", "teachers"], turn: ["Turn", "turns of the student"] };
const ORDERS = {
  kl: ["Most KL now", (t) => -t.kl],
  grew: ["Grew most", (t) => -changeOf(t)],
  fell: ["Fell most", changeOf],
};
const SHOWN_ROWS = 25;

function changeOf(t) { return t.before ? t.per_thousand - t.before.per_thousand : 0; }

const facetKey = (facet) => `disagreement.${facet}`;
const facetName = (value) => (value === "" ? "(without a name)" : String(value));

export class DisagreementPanel {
  constructor() {
    this.head = el("div", { class: "toolbar" });
    this.body = el("div");
    this.node = el("div", { class: "disagreement" }, this.head, this.body);
  }

  // What the address asks for; a report has the steps alone.
  get wanted() {
    const wanted = { steps: address.get("disagreement.steps", "late") };
    for (const facet of source.live ? Object.keys(FACETS) : []) if (address.get(facetKey(facet)) !== null) wanted[facet] = address.get(facetKey(facet));
    return wanted;
  }

  async open() {
    const run = store.run(address.get("run"), "rollouts");
    if (!run) { this.body.replaceChildren(el("p", { class: "card blank" }, "There is no run here yet.")); return; }
    const asked = this.asked = {};
    if (!this.body.hasChildNodes()) this.head.replaceChildren(el("span", { class: "hint" }, "Reading…"));
    this.node.setAttribute("aria-busy", "true");
    const wanted = this.wanted;
    const data = await source.disagreement(run.id, wanted).catch((error) => ({ rollouts: 0, problems: [`The sums cannot be read: ${error.message}.`] }));
    if (asked !== this.asked) return;
    this.node.removeAttribute("aria-busy");
    this.draw(run, wanted, data);
  }

  change(changes) {
    address.set(changes);
    this.open();
  }

  toolbar(run, wanted, data) {
    const spans = Object.entries(SPANS).map(([key, text]) => [key, data.spans && key !== "all" ? `${text} (${data.spans[key].map(whole).join(" to ")})` : text]);
    if (!(wanted.steps in SPANS)) spans.push([wanted.steps, `steps ${wanted.steps.replace("-", " to ")}`]);
    const facets = source.live ? Object.entries(FACETS).filter(([facet]) => data.choices?.[facet].length > 1 || facet in wanted) : [];
    this.head.replaceChildren(
      store.runs.length > 1 && choice("Run", store.runs.map((r) => [r.id, r.id]), run.id, (id) => this.change({ run: id, [facetKey("task")]: null, [facetKey("teacher")]: null, [facetKey("turn")]: null })) || "",
      choice("Steps", spans, wanted.steps, (steps) => this.change({ "disagreement.steps": steps })),
      ...facets.map(([facet, [label]]) => choice(label, [["any", "all"], ...(data.choices?.[facet] ?? []).map((value, i) => [String(i), facetName(value)])],
        facet in wanted ? String(data.choices?.[facet].map(String).indexOf(String(wanted[facet]))) : "any",
        (i) => this.change({ [facetKey(facet)]: i === "any" ? null : data.choices[facet][Number(i)] }))),
      el("span", { class: "hint" }, !data.rollouts ? "" : `${whole(data.tokens_seen)} tokens of ${whole(data.rollouts)} recorded rollouts, steps ${whole(data.steps[0])} to ${whole(data.steps[1])}; ${data.exact ? "exact KL" : "sampled log-ratio"}`));
  }

  draw(run, wanted, data) {
    this.chart?.remove();
    this.toolbar(run, wanted, data);
    const problems = data.problems.map((text) => el("p", { class: "problem" }, text));
    if (!data.rollouts) { this.body.replaceChildren(...problems); return; }
    this.chart = positionChart(data);
    this.body.replaceChildren(...problems, tiles(data), this.groups(data, wanted), el("div", { class: "columns" },
      el("div", {}, this.chart.node, this.tokens(data)), el("div", {}, this.special(data), this.places(run, data))));
  }

  // By task, teacher and turn, where there are several of them. A press shows one alone.
  groups(data, wanted) {
    const several = Object.entries(FACETS).filter(([facet]) => data.groups[facet].length > 1);
    return el("div", { class: "facets" }, several.map(([facet, [label, plural]]) => {
      const most = Math.max(...data.groups[facet].map((g) => Math.max(g.kl_mean, g.before?.kl_mean ?? 0)), 1e-12);
      const rows = data.groups[facet].map((g) => {
        const on = String(wanted[facet]) === String(g.name), text = facetName(g.name);
        const name = source.live ? el("button", { type: "button", class: "link", "aria-pressed": on, title: on ? "Show all again" : "Show this alone", onclick: () => this.change({ [facetKey(facet)]: on ? null : g.name }) }, text) : text;
        return el("tr", { class: on ? "on" : "" }, el("th", { scope: "row" }, name), el("td", {}, whole(g.tokens)),
          data.before && el("td", { class: "from" }, num(g.before?.kl_mean, 3)),
          el("td", {}, num(g.kl_mean, 3), g.kl_se !== null && el("small", {}, ` ± ${num(g.kl_se, 3)}`)),
          el("td", { class: "bars" }, g.before && el("i", { class: "before", vars: { "--p": (Math.max(0, g.before.kl_mean) / most).toFixed(4) } }), el("i", { vars: { "--p": (Math.max(0, g.kl_mean) / most).toFixed(4) } })),
          el("td", {}, percent(g.share)));
      });
      return el("section", { class: "card" }, el("h3", {}, `By ${label.toLowerCase()}`, el("small", {}, "nats / token")),
        figures(plural, [label, "Tokens", data.before && "First third", data.before ? "Latest third" : "Mean KL", "", "Share of KL"], rows));
    }));
  }

  special(data) {
    const rows = tokenRows(data.special, data);
    return el("section", { class: "card" }, el("h3", {}, "End-of-sequence and template tokens"),
      rows.length ? tokenTable(rows, data) : el("p", { class: "blank" }, "The student sampled no special token in these steps."),
      el("p", { class: "hint" }, "A large KL here, small elsewhere, is the usual sign of a chat template or an end token that the two do not share."));
  }

  tokens(data) {
    const order = data.before ? address.get("disagreement.order", "kl") : "kl";
    const [, key] = ORDERS[order] ?? ORDERS.kl;
    const chosen = data.tokens.filter((t) => (order === "fell" ? changeOf(t) < 0 : order === "grew" ? changeOf(t) > 0 : t.kl > 0)).sort((a, b) => key(a) - key(b)).slice(0, SHOWN_ROWS);
    const body = chosen.length ? tokenTable(tokenRows(chosen, data), data) : el("p", { class: "blank" }, "None.");
    const card = el("section", { class: "card" }, el("div", { class: "card-head" }, el("h3", {}, "Tokens"),
      data.before && segments("Order of the tokens", Object.entries(ORDERS).map(([name, [text]]) => [name, text]), order, (name) => {
        address.set({ "disagreement.order": name });
        card.replaceWith(this.tokens(data));
      })), body);
    return card;
  }

  places(run, data) {
    const rows = data.places.slice(0, SHOWN_ROWS).map((place) => el("li", {}, el("button", { type: "button", class: "place", onclick: () => address.go("samples", { run: run.id, "samples.rollout": place.id, "samples.token": place.position }) },
      el("span", { class: "step" }, String(place.step)),
      el("span", { class: "context" }, el("bdi", {}, place.before.map(tokenText).join("")), el("mark", {}, tokenText(place.token))),
      el("span", { class: "p" }, percent(place.student_p), " → ", percent(place.teacher_p)), el("b", {}, num(place.kl, 2)))));
    return el("section", { class: "card" }, el("h3", {}, "Single places"),
      el("div", { class: "place head" }, ["Step", "Context and sampled token", "Student p → teacher p", "KL"].map((text) => el("span", {}, text))),
      el("ol", { class: "places" }, rows), el("p", { class: "hint" }, "Press a place to see it in its response."));
  }
}

// The few numbers that say how much disagreement there is, and where to look.
function tiles(data) {
  const { before } = data, at = (all, nats) => all?.above.find((each) => each.nats === nats);
  const strong = at(data, 1), once = at(before, 1);
  const tile = (label, value, was, note) => el("div", { class: "tile" }, el("dt", {}, label),
    el("dd", {}, was !== undefined && el("span", { class: "from" }, was, el("span", { "aria-label": "to" }, " → ")), el("b", {}, value), note && el("small", {}, note)));
  return el("dl", { class: "tiles" },
    tile("KL, nats / token", num(data.kl_mean), before ? num(before.kl_mean) : undefined, data.kl_se === null ? "" : `± ${num(data.kl_se)}`),
    tile("Tokens above 1 nat", percent(strong.tokens), before ? percent(once.tokens) : undefined, `they have ${percent(strong.kl, 0)} of the KL`),
    tile("Tokens below 0.1 nats", percent(1 - at(data, 0.1).tokens), before ? percent(1 - at(before, 0.1).tokens) : undefined, "where the two agree"),
    tile("Share of special tokens", percent(data.special_share), before ? percent(before.special_share) : undefined, "of the KL"));
}

function positionChart(data) {
  const line = (bins, label, ink, more) => ({
    x: bins.map((b) => b.start), raw: bins.map((b) => b.kl_mean), errors: bins.map((b) => b.se), label, colour: colour(ink), band: `${colour(ink)}2e`,
    columns: [0, -1, 1].map((sideways) => bins.map((b) => b.kl_mean + sideways * b.se)), ...more });
  return new Chart({ title: "KL by position in the response", unit: "nats / token", height: 220, axis: "position", help: helpOf("KL by position in the response"), build: () => ({ alarms: [], lines: [
    ...(data.before ? [line(data.before.positions, `steps ${data.before.steps.join(" to ")}`, "--c6", { alpha: 0.7, width: 1.25 })] : []),
    line(data.positions, data.before ? `steps ${data.steps.join(" to ")}` : "mean", "--c1")] }) });
}

// Bars are as long as a token's share beside the largest of all tokens.
function tokenRows(tokens, data) {
  const shareOf = (t) => (data.kl_total > 0 ? Math.max(0, t.kl / data.kl_total) : 0);
  const most = Math.max(...data.tokens.map(shareOf), 1e-12);
  return tokens.map((t) => el("tr", {}, el("th", { scope: "row" }, el("code", { title: `token ${t.token_id}` }, tokenText(t.token))),
    el("td", {}, whole(t.count)), data.before && el("td", { class: "from" }, num(t.before?.kl_mean, 3)), el("td", {}, num(t.kl_mean, 3)), el("td", {}, num(t.log_ratio_mean, 3)),
    el("td", {}, percent(t.student_p)), el("td", {}, percent(t.teacher_p)),
    el("td", { class: "share" }, el("i", { vars: { "--p": (shareOf(t) / most).toFixed(4) } }), el("span", {}, percent(shareOf(t))))));
}

function tokenTable(rows, data) {
  return figures("Tokens", ["Token", "Sampled", data.before && "First third", "Mean KL", "Log-ratio", "Student p", "Teacher p", "Share of KL"], rows);
}

function figures(label, head, rows) {
  return scroller(label, el("table", { class: "figures" }, el("thead", {}, el("tr", {}, head.filter((text) => text !== null && text !== false && text !== undefined).map((text) => el("th", { scope: "col" }, text)))), el("tbody", {}, rows)));
}
