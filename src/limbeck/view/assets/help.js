// What each chart shows, in plain words: [what it is, what is good, what to do]. By title for the charts of their own,
// by key for all other metrics. `docs/reference/files.md` has the same keys with their definitions.

const CHART_HELP = {
  "Reverse KL": [
    "How far the student is from the teacher, in nats a token, on texts that the student wrote itself: the quantity that training makes smaller. Exact: over the teacher's whole distribution. Sampled: estimated from the sampled token alone, with the same mean and more noise; it can be below 0 by chance. Held-out: fresh samples of prompts that are not trained on. Student and teacher have the same temperature; a KL at another one is another quantity, so those have a chart of their own.",
    "It falls fast, then slowly, and held-out falls with it. Near 0 the two answer alike. Without an exact value, judge the sampled one smoothed.",
    "Flat from the start: raise learner.lr. Rises or jumps: lower it. Training falls and held-out does not: more prompts. Stays high at a few tokens: look at Disagreement, for a template or an end token that the two do not share.",
  ],
  Accuracy: [
    "The share of held-out answers that the task's grader takes for right. Only points were measured; nothing is known between them.",
    "It rises towards the teacher's own accuracy (limbeck eval --compare measures it). Two points whose intervals do not overlap differ. Those whose intervals overlap a little may differ too: this rough rule asks for more than 95%. Samples, Evaluations tests the difference on the prompts that both answered.",
    "Intervals too wide: raise eval.prompts. KL falls and accuracy does not: read answers under Samples; the grader may refuse a format, or answers may be cut.",
  ],
  Reward: [
    "The mean reward of held-out answers. Some rewards are outside of 0 to 1, so the mean is no accuracy.",
    "It rises towards the teacher's own mean reward (limbeck eval --compare measures it).",
    "Intervals too wide: raise eval.prompts. KL falls and the reward does not: read answers under Samples.",
  ],
  Entropy: [
    "How undecided each model is about the next token, in nats, averaged over the student's own texts at the rollout temperature. 0 is certain.",
    "The student's moves towards the teacher's and stays there.",
    "Student far below the teacher: it collapses onto few answers. Lower learner.lr. Student far above: it has not learned yet, or the temperature is too high.",
  ],
  "Response length": [
    "Tokens the student samples for an answer, as the mean of each step.",
    "It moves towards the teacher's usual length and stays, and few responses reach rollout.max_tokens.",
    "It grows and grows: the student does not stop. Compare the stop tokens with the end token of the chat template. Many reach the limit: see Truncated and looping.",
  ],
  "Time by phase": [
    "Where the seconds of a step go: sampling answers, grading them, scoring them by the teacher, recording, the update of the weights, and handing these to the sampler. With rollout.lag phases overlap, and their sum is more than the step.",
    "No phase is most of the time without a reason. Sampling usually takes the most.",
    "Sampling dominates: a served engine, or shorter answers. Scoring dominates: more teachers, or a smaller K. Recording shows: raise record.every. The guide on performance has more.",
  ],
  "Truncated and looping": [
    "The share of responses that were cut at rollout.max_tokens before they ended, and the share that repeat themselves.",
    "Both near 0. Above one half either is an alarm.",
    "Cut while still answering: raise rollout.max_tokens. Cut after the answer: the stop tokens are not those of the chat template. Looping: lower learner.lr or the temperature, and read some under Samples.",
  ],
  "Importance ratio": [
    "The probability of each sampled token under the weights being trained, over that under the weights that sampled it: p / μ, as the mean of each step.",
    "The mean is 1. Without lag the largest is close to 1 too.",
    "The mean is off 1: the sampler does not do what was asked; see Sampler mismatch. Only the largest is far out: rare tokens; with lag, the student moves far in an update. Lower learner.lr or rollout.lag.",
  ],
  "Effective sample size": [
    "How many of the tokens count after importance weighting, as a share (Kish): 100% where every token has the same weight.",
    "Close to 100%. Below 50% half of the samples are wasted.",
    "Lower rollout.lag or learner.lr, or take full support, where a stale sample costs no bias a state.",
  ],
  "Sampler mismatch": [
    "How much the program that samples and the one that trains disagree about the same token with the same weights, in nats. It is a check of the engine, not of the learning.",
    "0 up to rounding in one process; below 0.02 for a served engine. Above 0.1 it is an alarm.",
    "The engine has older weights, another dtype or quantisation, or did not apply the temperature that was asked for. Run limbeck check.",
  ],
  "Top tokens in common": [
    "How many of the student's most likely tokens are among the teacher's most likely ones, on average.",
    "It rises while the student learns.",
    "Low from the start and it does not rise: the two may have different templates or tokenizers. Look at Disagreement.",
  ],
  "On the support": [
    "The probability of the tokens that the loss takes exactly (the support), under each model. What the student has beyond them is left to the sampled token: unbiased, but noisier.",
    "The student's is above 90%; the more, the less noise.",
    "Low: raise objective.support. Where the share of sampled tokens on it differs from the student's probability of it, the list depends on what was sampled: that is an alarm.",
  ],
  Objective: [
    "The mean of what the update made smaller, over the trained tokens. Its gradient counts; its value is only comparable within one kind of objective.",
    "It falls, or moves around a level.",
    "Judge the run by the KL and the accuracy rather than by this.",
  ],
  "Gradient norm": [
    "The size of the gradient before it is clipped.",
    "It falls and settles. Single jumps are clipped and do no harm.",
    "It grows over many steps: lower learner.lr. Always far above learner.max_grad_norm: every update is clipped.",
  ],
  "Learning rate": ["The step size of each update: warm-up and decay included.", "What the recipe asked for.", "Set learner.lr and its schedule."],
  Throughput: [
    "Sampled tokens a second, over the whole step.",
    "Steady. The first step is slower: it warms up.",
    "It falls: responses grow, or the machine is shared. Time by phase says where the time goes.",
  ],
  "Failed and unscored": [
    "Episodes that failed, responses that no teacher scored, and responses the teacher could not be shown, of each step. All are left out of the update.",
    "0.",
    "The console and the failed episodes' kinds (under All other metrics) say why. A few are harmless; the recipe's fractions say how many stop the run.",
  ],
  "Certified error": [
    "How far a rescaled score can be from the exact one, in nats: the mean bound of the tokens that are trained on.",
    "The mean is well below teacher.max_rescale_error; wider ones are left out.",
    "Ask the teacher for more log-probs a token, or serve a baked checkpoint, which is exact.",
  ],
  "Tokens left out": [
    "Tokens the update is without because their scores are too uncertain, as a share of the tokens that were trained or left out.",
    "Below a few percent.",
    "Ask the teacher for more log-probs a token, or serve a baked checkpoint.",
  ],
  "KL by position in the response": [
    "Where in the response student and teacher disagree: the mean KL at each position, over the recorded rollouts.",
    "Level, or falling along the response.",
    "High at the start: the two have different templates, or begin answers differently. High at the end: end tokens differ. Rises all along: the student drifts to texts the teacher does not know; shorten responses.",
  ],
};

