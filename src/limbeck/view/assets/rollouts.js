// The recorded rollouts: a list to search, filter, sort and group, and the chosen one beside it.
import { address } from "./address.js";
import { Detail } from "./detail.js";
import { check, choice, debounce, el, segments } from "./dom.js";
import { num, percent, whole } from "./format.js";
import { grade } from "./grade.js";
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

// What the list is filtered and sorted by: each has its key in the address.
const FILTERS = { source: "all", grade: "any", cut: false, teacher: "", task: "", sort: "kl", grouped: false, search: "" };
const filterOf = () => Object.fromEntries(Object.entries(FILTERS).map(([key, fallback]) => [key, address.get(`samples.${key}`, fallback)]));

export class RolloutsPanel {
  constructor() {
    this.filter = { ...FILTERS };
    this.found = null;  // ids of what the search found; null: all
    this.detail = new Detail((row) => this.choose(row));
    this.count = el("span", { class: "count", role: "status" });
    this.canvas = el("div", { class: "canvas" });
    this.list = el("div", {
      class: "list", role: "listbox", tabIndex: 0, "aria-label": "Rollouts", onkeydown: (event) => this.key(event),
      onscroll: () => requestAnimationFrame(() => this.drawRows()),
    }, this.canvas);
    this.filters = el("div", { class: "filters" });
    this.search = el("input", {
      type: "search", placeholder: "Search prompts and responses", "aria-label": "Search prompts and responses", id: "search",
      oninput: debounce(200, () => { this.set({ search: this.search.value }); this.find(); }),
    });
    this.node = el("div", { class: "tokens" }, el("section", { class: "card browser", "aria-label": "Find rollouts" }, this.filters, this.list), this.detail.node);
    store.addEventListener("rollouts", () => { if (this.items) this.newRows(); });
    new ResizeObserver(() => this.drawRows()).observe(this.list);
  }

  get run() { return store.run(this.runId); }

  async open() {
    this.runId = store.run(address.get("run"), "rollouts")?.id;
    const { run } = this, id = address.get("samples.rollout"), token = address.has("samples.token") ? address.get("samples.token", 0) : undefined;
    if (token !== undefined) address.set({ "samples.token": null });
    if (!run) { this.detail.node.replaceChildren(el("p", { class: "blank" }, "There is no run here yet.")); return; }
    if (!run.rolloutsAsked) { this.count.textContent = "Reading…"; this.filters.replaceChildren(this.count); await run.attempt(run.readRollouts).catch(() => {}); store.tell("problems"); }
    if (run !== this.run) return;  // another one was chosen meanwhile
    this.filter = filterOf();
    this.search.value = this.filter.search;
    this.drawFilters();
    this.found = null;
    if (this.search.value) await this.find();
    else this.arrange();  // at once: whoever goes back through the pages finds this one as it was
    const row = (id && run.rows.find((r) => r.id === id)) ?? (run.rows.includes(this.chosen) ? this.chosen : this.items[0]?.row);
    if (row) this.choose(row, token, Boolean(id));
    else this.detail.node.replaceChildren(el("p", { class: "blank" }, run.rows.length ? "No rollout is left by the filters." : "No recorded rollouts to show."));
  }

  newRows() {
    this.drawFilters();
    this.find();
    if (!this.chosen && this.items.length) this.choose(this.items[0].row);
  }

  set(changes) {
    Object.assign(this.filter, changes);
    address.set(Object.fromEntries(Object.entries(changes).map(([key, value]) => [`samples.${key}`, value])));
    this.list.scrollTop = 0;
    this.arrange();
  }

  drawFilters() {
    const { filter, search } = this, rows = this.run?.rows ?? [];
    const again = (key) => (value) => this.set({ [key]: value });
    const different = (key) => [...new Set(rows.map((row) => row[key]).filter(Boolean))].sort();
    const among = (label, key) => { const values = different(key); return values.length > 1 && choice(label, [["", "all"], ...values.map((v) => [v, v])], filter[key], again(key)); };
    const focused = document.activeElement === search;
    this.filters.replaceChildren(
      store.runs.length > 1 && choice("Run", store.runs.map((run) => [run.id, run.id]), this.run?.id, (id) => { this.chosen = null; address.set({ run: id, "samples.rollout": null, "samples.teacher": null, "samples.task": null }); this.open(); }) || "",
      search,
      el("div", { class: "row-of-fields" }, segments("Which rollouts", [["all", "All"], ["train", "Training"], ["watch", "Watched"]], filter.source, again("source")), check("Truncated", filter.cut, again("cut"))),
      el("div", { class: "row-of-fields" },
        choice("Answers", Object.entries(GRADES).map(([key, [text]]) => [key, text]), filter.grade, again("grade")),
        among("Teacher", "teacher") || "", among("Task", "task") || "",
        choice("Sort", Object.entries(SORTS).map(([key, [text]]) => [key, text]), filter.sort, again("sort"))),
      el("div", { class: "count-line" }, this.count, check("Group by prompt", filter.grouped, again("grouped"))));
    if (focused) search.focus();
  }

