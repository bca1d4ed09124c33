// The page: its tabs, its theme, and the notices of what could not be read.
import { updateAll } from "./charts.js";
import { curvesPanel } from "./curves.js";
import { DisagreementPanel } from "./disagreement.js";
import { el, printable } from "./dom.js";
import { recipePanel } from "./recipe.js";
import { RolloutsPanel } from "./rollouts.js";
import { source } from "./source.js";
import { store } from "./store.js";

const main = document.getElementById("main");
const status = document.getElementById("status");

function remembered(value) {
  try {
    if (value) localStorage.setItem("limbeck-theme", value);
    return localStorage.getItem("limbeck-theme");
  } catch {
    return null;  // a report opened from disk may have no storage; the system's theme serves
  }
}

const THEMES = { auto: "◐ Auto", light: "○ Light", dark: "● Dark" };
const system = matchMedia("(prefers-color-scheme: dark)");
let theme = remembered() ?? "auto";

function applyTheme() {
  document.documentElement.dataset.theme = theme === "auto" ? (system.matches ? "dark" : "light") : theme;
  const button = document.getElementById("theme");
  button.textContent = THEMES[theme] ?? THEMES.auto;
  button.setAttribute("aria-label", `Theme: ${theme}. Press for the next.`);
  updateAll(true);
}

const problems = el("section", { class: "problems", role: "status", "aria-label": "Notices", hidden: true });

function drawProblems() {
  const texts = [...store.problems.map((text) => ["", text]),
    ...store.shown.flatMap((run) => Object.values(run.problems).flat().map((text) => [store.runs.length > 1 ? run.id : "", text]))];
  problems.hidden = texts.length === 0;
  problems.replaceChildren(...texts.slice(0, 8).map(([run, text]) => el("p", { class: "problem" }, run && el("b", {}, `${run}: `), text)),
    texts.length > 8 ? el("p", { class: "problem" }, `and ${texts.length - 8} more`) : "");
}

function drawStatus() {
  main.classList.toggle("bare", store.runs.length === 0);
  const going = store.runs.filter((run) => run.live).length;
  status.replaceChildren(store.lost ? el("span", { class: "pill warn" }, "server stopped: showing what was read")
    : !source.live ? el("span", { class: "pill off" }, "report") : going ? el("span", { class: "pill live" }, el("i"), "live") : el("span", { class: "pill off" }, "up to date"));
}

async function start() {
  applyTheme();
  system.addEventListener("change", applyTheme);
  document.getElementById("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    theme = names[(names.indexOf(theme) + 1) % names.length];
    remembered(theme);
    applyTheme();
  });
  try {
    await store.start();
  } catch (error) {
    main.append(el("p", { class: "problem" }, `The data cannot be read: ${error.message}`));
    return;
  }
  const names = store.runs.map((run) => run.id);
  document.title = names.length === 1 ? printable(`${names[0]} · Limbeck`) : "Limbeck";
  const rollouts = new RolloutsPanel();
  const recipe = recipePanel();
  const disagreement = new DisagreementPanel((run, id, token) => { tabs.show("tokens"); rollouts.open(run, id, token); });
  const tabs = makeTabs({
    curves: ["Curves", { node: curvesPanel(), open: () => {} }],
    tokens: ["Tokens", rollouts],
    disagreement: ["Disagreement", disagreement],
    recipe: ["Recipe", recipe],
  });
  main.prepend(problems);
  store.addEventListener("problems", drawProblems);
  store.addEventListener("round", drawStatus);
  drawProblems();
  drawStatus();
  const [tab, run, id] = location.hash.slice(1).split("/").map(decodeURIComponent);
  if (tab === "tokens" && id) { tabs.show("tokens"); rollouts.open(run, id); }
  else tabs.show(tabs.has(tab) ? tab : "curves", true);
  document.documentElement.dataset.ready = "yes";
}

function makeTabs(views) {
  const bar = document.getElementById("tabs");
  const show = (name, open = false) => {
    for (const [key, [, panel]] of Object.entries(views)) {
      const on = key === name;
      panel.node.parentElement.hidden = !on;
      const tab = document.getElementById(`tab-${key}`);
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
    }
    store.watchRollouts = name === "tokens";
    history.replaceState(null, "", `#${name}`);
    if (open) views[name][1].open();
    drawProblems();
  };
  for (const [key, [label, panel]] of Object.entries(views)) {
    bar.append(el("button", { type: "button", role: "tab", id: `tab-${key}`, "aria-controls": `panel-${key}`, onclick: () => show(key, true) }, label));
    main.append(el("div", { role: "tabpanel", id: `panel-${key}`, "aria-labelledby": `tab-${key}`, hidden: true }, panel.node));
  }
  bar.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const names = Object.keys(views);
    const now = names.findIndex((name) => document.getElementById(`tab-${name}`).tabIndex === 0);
    const next = names[(now + by + names.length) % names.length];
    show(next, true);
    document.getElementById(`tab-${next}`).focus();
  });
  return { show, has: (name) => Boolean(views[name]) };
}

start();
