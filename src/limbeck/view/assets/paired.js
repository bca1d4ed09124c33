// Answers of two evaluations to the same prompts: which were won, which were lost, and what chance would give.
import { meanOf } from "./series.js";
import { studentP, studentPoint } from "./student.js";

export const OUTCOMES = {
  won: ["Won", "a higher reward after than before"],
  lost: ["Lost", "a lower reward after than before"],
  right: ["Both right", "a reward of 1 before and after"],
  wrong: ["Both wrong", "no reward before and after"],
  even: ["As before", "the same reward before and after, between right and wrong"],
  changed: ["Changed", "not graded: another text"],
  same: ["Same text", "not graded: the same text"],
};

// Rows of one set by prompt, in order: a list of samples each. Of an episode in several sequences the last one has the
// answer.
function byPrompt(rows, set) {
  const prompts = new Map();
  for (const row of rows) {
    if (row.set !== set) continue;
    if (!prompts.has(row.prompt_id)) prompts.set(row.prompt_id, []);
    const samples = prompts.get(row.prompt_id);
    if (row.segment && samples.at(-1)?.sample === row.sample) samples.pop();
    samples.push(row);
  }
  return prompts;
}

// The mean reward of `count` samples of a prompt, of which those that failed are no rows and earned 0; null where one was
// not graded.
const rewardOf = (samples, count = samples.length) => (samples.some((row) => row.reward === null) ? null : count ? samples.reduce((total, row) => total + row.reward, 0) / count : 0);

// One side: its prompts, how many samples each has, and how many prompts have none as all of theirs failed. `failed` is
// how many episodes did, as metrics.jsonl says.
export function sideOf(rows, set, failed = 0) {
  const prompts = byPrompt(rows, set), samples = Math.max(1, ...[...prompts.values()].map((some) => some.length));
  const holes = [...prompts.values()].reduce((total, some) => total + samples - some.length, 0);
  const whole = failed >= holes && (failed - holes) % samples === 0;  // else the file is cut, and its holes say nothing
  return { prompts, failed, samples: whole ? samples : null, missing: whole ? (failed - holes) / samples : 0 };
}
const rewardIn = (side, samples) => (samples ? rewardOf(samples, side.failed && side.samples ? side.samples : undefined) : 0);
export const rewardsIn = (side) => [...side.prompts].map(([key, samples]) => ({ key, row: samples[0], after: samples, now: rewardIn(side, samples) }));

function outcomeOf(before, after, was, now) {
  if (was === null || now === null) return before.length === after.length && before.every((row, i) => row.same === after[i].same) ? "same" : "changed";
  if (now !== was) return now > was ? "won" : "lost";
  return now >= 1 ? "right" : now <= 0 ? "wrong" : "even";
}

// One that is not known is taken for the same.
export const asksTheSame = (a, b) => !a.question || !b.question || a.question === b.question;

// { pairs, alone, others, bothFailed }. `pairs` of the prompts that both sides were asked: { key, row, before, after, was, now,
// outcome }; without a row where it failed. `alone`: how many have an answer on one side only, and nobody knows why.
// `others`: how many ids stand for another question on the other side. `bothFailed`: prompts of which no side has a row.
export function pairAnswers(first, second) {
  const keys = [...new Set([...second.prompts.keys(), ...first.prompts.keys()])], pairs = [], lone = [[], []];
  let others = 0;
  const pair = (key) => {
    const before = first.prompts.get(key) ?? [], after = second.prompts.get(key) ?? [], was = rewardIn(first, before), now = rewardIn(second, after);
    pairs.push({ key, row: after[0] ?? before[0], before, after, was, now, outcome: outcomeOf(before, after, was, now) });
  };
  for (const key of keys) {
    const [before, after] = [first, second].map(({ prompts }) => prompts.get(key)?.[0]);
    if (before && after) { if (asksTheSame(before, after)) pair(key); else others += 1; } else lone[before ? 0 : 1].push(key);
  }
  const failedHere = [[second, lone[0]], [first, lone[1]]].map(([side, some]) => some.length <= side.missing && !others);
  failedHere.forEach((known, i) => { if (known) lone[i].forEach(pair); });
  const left = [second.missing - lone[0].length, first.missing - lone[1].length];
  const bothFailed = failedHere.every(Boolean) && left[0] === left[1] ? left[0] : 0;
  return { pairs, others, bothFailed, alone: failedHere.reduce((total, known, i) => total + (known ? 0 : lone[i].length), 0) };
}

