// The token view: a list of rollouts to search, filter and sort, and the chosen one beside it.
import { address } from "./address.js";
import { check, choice, debounce, el, segments } from "./dom.js";
import { num, whole } from "./format.js";
import { Detail, grade } from "./detail.js";
import { source } from "./source.js";
import { store } from "./store.js";

const ROW = 62;  // px; must be the height of `.row` in the style sheet
const kl = (row) => row.reverse_kl_mean ?? row.log_ratio_mean ?? 0;
const SORTS = {
  kl: ["largest KL", (a, b) => kl(b) - kl(a)],
  worst: ["largest KL of a token", (a, b) => (b.kl_max ?? 0) - (a.kl_max ?? 0)],
  new: ["newest", (a, b) => b.step - a.step],
  old: ["oldest", (a, b) => a.step - b.step],
  long: ["longest", (a, b) => (b.sampled_tokens ?? 0) - (a.sampled_tokens ?? 0)],
  reward: ["lowest reward", (a, b) => (a.reward ?? Infinity) - (b.reward ?? Infinity)],
};
const GRADES = {
  any: ["any", () => true],
  wrong: ["wrong", (row) => row.reward !== null && row.reward !== undefined && row.reward < 1],
  right: ["right", (row) => row.reward >= 1],
  none: ["not graded", (row) => row.reward === null || row.reward === undefined],
};

export class RolloutsPanel {
  constructor() {
    this.filter = { source: "all", grade: "any", cut: false, teacher: "", task: "", sort: "kl", found: null };
    this.detail = new Detail((row) => this.choose(row));
    this.count = el("span", { class: "count", role: "status" });
    this.canvas = el("div", { class: "canvas" });
    this.list = el("div", {
      class: "list", role: "listbox", tabIndex: 0, "aria-label": "Rollouts", onkeydown: (event) => this.key(event),
      onscroll: () => requestAnimationFrame(() => this.drawRows()),
    }, this.canvas);
    this.filters = el("div", { class: "filters" });
    this.node = el("div", { class: "tokens" }, el("section", { class: "card browser", "aria-label": "Find rollouts" }, this.filters, this.list), this.detail.node);
    store.addEventListener("rollouts", () => { this.drawFilters(); this.find(); this.arrange(); if (!this.chosen && this.rows.length) this.choose(this.rows[0]); });
    new ResizeObserver(() => this.drawRows()).observe(this.list);
  }

  get run() { return store.run(this.runId); }

  async open() {
    if (address.has("run")) this.runId = address.get("run");
    const id = address.get("samples.rollout"), token = address.has("samples.token") ? address.get("samples.token", 0) : undefined;
    if (token !== undefined) address.set({ "samples.token": null });
    if (!this.run) { this.detail.node.replaceChildren(el("p", { class: "blank" }, "There is no run here yet.")); return; }
    if (!this.run.rolloutsAsked) { this.count.textContent = "Reading…"; this.filters.replaceChildren(this.count); await this.run.attempt(this.run.readRollouts).catch(() => {}); store.tell("problems"); }
    if (this.drawnFor !== this.run.id || !this.filters.childElementCount) { this.drawnFor = this.run.id; this.drawFilters(); }
    this.arrange();
    const row = id ? this.run.rows.find((r) => r.id === id) : this.chosen && this.run.rows.includes(this.chosen) ? null : this.rows[0];
    if (row) this.choose(row, token, Boolean(id));
    else if (!this.run.rows.length) this.detail.node.replaceChildren(el("p", { class: "blank" }, "No recorded rollouts to show."));
  }

