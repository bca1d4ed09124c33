// The page: its tabs, its theme, and the notices of what could not be read.
import { address } from "./address.js";
import { updateAll } from "./charts.js";
import { curvesPanel } from "./curves.js";
import { DisagreementPanel } from "./disagreement.js";
import { el, printable } from "./dom.js";
import { unknownKeys } from "./groups.js";
import { recipePanel } from "./recipe.js";
import { RunsPanel } from "./runs.js";
import { SamplesPanel } from "./samples.js";
import { source } from "./source.js";
import { store } from "./store.js";
import { SystemPanel } from "./system.js";
import { makeTabs } from "./tabs.js";

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
  const isDue = (run, part) => (part === "rollouts" ? address.tab === "samples" : part !== "metrics" || run.step || !(run.live || run.state === "new"));
  const texts = [...store.problems, ...unknownKeys().map((key) => `The address groups by ${key}, a key that no run here has.`)].map((text) => ["", text]);
  texts.push(...store.shown.flatMap((run) => Object.entries(run.problems).flatMap(([part, texts]) => (isDue(run, part) ? texts : [])).map((text) => [store.runs.length > 1 ? run.id : "", text])));
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
  document.title = printable(`${store.folder} · Limbeck`);
  main.querySelector("h1").textContent = document.title;
  main.prepend(problems);
  const tabs = makeTabs({
    runs: ["Runs", new RunsPanel(), () => store.runs.length > 1],
    curves: ["Curves", curvesPanel()],
    samples: ["Samples", new SamplesPanel()],
    disagreement: ["Disagreement", new DisagreementPanel()],
    system: ["System", new SystemPanel()],
    recipe: ["Recipe", recipePanel()],
  }, document.getElementById("tabs"), main, (name) => { store.watchRollouts = name === "samples"; drawProblems(); });
  store.addEventListener("problems", drawProblems);
  store.addEventListener("round", () => { tabs.refresh(); drawStatus(); });
  drawStatus();
  document.documentElement.dataset.ready = "yes";
}

start();