// { counts, graded, was, now, shares, exact, p, low, high } of pairs, and of `bothFailed` more that are 0 on both sides. With one
// reward of 0 or 1 a prompt it is McNemar's exact test; else Student's of the prompts' differences. [low, high] is the 95%
// interval of now - was, which leaves out 0 exactly where p < 0.05; p, low and high are null where there is too little to say.
export function summarisePairs(pairs, bothFailed = 0) {
  const counts = Object.fromEntries(Object.keys(OUTCOMES).map((key) => [key, pairs.filter((pair) => pair.outcome === key).length]));
  const graded = [...pairs.filter((pair) => pair.was !== null && pair.now !== null), ...new Array(bothFailed).fill({ was: 0, now: 0 })];
  if (!graded.length) return { counts, graded: 0 };
  const was = meanOf(graded.map((pair) => pair.was)), now = meanOf(graded.map((pair) => pair.now));
  const all = (test) => graded.every((pair) => [pair.was, pair.now].every(test));
  const shares = all((reward) => reward >= 0 && reward <= 1);
  const exact = all((reward) => reward === 0 || reward === 1) && pairs.every((pair) => (pair.before?.length ?? 1) <= 1 && (pair.after?.length ?? 1) <= 1);
  const found = exact ? mcNemar(counts.won, counts.lost, graded.length) : ofMeans(graded.map((pair) => pair.now - pair.was));
  return { counts, graded: graded.length, was, now, shares, exact, ...found };
}

// Two-sided exact p-value of a fair coin that fell `won` times to one side and `lost` times to the other.
export const signTest = (won, lost) => Math.min(1, 2 * tailOf(won + lost, Math.min(won, lost), 0.5));

// The probability of at most `most` successes in `count` trials of probability `p`, 0 < p < 1.
function tailOf(count, most, p) {
  let log = count * Math.log1p(-p), total = 0;
  for (let k = 0; k <= most; k += 1) {
    total += Math.exp(log);
    log += Math.log((count - k) / (k + 1)) + Math.log(p) - Math.log1p(-p);
  }
  return total;
}

// Of a difference of two paired shares: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of
// binomial proportions based on paired data", widened where the exact interval of Clopper and Pearson, given how many prompts
// differ, is wider. That one leaves out 0 exactly where McNemar's exact test has p < 0.05, and so does this.
function mcNemar(won, lost, count) {
  const up = (won + 1) / (count + 2), down = (lost + 1) / (count + 2), differ = (won + lost) / count, p = signTest(won, lost);
  const half = Z95 * Math.sqrt((up + down - (up - down) ** 2) / (count + 2));
  const exact = [differ * (2 * leastShare(won, lost) - 1), differ * (1 - 2 * leastShare(lost, won))];
  let low = Math.max(-1, Math.min(exact[0], up - down - half)), high = Math.min(1, Math.max(exact[1], up - down + half));
  if (p < 0.05 && low <= 0 && high >= 0) [low, high] = won > lost ? [exact[0], high] : [low, exact[1]];
  return { p, low, high };
}

// The lower end of Clopper and Pearson's 95% interval for the share of `won`.
function leastShare(won, lost) {
  let [low, high] = [0, won ? 1 : 0];
  for (let i = 0; won && i < 50; i += 1) {
    const middle = (low + high) / 2;
    if (tailOf(won + lost, lost, 1 - middle) < 0.025) low = middle;
    else high = middle;
  }
  return low;
}

const Z95 = 1.959964;

// Student's test and interval of a mean of differences; none of fewer than three, or where all are the same.
function ofMeans(differences) {
  const count = differences.length, mean = meanOf(differences);
  const error = Math.sqrt(differences.reduce((total, value) => total + (value - mean) ** 2, 0) / Math.max(1, count - 1) / count);
  if (count < 3 || error <= 1e-12 * Math.abs(mean)) return { p: null, low: null, high: null };
  const half = studentPoint(count - 1) * error;
  return { p: studentP(mean / error, count - 1), low: mean - half, high: mean + half };
}
