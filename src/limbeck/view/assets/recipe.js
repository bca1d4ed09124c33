// The recipe of one run, or what differs among several: by table, with the runs as columns or as rows, and as TOML.
import { address } from "./address.js";
import { copyButton } from "./clip.js";
import { columnOf } from "./columns.js";
import { check, debounce, el, scroller, segments } from "./dom.js";
import { differing, flat, keysOf, recipeText, tableOf, tomlOf } from "./flat.js";
import { store } from "./store.js";

const PLACES = ["host", "device", "commit", "limbeck", "torch", "transformers", "python"];
const MOST_COLUMNS = 4;  // of runs, side by side; more are rows
const OF_THE_RUN = ["name", "output"];  // which differ in any two runs

export function recipePanel() {
  const head = el("div", { class: "toolbar" }), body = el("div", { class: "recipes" });
  const node = el("div", { class: "recipe-tab" }, head, body);
  const search = el("input", { type: "search", placeholder: "Find a key or a value", "aria-label": "Find a key or a value", oninput: debounce(120, () => { address.set({ "recipe.find": search.value || null }); drawBody(); }) });
  const set = (changes) => { address.set(changes); draw(); };
  // The shown runs, that which the others are compared with first: where nobody has chosen one, the first that has a step.
  const runsNow = () => {
    const asked = address.get("recipe.base"), shown = store.shown.length ? store.shown : store.runs.slice(0, 1);
    const base = shown.find((run) => run.id === asked) ?? shown.find((run) => run.has("steps"));
    return [...shown.filter((run) => run === base), ...shown.filter((run) => run !== base)];
  };
  node.addEventListener("click", (event) => { const base = event.target.closest("[data-base]")?.dataset.base; if (base !== undefined) set({ "recipe.base": base }); });

  const draw = () => {
    const runs = runsNow(), several = runs.length > 1, all = address.get("recipe.all", false);
    const focused = head.contains(document.activeElement) && document.activeElement === search;
    search.value = address.get("recipe.find", "");
    head.replaceChildren(search,
      several ? check("Only what differs", !all, (on) => set({ "recipe.all": on ? null : true })) : "",
      several ? segments("Runs as", [["columns", "Runs as columns"], ["rows", "Runs as rows"]], shapeOf(runs), (shape) => set({ "recipe.shape": shape })) : "",
      el("span", { class: "hint" }, several ? `${runs.length} runs, as they are shown in the curves` : ""), el("span", { class: "spring" }),
      runs.length ? copyButton(several && !all ? "Copy what differs as TOML" : "Copy as TOML", () => tomlsOf(runs, keysNow(runs))) : "");
    if (focused) search.focus();
    drawBody();
  };
  const keysNow = (runs) => {
    const keys = keysOf(runs), wanted = address.get("recipe.find", "").trim().toLowerCase();
    const shown = runs.length > 1 && !address.get("recipe.all", false) ? differing(runs, keys).filter((key) => !OF_THE_RUN.includes(key)) : keys;
    return shown.filter((key) => !wanted || key.toLowerCase().includes(wanted) || runs.some((run) => recipeText(flat(run).get(key)).toLowerCase().includes(wanted)));
  };
  const drawBody = () => {
    const runs = runsNow(), keys = keysNow(runs), places = placesOf(runs);
    if (!runs.length) { body.replaceChildren(el("p", { class: "card blank" }, "There is no run here yet.")); return; }
    const nothing = !keys.length && el("p", { class: "card blank" }, address.get("recipe.find", "") ? "No key or value is found." : runs.length > 1 ? "These runs have the same recipe." : "Of this run, no recipe is known.");
    const tables = keys.length || places.length ? shapeOf(runs) === "rows" && runs.length > 1 ? byRuns(runs, keys, places) : byKeys(runs, keys, places) : "";
    body.replaceChildren(nothing || "", tables);
  };
  for (const event of ["described", "metrics"]) store.addEventListener(event, () => { if (address.tab === "recipe" && !node.contains(document.activeElement)) draw(); });
  return { node, open: draw };
}

const shapeOf = (runs) => address.get("recipe.shape") ?? (runs.length > MOST_COLUMNS ? "rows" : "columns");

