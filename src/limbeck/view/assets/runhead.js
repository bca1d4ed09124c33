// What heads the curves: one run's figures, or the names of several; and the alarms.
import { address } from "./address.js";
import { focusAll } from "./charts.js";
import { hasShares } from "./chartlist.js";
import { el } from "./dom.js";
import { firstAndLast, num, percent, whole } from "./format.js";
import { shownGroups } from "./groups.js";
import { statePill } from "./runrows.js";
import { store } from "./store.js";

// Where one run is all there is: its state and how far it came. Several have the tab Runs.
export function runHead() {
  const node = el("div", { class: "card runs" });
  const draw = () => {
    const [run] = store.runs;
    node.hidden = store.runs.length !== 1;
    if (!node.hidden) node.replaceChildren(runTable(run));
  };
  store.addEventListener("round", draw);
  return { node, draw };
}

const change = ([from, to], format) => (from === undefined ? "–" : el("span", { class: "change" }, el("span", { class: "from" }, format(from)), el("span", { "aria-label": "to" }, " → "), el("b", {}, format(to))));

const klKey = (values) => ["reverse_kl/exact", "reverse_kl/sampled"].find((key) => values[key]?.some((value) => value !== null));

function runTable(run) {
  const evals = run.eval.values, train = run.train.values, { recipe, steps } = run.info;
  const cells = [
    ["Run", el("span", { class: "run-name" }, run.id)],
    ["", statePill(run)],
    ["Step", [el("span", {}, whole(run.step), el("small", {}, `${steps ? ` / ${whole(steps)}` : ""}${recipe.rollout?.lag ? `, lag ${recipe.rollout.lag}` : ""}`)), el("progress", { max: 1, value: steps ? run.step / steps : 0, "aria-label": "steps made" })]],
    ["Temperature", num(recipe.rollout?.temperature, 2)],
    [`Reverse KL, ${klKey(evals) ? "held-out" : "training"}`, change(firstAndLast(klKey(evals) ? evals[klKey(evals)] : train[klKey(train)]), num)],
    [hasShares(run) ? "Accuracy, held-out" : "Reward, held-out", change(firstAndLast(evals.accuracy), hasShares(run) ? percent : num)],
    ["Entropy", change(firstAndLast(train["entropy/student"]), (value) => num(value, 3))],
    ["Tokens / s", whole(firstAndLast(train["tokens_per_second/step"])[1])],
    ["Alarms", run.alarms.length ? el("span", { class: "warn" }, `▲ ${run.alarms.length}`) : "none"],
  ];
  return el("table", {}, el("caption", { class: "hidden" }, "The run"), el("thead", {}, el("tr", {}, cells.map(([name]) => el("th", { scope: "col" }, name)))),
    el("tbody", {}, el("tr", {}, cells.map(([, value], i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, value)))));
}

// What each colour is, of all charts; it stays in sight. Pointing at one lets the others step back.
export function legendBar() {
  const node = el("div", { class: "legendbar", role: "group", "aria-label": "Runs shown" });
  const draw = () => {
    const groups = shownGroups(), hidden = store.runs.length - store.shown.length;
    node.hidden = store.runs.length < 2;
    node.replaceChildren(...groups.map((group) => el("button", {
      type: "button", title: `Hide ${group.label}`, onmouseenter: () => focusAll(group.label), onmouseleave: () => focusAll(null), onfocus: () => focusAll(group.label), onblur: () => focusAll(null),
      onclick: () => { focusAll(null); store.choose(store.shown.filter((run) => !group.runs.includes(run)).map((run) => run.id)); },
    }, groups.length > 1 && el("i", { class: "dot", vars: { "--ink": `var(${group.colour})` } }), el("span", {}, group.label), group.grouped && el("small", { class: group.runs.length < group.total ? "warn" : "" }, `${group.runs.length < group.total ? `${group.runs.length} of ` : ""}${group.total} ${group.total === 1 ? "run" : "runs"}`))),
    el("a", { href: address.link("runs") }, groups.length ? hidden ? `${hidden} more in Runs` : "Choose in Runs" : "No run is shown: choose some in Runs"));
  };
  return { node, draw };
}

// One line a kind of alarm: a run that has one has it at many steps.
export function alarmList() {
  const groups = new Map();
  for (const run of store.shown) for (const alarm of run.alarms) {
    const key = `${run.id}\u0000${alarm.name}`;
    const group = groups.get(key) ?? { run, name: alarm.name, first: alarm, count: 0 };
    groups.set(key, { ...group, count: group.count + 1, last: alarm });
  }
  if (!groups.size) return [];
  return [el("section", { class: "card alarms", "aria-label": "Alarms" }, el("h2", {}, "Alarms"), el("ul", {}, [...groups.values()].map((group) =>
    el("li", {}, el("b", {}, "▲ ", group.name),
      el("span", { class: "when" }, store.shown.length > 1 ? `${group.run.id}, ` : "", group.count > 1 ? `${group.count} steps, ${group.first.step} to ${group.last.step}` : `step ${group.first.step}`),
      el("span", {}, group.last.message)))))];
}
