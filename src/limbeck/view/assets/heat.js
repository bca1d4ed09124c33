// What a token's colour says: one way of reading it a measure, on a scale safe for colour-blind eyes.
import { num, percent } from "./format.js";

// at(rollout, i) -> number or null; diverging measures run from blue (below 0) to orange (above).
export const MEASURES = [
  { id: "log_ratio", label: "Log-ratio", diverging: true, least: 0.5,
    ends: ["teacher finds it likelier", "student finds it likelier"], at: (r, i) => minus(r.student_logprob?.[i], r.teacher_logprob?.[i]) },
  { id: "reverse_kl", label: "Exact KL", least: 0.2, ends: ["agree", "disagree"], at: (r, i) => r.reverse_kl?.[i] ?? null },
  { id: "student_entropy", label: "Student entropy", least: 0.5, ends: ["sure", "unsure"], at: (r, i) => r.student_entropy?.[i] ?? null },
  { id: "teacher_entropy", label: "Teacher entropy", least: 0.5, ends: ["sure", "unsure"], at: (r, i) => r.teacher_entropy?.[i] ?? null },
  { id: "advantage", label: "Advantage", diverging: true, least: 0.5, ends: ["worse than its group", "better than its group"], empty: "Every advantage is 0: without objective.task_reward the teacher's scores are all that trains.",
    at: (r, i) => (r.trained?.[i] ? r.advantage ?? null : null) },
  { id: "mask", label: "Loss mask", flat: true, least: 1, ends: ["not trained on", "trained on"], at: (r, i) => (r.trained?.[i] ? 1 : 0) },
];

const minus = (a, b) => (a === null || a === undefined || b === null || b === undefined ? null : a - b);

export const measure = (id) => MEASURES.find((m) => m.id === id) ?? MEASURES[0];

// The value at which colour is full: the 98th percentile, so that one outlier does not pale the rest.
export function scaleOf(which, rollouts) {
  if (which.flat) return 1;
  const sizes = rollouts.flatMap((r) => (r.tokens ?? []).map((_, i) => Math.abs(which.at(r, i) ?? 0))).sort((a, b) => a - b);
  return Math.max(which.least, sizes[Math.floor(0.98 * (sizes.length - 1))] ?? 0);
}

// [hue class, strength in 0..1]
export function heat(which, value, scale) {
  if (value === null || value === undefined) return ["none", 0];
  const strength = Math.min(1, Math.abs(value) / scale);
  return [which.diverging && value < 0 ? "cold" : "warm", strength < 0.02 ? 0 : Math.sqrt(strength)];
}

export function numbersAt(r, i) {
  const p = (logprob) => (logprob === null || logprob === undefined ? null : Math.exp(logprob));
  return [
    ["student p", percent(p(r.student_logprob?.[i]), 2), `log ${num(r.student_logprob?.[i], 3)}`],
    ["teacher p", percent(p(r.teacher_logprob?.[i]), 2), `log ${num(r.teacher_logprob?.[i], 3)}`],
    ["log-ratio", num(minus(r.student_logprob?.[i], r.teacher_logprob?.[i])), "log p − log q"],
    ["exact KL", num(r.reverse_kl?.[i]), "nats"],
    ["entropy", `${num(r.student_entropy?.[i], 3)} / ${num(r.teacher_entropy?.[i], 3)}`, "student / teacher"],
    ["sampler", num(minus(r.student_logprob?.[i], r.behaviour_logprob?.[i])), "log p − log μ"],
  ];
}
