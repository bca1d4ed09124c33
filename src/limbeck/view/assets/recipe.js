// The recipes of the runs side by side, what differs among them first to see.
import { check, el, scroller } from "./dom.js";
import { store } from "./store.js";

const only = { differing: false };

export function recipePanel() {
  const node = el("div");
  const draw = () => {
    const runs = store.runs;
    const flat = runs.map((run) => new Map(entries(run.info.recipe)));
    const keys = [...new Set(flat.flatMap((map) => [...map.keys()]))];
    const differs = (key) => key !== "name" && new Set(flat.map((map) => map.get(key))).size > 1;
    const rows = keys.filter((key) => !only.differing || differs(key)).map((key) => el("tr", { class: runs.length > 1 && differs(key) ? "differs" : "" },
      el("th", { scope: "row" }, key), flat.map((map) => el("td", {}, map.get(key) ?? "–"))));
    node.replaceChildren(
      runs.length > 1 ? el("div", { class: "toolbar" }, check("Only what differs", only.differing, (on) => { only.differing = on; draw(); })) : "",
      el("div", { class: "card" }, scroller("Recipes", el("table", { class: "recipe" }, el("caption", { class: "hidden" }, "Recipes"),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "key"), runs.map((run) => el("th", { scope: "col" }, run.id)))), el("tbody", {}, rows)))));
  };
  return { node, open: draw };
}

function entries(table, prefix = "") {
  return Object.entries(table ?? {}).flatMap(([key, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value) ? entries(value, `${prefix}${key}.`)
      : [[prefix + key, typeof value === "string" ? value : JSON.stringify(value)]]);
}
