// Answers of two evaluations to the same prompts: which were won, which were lost, and what chance would give.

export const OUTCOMES = {
  won: ["Won", "a higher reward after than before"],
  lost: ["Lost", "a lower reward after than before"],
  right: ["Both right", "a reward of 1 before and after"],
  wrong: ["Both wrong", "no reward before and after"],
  even: ["As before", "the same reward before and after, between right and wrong"],
  changed: ["Changed", "not graded: another text"],
  same: ["Same text", "not graded: the same text"],
};

const meanOf = (values) => values.reduce((total, value) => total + value, 0) / values.length;

// Rows of one set by prompt, in order: a list of samples each. Of an episode in several sequences the last one has the
// answer.
export function byPrompt(rows, set) {
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

// The mean reward of a prompt's samples; null where one was not graded.
export const rewardOf = (samples) => (samples.some((row) => row.reward === null) ? null : meanOf(samples.map((row) => row.reward)));

export function outcomeOf(before, after) {
  const was = rewardOf(before), now = rewardOf(after);
  if (was === null || now === null) return before.length === after.length && before.every((row, i) => row.same === after[i].same) ? "same" : "changed";
  if (now !== was) return now > was ? "won" : "lost";
  return now >= 1 ? "right" : now <= 0 ? "wrong" : "even";
}

// [{ key, row, before, after, was, now, outcome }] of the prompts that have an answer in both, and how many do not.
export function pairAnswers(before, after, set) {
  const [first, second] = [byPrompt(before, set), byPrompt(after, set)];
  const pairs = [...second].filter(([key]) => first.has(key)).map(([key, samples]) => (
    { key, row: samples[0], before: first.get(key), after: samples, was: rewardOf(first.get(key)), now: rewardOf(samples), outcome: outcomeOf(first.get(key), samples) }));
  return { pairs, alone: first.size + second.size - 2 * pairs.length };
}

// { counts, graded, was, now, p, low, high, exact } of pairs. p is of the exact sign test over prompts that differ, which
// with one answer a prompt is McNemar's exact test. [low, high] is the 95% interval of now - was.
export function summarisePairs(pairs) {
  const counts = Object.fromEntries(Object.keys(OUTCOMES).map((key) => [key, pairs.filter((pair) => pair.outcome === key).length]));
  const graded = pairs.filter((pair) => pair.was !== null && pair.now !== null);
  if (!graded.length) return { counts, graded: 0 };
  const was = meanOf(graded.map((pair) => pair.was)), now = meanOf(graded.map((pair) => pair.now));
  const shares = graded.every((pair) => [pair.was, pair.now].every((reward) => reward >= 0 && reward <= 1));
  const exact = graded.every((pair) => [pair.was, pair.now].every((reward) => reward === 0 || reward === 1));
  const [low, high] = exact ? intervalOfShares(counts.won, counts.lost, graded.length) : intervalOfMeans(graded.map((pair) => pair.now - pair.was));
  return { counts, graded: graded.length, was, now, shares, exact, p: signTest(counts.won, counts.lost), low, high };
}

// Two-sided exact p-value of a fair coin that fell `won` times to one side and `lost` times to the other.
export function signTest(won, lost) {
  const count = won + lost, least = Math.min(won, lost);
  let log = -count * Math.LN2, total = 0;
  for (let k = 0; k <= least; k += 1) {
    total += Math.exp(log);
    log += Math.log((count - k) / (k + 1));
  }
  return Math.min(1, 2 * total);
}

// Of a difference of two paired shares: Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of
// binomial proportions based on paired data".
function intervalOfShares(won, lost, count) {
  const up = (won + 1) / (count + 2), down = (lost + 1) / (count + 2);
  const half = Z95 * Math.sqrt((up + down - (up - down) ** 2) / (count + 2));
  return [Math.max(-1, up - down - half), Math.min(1, up - down + half)];
}

// Student's interval of a mean of differences; none of fewer than three.
function intervalOfMeans(differences) {
  const count = differences.length, mean = meanOf(differences);
  if (count < 3) return [null, null];
  const variance = differences.reduce((total, value) => total + (value - mean) ** 2, 0) / (count - 1);
  const half = student95(count - 1) * Math.sqrt(variance / count);
  return [mean - half, mean + half];
}

const Z95 = 1.959964;
const FIRST95 = [12.706, 4.303, 3.182, 2.776, 2.571];  // of 1 to 5 degrees of freedom

// The 97.5% quantile of Student's t: Cornish and Fisher's expansion, right to 0.002 from 6 degrees of freedom on.
export function student95(degrees) {
  if (degrees <= FIRST95.length) return FIRST95[degrees - 1];
  const z = Z95, powers = [z ** 3 + z, 5 * z ** 5 + 16 * z ** 3 + 3 * z, 3 * z ** 7 + 19 * z ** 5 + 17 * z ** 3 - 15 * z];
  return z + powers[0] / (4 * degrees) + powers[1] / (96 * degrees ** 2) + powers[2] / (384 * degrees ** 3);
}
