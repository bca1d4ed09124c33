// Splits tokens into the turns of a chat, by the special tokens of the usual templates.

// A token that is followed by the name of a role, and the text that ends the name.
const HEADERS = new Map([["<|im_start|>", "\n"], ["<|start_header_id|>", "<|end_header_id|>"], ["<start_of_turn>", "\n"], ["<|start|>", "<|message|>"]]);
const LONGEST_NAME = 16;  // tokens
// A token that is a role itself.
const ROLE_TOKEN = /^<[|｜](system|user|assistant|tool|tools|observation|developer|environment|ipython)[|｜]>$/i;
const BRACKETS = new Map([["[INST]", "user"], ["[/INST]", "assistant"], ["[SYSTEM_PROMPT]", "system"], ["[AVAILABLE_TOOLS]", "tools"], ["[TOOL_RESULTS]", "tool"]]);
const ENDS = new Set(["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|return|>", "<|call|>", "<|endoftext|>", "<|end_of_text|>",
  "</s>", "<eos>", "<｜end▁of▁sentence｜>", "[/SYSTEM_PROMPT]", "[/AVAILABLE_TOOLS]", "[/TOOL_RESULTS]"]);
const TEMPLATE_TOKEN = /^(<[^<>\s]+>|\[\/?[A-Z_]+\])$/;

export const isTemplateToken = (text) => TEMPLATE_TOKEN.test(text);

// [{ role, start, body, end }]: tokens start..body are the header, body..end what was said. Text that is in no turn
// has the role "".
export function turnsOf(tokens) {
  const turns = [];
  let turn = null;
  const close = (end) => { if (turn) turns.push({ ...turn, end }); turn = null; };
  for (let i = 0; i < tokens.length; i += 1) {
    const token = tokens[i].trim();
    if (HEADERS.has(token)) {
      close(i);
      const [role, body] = roleAfter(tokens, i + 1, HEADERS.get(token));
      turn = { role, start: i, body };
      i = body - 1;
    } else if (ROLE_TOKEN.test(token) || BRACKETS.has(token)) {
      close(i);
      turn = { role: BRACKETS.get(token) ?? ROLE_TOKEN.exec(token)[1].toLowerCase(), start: i, body: i + 1 };
    } else if (ENDS.has(token)) close(i);
    else turn ??= { role: "", start: i, body: i };
  }
  close(tokens.length);
  return turns.filter(({ role, body, end }) => role || tokens.slice(body, end).some((text) => text.trim() && !isTemplateToken(text.trim())));
}

// The name that begins at a token, and the first token after it.
function roleAfter(tokens, first, ending) {
  let name = "";
  for (let i = first; i < Math.min(tokens.length, first + LONGEST_NAME); i += 1) {
    const at = tokens[i].indexOf(ending);
    if (at >= 0) {
      const rest = tokens[i].slice(at + ending.length);
      return [nameOf(name + tokens[i].slice(0, at)), rest.trim() ? i : i + 1];
    }
    name += tokens[i];
  }
  return [nameOf(name), Math.min(tokens.length, first + LONGEST_NAME)];
}

// "assistant<|channel|>analysis" is "assistant, analysis".
const nameOf = (text) => text.replace(/<\|[^|]*\|>/g, ", ").trim() || "turn";

// What a turn says, without the line breaks that its template puts around it.
export const saidIn = (tokens, turn) => tokens.slice(turn.body, turn.end).join("").replace(/^\s*\n|\s+$/g, "");
