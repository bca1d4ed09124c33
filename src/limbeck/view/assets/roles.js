// How long sampler, teacher and learner work and wait, and what follows from it.
import { percent } from "./format.js";
import { known, meanOf } from "./series.js";

const PHASE_ROLES = { sample: "Sampler", score: "Teacher", update: "Learner" };
const MORE = { sampler: "cluster.samplers", teacher: "cluster.teachers", learner: "cluster.learners", reference: "cluster.teachers" };

// The values of a key at the steps from index `from` on.
export const knownFrom = (run, key, from) => (run.train.values[key] ?? []).slice(from).filter(known);

// Means of the steps from index `from` on, in seconds a step: { role, name, worked, waited }. A fleet counts it in its processes; with
// lag each role's queue says how long it was empty; else a role waits while the others work.
export function roleTimes(run, from) {
  const { values } = run.train;
  const mean = (key) => meanOf(knownFrom(run, key, from));
  const fleet = Object.keys(values).filter((key) => key.startsWith("seconds/worked/")).map((key) => key.slice("seconds/worked/".length)).sort((a, b) => orderOf(a) - orderOf(b) || a.localeCompare(b));
  const counted = fleet.map((role) => ({ role, name: capital(role.replace("/", " ")), worked: mean(`seconds/worked/${role}`), waited: mean(`seconds/waited/${role}`) })).filter((each) => each.worked !== null && each.waited !== null);
  if (counted.length) return counted;
  const lagged = mean("seconds/wait/sample") !== null, step = mean("seconds/step");
  const roles = Object.entries(PHASE_ROLES).flatMap(([phase, name]) => {
    const worked = mean(`seconds/${phase}`);
    if (worked === null || step === null) return [];
    return [{ role: name.toLowerCase(), name, worked, waited: lagged ? mean(`seconds/wait/${phase}`) ?? 0 : Math.max(0, step - worked) }];
  });
  const rest = roles.length && !lagged ? step - roles.reduce((total, { worked }) => total + worked, 0) : 0;
  if (rest > 0.01 * step) roles.push({ role: "rest", name: REST, worked: rest, waited: step - rest });
  return roles;
}

const REST = "Grading, recording, the rest";
const orderOf = (role) => ["sampler", "teacher", "reference", "learner"].indexOf(role.split("/")[0]);  // as a step has them
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const waitingOf = ({ worked, waited }) => waited / Math.max(worked + waited, 1e-12);

// Which role sets the pace, and what would change it.
export function verdictOf(run, roles) {
  const [first, ...others] = [...roles].sort((a, b) => waitingOf(a) - waitingOf(b));
  if (first.role === "rest") return `No role sets the pace: ${REST.toLowerCase()} take ${percent(1 - waitingOf(first), 0)} of the time. “Time by phase” among the curves says which; record.every says how often rollouts are recorded.`;
  const name = first.name.toLowerCase(), waits = percent(waitingOf(first), 0), rest = others.filter(({ role }) => role !== "rest").map((role) => `, the ${role.name.toLowerCase()} ${percent(waitingOf(role), 0)}`).join("");
  const said = waitingOf(first) > 0.5 ? `No role works most of the time: the ${name} waits least, ${waits} of the time${rest}. ` : `The ${name} sets the pace: it waits ${waits} of the time${rest}. `;
  const { rollout, cluster } = run.info.recipe;
  if (cluster) {
    const key = MORE[first.role.split("/")[0]];
    const uneven = others.some((role) => waitingOf(role) > waitingOf(first) + 0.2);
    return `${said}${rollout?.lag ? "" : "Without rollout.lag the roles take turns: with it they work at the same time. "}${key && uneven ? `A larger ${key} would make a step shorter.` : ""}`;
  }
  if (rollout?.lag) return said;
  return `${said}In one process the roles take turns, so each waits while another works. A cluster with rollout.lag lets them work at the same time.`;
}