// Of where they ran: all of one run, and of several what differs.
function placesOf(runs) {
  const all = address.get("recipe.all", false) || runs.length === 1;
  return PLACES.map(columnOf).filter((column) => runs.some((run) => column.of(run) !== undefined) && (all || new Set(runs.map((run) => placeText(column, run))).size > 1));
}
const placeText = (column, run) => { const value = column.of(run); return value === undefined ? "–" : column.show(value, run); };

// [head, [[key, label, text of a run], ...]] for each table of the recipe, and one of where they ran.
function sectionsOf(keys, places) {
  const sections = new Map();
  for (const key of keys) {
    const table = tableOf(key);
    if (!sections.has(table)) sections.set(table, []);
    sections.get(table).push([key, table ? key.slice(table.length + 1) : key, (run) => recipeText(flat(run).get(key))]);
  }
  const found = [...sections].map(([table, rows]) => [table ? `[${table}]` : "the run", rows]);
  return places.length ? [...found, ["where it ran", places.map((column) => [column.id, column.label, (run) => placeText(column, run)])]] : found;
}

const recipeHead = (run, keys, i, several) => [el("span", { class: "run-name", vars: { "--ink": `var(${run.colour})` } }, store.runs.length > 1 && el("i", { class: "dot" }), run.id),
  copyButton("Copy TOML", () => tomlOf(run, keys), { title: `Copy these keys of ${run.id} as TOML`, name: "act" }),
  several && (i ? el("button", { type: "button", class: "act", data: { base: run.id }, title: `Compare the others with ${run.id}` }, "Make baseline") : el("small", {}, "baseline"))];

// What differs from the first run stands out.
const cellClass = (text, first, several) => (several && text !== first ? "other" : "");

function byKeys(runs, keys, places) {
  const several = runs.length > 1;
  const rows = sectionsOf(keys, places).flatMap(([head, items]) => [
    el("tr", { class: "table-head" }, el("th", { scope: "colgroup", colSpan: runs.length + 1 }, head)),
    ...items.map(([key, label, textOf]) => { const texts = runs.map(textOf); return el("tr", {}, el("th", { scope: "row", title: key }, label), texts.map((text) => el("td", { class: cellClass(text, texts[0], several) }, text))); })]);
  return el("div", { class: "card" }, scroller("Recipes", el("table", { class: "recipe" }, el("caption", { class: "hidden" }, several ? "Recipes side by side" : "Recipe"),
    several && el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Key"), runs.map((run, i) => el("th", { scope: "col" }, recipeHead(run, keys, i, several))))), el("tbody", {}, rows))));
}

function byRuns(runs, keys, places) {
  const sections = sectionsOf(keys, places), items = sections.flatMap(([, some]) => some);
  const first = items.map(([, , textOf]) => textOf(runs[0]));
  return el("div", { class: "card" }, scroller("Recipes", el("table", { class: "recipe by-runs" }, el("caption", { class: "hidden" }, "Recipes, a run a row"),
    el("thead", {}, el("tr", {}, el("th", {}), sections.map(([head, some]) => el("th", { scope: "colgroup", colSpan: some.length, class: "table-name" }, head))),
      el("tr", {}, el("th", { scope: "col" }, "Run"), items.map(([key, label]) => el("th", { scope: "col", title: key }, label)))),
    el("tbody", {}, runs.map((run, i) => el("tr", {}, el("th", { scope: "row" }, recipeHead(run, keys, i, true)), items.map(([, , textOf], at) => { const text = textOf(run); return el("td", { class: cellClass(text, first[at], true) }, text); })))))));
}

// One recipe as it is; of several, each under its run's name: the baseline's, and the others' as comments, so that it stays TOML.
function tomlsOf(runs, keys) {
  if (runs.length === 1) return tomlOf(runs[0], keys);
  const asComment = (text) => text.replaceAll(/^(?=.)/gm, "# ");
  return runs.map((run, i) => { const toml = tomlOf(run, keys); return `# ${run.id.replaceAll(/[\r\n]/g, " ")}\n${i ? asComment(toml) : toml}`; }).join("\n");
}
