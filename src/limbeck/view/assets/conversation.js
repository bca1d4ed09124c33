// A rollout as a conversation: the turns of its prompt and of its response.
import { isTemplateToken, saidIn, turnsOf } from "./chat.js";
import { el } from "./dom.js";
import { withBreaks } from "./flow.js";
import { num, whole } from "./format.js";
import { meanOf } from "./series.js";
import { speechNodes } from "./speech.js";

// The prompt's turns as its template's tokens divide it: [{ role, text }].
function promptTurns(main) {
  const tokens = main.prompt_tokens ?? [], turns = turnsOf(tokens);
  if (!turns.some((turn) => turn.role)) return [{ role: "prompt", text: main.prompt_text || tokens.join("") }];
  const last = turns.at(-1);
  return turns.filter((turn) => turn !== last || turn.end < tokens.length || saidIn(tokens, turn))  // the last one may be the response's header
    .map((turn) => ({ role: turn.role || "no role", text: saidIn(tokens, turn) }));
}

// The response's turns: [{ role, start, end, text, sampled, kl, finish, reward }], as they were recorded where there are
// several, else by the template's tokens. The first of those began with the prompt's last header, at a place below 0.
function responseTurns(main) {
  const recorded = main.turns ?? [], before = main.prompt_tokens?.length ?? 0;
  const divided = recorded.length > 1 ? [] : turnsOf([...(main.prompt_tokens ?? []), ...main.tokens]).filter((turn) => turn.role && turn.end > before);
  const turns = recorded.length > 1 ? recorded  // a turn of the template has the tokens that end it
    : divided.map((turn, i) => ({ ...turn, start: turn.start - before, end: (divided[i + 1]?.start ?? before + main.tokens.length) - before }));
  return (turns.length ? turns : [{ role: "student", start: 0, end: main.tokens.length }]).map((turn) => {
    const start = Math.max(0, turn.start), places = range(start, turn.end).filter((i) => main.trained?.[i]);
    return { ...turn, start, text: textOf(main, turn, start), sampled: places.length, kl: meanKl(main, places) };
  });
}

const range = (start, end) => Array.from({ length: Math.max(0, end - start) }, (_, i) => start + i);

function meanKl(main, places) {
  const values = places.map((i) => main.reverse_kl?.[i] ?? (main.student_logprob?.[i] ?? NaN) - (main.teacher_logprob?.[i] ?? NaN)).filter(Number.isFinite);
  return meanOf(values);
}

// By its tokens, without those that end it; as it was recorded where a character is split over several tokens.
function textOf(main, turn, start) {
  const first = turn.body === undefined ? start : Math.max(start, turn.body - (main.prompt_tokens?.length ?? 0));
  let end = turn.end;
  while (end > first && (main.special?.[end - 1] || !main.tokens[end - 1]?.trim())) end -= 1;
  const said = main.tokens.slice(first, end).join("").trim();
  if (turn.text && (said.includes("\ufffd") || turn.role !== "student")) return turn.text;
  return said.includes("\ufffd") ? main.response_text ?? said : said;
}

// What heads a turn: its role, and the numbers of one that the student sampled.
function turnHead(turn) {
  const { role, sampled, kl, finish, reward } = turn;
  return el("h4", { class: sampled ? "role" : "role shown" }, role, el("span", { class: "turn-facts" },
    sampled > 0 && el("span", {}, `${whole(sampled)} tokens`), kl !== null && kl !== undefined && el("span", {}, `KL ${num(kl, 3)}`),
    reward !== null && reward !== undefined && el("span", {}, `reward ${num(reward, 2)}`),
    finish === "length" && el("span", { class: "flag" }, "cut at its limit")));
}

const bubble = (turn, side) => el("section", { class: `turn ${side}${turn.role === "tool" ? " tool" : ""}` }, turnHead(turn), speechNodes(turn.text ?? "", turn.role === "system" ? SYSTEM_LINES : undefined));

const SYSTEM_LINES = 6;  // of tools and rules that are the same in every rollout
const SPLIT = "\ufffd stands for a part of a character that is split over several tokens.";

export function promptChat(main) {
  const turns = promptTurns(main);
  return el("div", { class: "chat" }, turns.map((turn) => bubble(turn, "asked")), turns.some((turn) => turn.text.includes("\ufffd")) && el("p", { class: "hint" }, SPLIT));
}

export function responseChat(main) {
  return el("div", { class: "chat" }, responseTurns(main).map((turn) => bubble(turn, turn.sampled ? "said" : "asked")));
}

// What heads the turns within a response's tokens, by the place of their first token.
export const headsOf = (main) => new Map(responseTurns(main).map((turn) => [turn.start, turnHead(turn)]));

export function rawTokens(main) {
  return el("div", { class: "raw" }, main.prompt_tokens.map((text, i) => (
    el("span", { class: isTemplateToken(text.trim()) ? "p special" : "p", title: `token ${main.prompt_ids?.[i] ?? "?"} · position ${i} of the prompt` }, withBreaks(text)))));
}

// A response as text, turn by turn where there are several: what a difference is taken of.
export function transcript(main) {
  const turns = responseTurns(main);
  return turns.length > 1 ? turns.map((turn) => `[${turn.role}] ${turn.text}`).join("\n") : main.response_text ?? turns[0].text;
}