// The first pattern that fits names the metric. `of` a task, a set, a teacher: the same quantity of a part.
const KEY_HELP = [
  [/reverse_kl\/reference/, "The KL of the student to the frozen reference policy, in nats a token: how far training has moved it.", "It rises slowly, and stays in bounds that you like.", "Too far: raise objective.reference.weight, or lower learner.lr."],
  [/reverse_kl\/byte/, "The log-ratio of student and teacher summed over the bytes that were compared, for a teacher with another tokenizer.", "It falls.", "As for the reverse KL."],
  [/reverse_kl/, "The reverse KL of this part, in nats a token, at the rollout temperature.", "It falls, as the whole does.", "One part stays high: it needs more prompts of its own, or a better teacher."],
  [/entropy/, "Entropy of this part, in nats a token.", "The student's moves towards the teacher's.", "See Entropy."],
  [/support\/sampled/, "The share of sampled tokens that are on the support.", "Equal to the student's probability of the support, up to noise.", "A difference is an alarm: the list depends on what was sampled. See On the support."],
  [/support\//, "Probability of the tokens that the loss takes exactly, in this part.", "Above 90%.", "Raise objective.support."],
  [/(^|\/)lag$/, "How many updates the weights that sampled the tokens were behind, on average.", "rollout.lag, and 0 at the first step.", "Lower rollout.lag where Effective sample size falls."],
  [/importance|mismatch|top_k_overlap|objective|grad_norm|(^|\/)lr$/, "The quantity of this name in this part of the step: see the chart of the whole.", "As for the whole.", "As for the whole."],
  [/pass@/, "The chance that at least one of k answers to a prompt is right.", "It rises with the accuracy. pass@k far above the accuracy: the student can, but not reliably.", "Accuracy rises while pass@k falls: the student narrows to few answers. See Entropy."],
  [/accuracy/, "The share of right answers, or the mean reward, of this part.", "It rises.", "See Accuracy."],
  [/env\/(segments|spliced|turns|context)/, "How episodes of several turns are built: turns, sequences, and tokens the student was shown, an episode. Spliced: the share of turns that went on after the exact tokens of the one before.", "Spliced near 100%, about one segment an episode.", "Many segments: the agent rewrites earlier turns, or its template does. The guide on agents lists the reasons."],
  [/env\/(requests|malformed|errors)/, "Requests of agents, calls of tools that could not be read, and requests that were refused.", "No errors, and few malformed calls.", "Read the episodes under Samples; compare the tool format with the student's template."],
  [/failed|samples_lost/, "How many episodes or responses failed in this way, and were left out.", "0.", "The console names the first of each kind. In an evaluation they count as 0."],
  [/wait/, "Seconds this role had nothing to do before the step.", "Only the roles that are not the bottleneck wait.", "Give more workers to the role that never waits."],
  [/weights/, "The update's weights on their way to the engine's servers: bytes, and seconds until the last had them.", "Small beside the step.", "LoRA sends only the adapter; a faster disk or transport helps the rest."],
  [/^seconds/, "Seconds of this part of the step; in an evaluation, of all of it.", "Steady.", "See Time by phase."],
  [/tokens_per_second/, "Tokens a second in this phase: of whole sequences where the phase computes them.", "Steady.", "See Time by phase."],
  [/teacher_share/, "The share of the step's time that the teacher takes.", "Below one half.", "Scoring dominates: more teachers, or a smaller one."],
  [/mfu/, "Model FLOPs utilisation: what part of the device's peak the role uses.", "Updates on one accelerator: 30% to 50%. Sampling is far lower, as it is bound by memory.", "Larger micro-batches, longer units, or a compiled model."],
  [/error_bound/, "How far a score can be from the exact one, in nats.", "Well below teacher.max_rescale_error.", "Ask the teacher for more log-probs, or serve a baked checkpoint."],
  [/left_out/, "Tokens the update is without, as their scores are too uncertain.", "A few percent of the tokens at most.", "Ask the teacher for more log-probs, or serve a baked checkpoint."],
  [/view\//, "What a teacher with a prompt or a tokenizer of its own saw otherwise: tokens mapped to another one, masked, or the share of the text that was compared.", "Few masked tokens; aligned bytes near 100%.", "The guides on context distillation and other tokenizers name each reason."],
  [/response_length/, "Tokens of a response in this part.", "It settles.", "See Response length."],
  [/truncated|repetition/, "Share of responses of this part that were cut or that loop.", "Near 0.", "See Truncated and looping."],
  [/reward/, "Mean reward of the graded responses of this part.", "It rises.", "See Accuracy."],
  [/tokens/, "How many tokens: sampled, trained, or of this part.", "Steady, and trained close to sampled.", "Trained far below sampled: tokens are masked or unscored."],
  [/responses|prompts|samples/, "How many there were.", "What the recipe asks for.", "Fewer than asked: some failed. See Failed and unscored."],
  [/memory|cpu|gpu|load|rss|disk/i, "What the machine uses.", "Room is left, and it does not grow.", "Grows step by step: lower learner.micro_batch_tokens or engine.max_rows."],
];

// What the bands and bars of a chart are, of lines that have some; `band` is what a group's are.
export function aroundOf(lines, band) {
  if (lines.some((line) => line.counts)) return `Of a group of runs: ${band.said}. One run's own uncertainty is not in it.`;
  if (lines.some((line) => line.interval)) return "Bars are the 95% interval over prompts.";
  return lines.length ? "Bands and bars are one standard error, clustered by prompt." : "";
}

export const helpOf = (title) => CHART_HELP[title];

export function helpOfKey(key) {
  const found = KEY_HELP.find(([pattern]) => pattern.test(key));
  return found ? found.slice(1) : [`A number that this run writes under ${key}; Limbeck does not know it. A part of your own may report it.`, "Whoever reports it says.", "See the part that reports it."];
}