  async find() {
    const { search, run } = this, text = search.value;
    const found = text ? new Set(await source.search(run.id, text).catch(() => [])) : null;
    if (text === search.value && run === this.run) { this.found = found; this.arrange(); }
  }

  // The list's items: each a rollout, or a prompt with its rollouts, the first by the sort on top.
  arrange() {
    const { filter, found } = this, all = this.run?.rows ?? [];
    const rows = all.filter((row) => (filter.source === "all" || row.source === filter.source) && (Object.hasOwn(GRADES, filter.grade) ? GRADES[filter.grade] : GRADES.any)[1](row)
      && (!filter.cut || row.finish === "length") && (!filter.teacher || row.teacher === filter.teacher) && (!filter.task || row.task === filter.task)
      && (!found || found.has(row.id)));
    rows.sort((Object.hasOwn(SORTS, filter.sort) ? SORTS[filter.sort] : SORTS.kl)[1]);
    this.items = filter.grouped ? [...Map.groupBy(rows, (row) => row.prompt_id ?? row.id).values()].map((group) => ({ row: group[0], group })) : rows.map((row) => ({ row }));
    const which = `${whole(rows.length)}${rows.length < all.length ? ` of ${whole(all.length)}` : ""} ${all.length === 1 ? "rollout" : "rollouts"}`;
    this.count.textContent = `${which}${filter.grouped ? ` of ${whole(this.items.length)} ${this.items.length === 1 ? "prompt" : "prompts"}` : ""}${this.run?.recorded > all.length ? `; ${whole(this.run.recorded)} were recorded` : ""}`;
    this.canvas.style.setProperty("height", `${this.items.length * ROW}px`);
    this.drawRows();
  }

  place(row) { return this.items.findIndex((item) => item.row === row || item.group?.includes(row)); }

  // Only the rows in sight are there.
  drawRows() {
    if (!this.items) return;
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW) - 5);
    const end = Math.min(this.items.length, first + Math.ceil(this.list.clientHeight / ROW) + 12);
    const on = this.place(this.chosen);
    if (on >= 0) this.list.setAttribute("aria-activedescendant", `row-${on}`);
    this.canvas.replaceChildren(...this.items.slice(first, end).map((item, i) => this.item(item, first + i, first + i === on)));
  }

  item({ row, group }, index, on) {
    return el("div", { class: on ? "row on" : "row", role: "option", id: `row-${index}`, "aria-selected": on, "aria-posinset": index + 1, "aria-setsize": this.items.length,
      vars: { top: `${index * ROW}px` }, data: { id: row.id }, onclick: () => this.choose(row) },
      el("div", { class: "line" }, !group && el("span", { class: "step" }, String(row.step)), el("span", { class: "text" }, row.question || row.prompt_text || row.prompt_id || ""), group ? shareRight(group) : grade(row)),
      group ? groupLine(group) : el("div", { class: "line dim" }, el("span", { class: "text mono" }, (row.response_text || "").replaceAll("\n", "↵")),
        row.finish === "length" && el("span", { class: "flag", title: "cut at max_tokens" }, "cut"), el("span", { class: "kl" }, num(kl(row), 3))));
  }

  choose(row, token, scroll = false) {
    this.chosen = row;
    const index = this.place(row);
    if (index >= 0) {
      const top = index * ROW;
      if (scroll || top < this.list.scrollTop || top + ROW > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = Math.max(0, top - this.list.clientHeight / 2);
    }
    this.drawRows();
    const siblings = this.run.rows.filter((r) => r.prompt_id === row.prompt_id).sort((a, b) => a.step - b.step || (a.sample ?? 0) - (b.sample ?? 0) || (a.segment ?? 0) - (b.segment ?? 0));
    const versions = siblings.filter((r) => r.source === row.source && r.sample === row.sample && (r.segment ?? 0) === (row.segment ?? 0));
    this.detail.show(this.run, row, versions, siblings, token);
    address.set({ ...(store.runs.length > 1 && { run: this.run.id }), "samples.rollout": row.id });
  }

  key(event) {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined || !this.items.length) return;
    event.preventDefault();
    const next = Math.max(0, Math.min(this.items.length - 1, this.place(this.chosen) + by));
    this.choose(this.items[next].row);
  }
}

function shareRight(group) {
  const graded = group.filter((row) => row.reward !== null && row.reward !== undefined);
  if (!graded.length) return el("span", { class: "grade" }, "");
  const right = graded.filter((row) => row.reward >= 1).length;
  return el("span", { class: "kl", title: `${percent(right / graded.length, 0)} right` }, `${right} of ${graded.length} right`);
}

function groupLine(group) {
  const steps = group.map((row) => row.step), [first, last] = [Math.min(...steps), Math.max(...steps)];
  return el("div", { class: "line dim" }, el("span", { class: "text" }, `${whole(group.length)} ${group.length === 1 ? "rollout" : "rollouts"}, ${first === last ? `step ${first}` : `steps ${first} to ${last}`}`),
    el("span", { class: "kl" }, num(group.reduce((total, row) => total + kl(row), 0) / group.length, 3)));
}