  drawFilters() {
    const { filter } = this, rows = this.run?.rows ?? [];
    const again = (key) => (value) => { filter[key] = value; this.list.scrollTop = 0; this.arrange(); };
    const different = (key) => [...new Set(rows.map((row) => row[key]).filter(Boolean))].sort();
    const among = (label, key) => { const values = different(key); return values.length > 1 && choice(label, [["", "all"], ...values.map((v) => [v, v])], filter[key], again(key)); };
    const search = this.search ??= el("input", {
      type: "search", placeholder: "Search prompts and responses", "aria-label": "Search prompts and responses", id: "search",
      oninput: debounce(200, () => { this.list.scrollTop = 0; this.find(); }),
    });
    const focused = document.activeElement === search;
    this.filters.replaceChildren(
      store.runs.length > 1 && choice("Run", store.runs.map((run) => [run.id, run.id]), this.run?.id, (id) => { filter.found = null; search.value = ""; this.chosen = null; address.set({ run: id, "samples.rollout": null }); this.open(); }) || "",
      search,
      el("div", { class: "row-of-fields" }, segments("Which rollouts", [["all", "All"], ["train", "Training"], ["watch", "Watched"]], filter.source, again("source")), check("Truncated", filter.cut, again("cut"))),
      el("div", { class: "row-of-fields" },
        choice("Answers", Object.entries(GRADES).map(([key, [text]]) => [key, text]), filter.grade, again("grade")),
        among("Teacher", "teacher") || "", among("Task", "task") || "",
        choice("Sort", Object.entries(SORTS).map(([key, [text]]) => [key, text]), filter.sort, again("sort"))),
      this.count);
    if (focused) search.focus();
  }

  async find() {
    const { filter, search, run } = this, text = search.value;
    if (!text && !filter.found) return;
    const found = text ? new Set(await source.search(run.id, text).catch(() => [])) : null;
    if (text === search.value && run === this.run) { filter.found = found; this.arrange(); }
  }

  arrange() {
    const { filter } = this, all = this.run?.rows ?? [];
    this.rows = all.filter((row) => (filter.source === "all" || row.source === filter.source) && GRADES[filter.grade][1](row)
      && (!filter.cut || row.finish === "length") && (!filter.teacher || row.teacher === filter.teacher) && (!filter.task || row.task === filter.task)
      && (!filter.found || filter.found.has(row.id)));
    this.rows.sort(SORTS[filter.sort][1]);
    this.count.textContent = this.rows.length === all.length ? `${whole(all.length)} ${all.length === 1 ? "rollout" : "rollouts"}${this.run.recorded > all.length ? `; ${whole(this.run.recorded)} were recorded` : ""}` : `${whole(this.rows.length)} of ${whole(all.length)} rollouts`;
    this.canvas.style.setProperty("height", `${this.rows.length * ROW}px`);
    this.drawRows();
  }

  // Only the rows in sight are there.
  drawRows() {
    if (!this.rows) return;
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 5);
    const end = Math.min(this.rows.length, first + Math.ceil(this.list.clientHeight / ROW) + 12);
    this.canvas.replaceChildren(...this.rows.slice(first, end).map((row, i) => this.row(row, first + i)));
  }

  row(row, index) {
    const on = row.id === this.chosen?.id;
    if (on) this.list.setAttribute("aria-activedescendant", `row-${index}`);
    return el("div", { class: on ? "row on" : "row", role: "option", id: `row-${index}`, "aria-selected": on, "aria-posinset": index + 1, "aria-setsize": this.rows.length,
      vars: { top: `${index * ROW}px` }, data: { id: row.id }, onclick: () => this.choose(row) },
      el("div", { class: "line" }, el("span", { class: "step" }, String(row.step)), el("span", { class: "text" }, row.prompt_text || row.prompt_id || ""), grade(row)),
      el("div", { class: "line dim" }, el("span", { class: "text mono" }, (row.response_text || "").replaceAll("\n", "↵")),
        row.finish === "length" && el("span", { class: "flag", title: "cut at max_tokens" }, "cut"), el("span", { class: "kl" }, num(kl(row), 3))));
  }

  choose(row, token, scroll = false) {
    this.chosen = row;
    const index = this.rows.indexOf(row);
    if (index >= 0) {
      const top = index * ROW;
      if (scroll || top < this.list.scrollTop || top + ROW > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = Math.max(0, top - this.list.clientHeight / 2);
    }
    this.drawRows();
    const versions = this.run.rows.filter((r) => r.prompt_id === row.prompt_id && r.source === row.source && r.sample === row.sample).sort((a, b) => a.step - b.step);
    this.detail.show(this.run, row, versions, token);
    address.set({ ...(store.runs.length > 1 && { run: this.run.id }), "samples.rollout": row.id });
  }

  key(event) {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || !this.rows.length) return;
    event.preventDefault();
    const now = this.rows.indexOf(this.chosen);
    this.choose(this.rows[Math.max(0, Math.min(this.rows.length - 1, now + by))]);
  }
}
