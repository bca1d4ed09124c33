// What opens at a token: its numbers, and the most likely tokens of student and teacher side by side.
import { announce, el, printable } from "./dom.js";
import { percent } from "./format.js";
import { numbersAt } from "./heat.js";

export function tokenText(text) {
  if (text === "") return "∅";
  return printable(text).replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ +| +$/g, (blanks) => "␣".repeat(blanks.length));
}

function side(name, ids, tokens, logprobs, sampled) {
  const rows = (ids ?? []).map((id, k) => {
    const p = Math.exp(logprobs[k]);
    return el("tr", { class: id === sampled ? "sampled" : "", title: `token ${id}, log-prob ${logprobs[k]}` },
      el("td", { class: "token" }, tokenText(tokens[k])),
      el("td", { class: "bar" }, el("i", { vars: { "--p": `${(100 * p).toFixed(2)}%` } })),
      el("td", { class: "p", data: { p: String(p) } }, percent(p)));
  });
  return el("table", { class: `top ${name}` }, el("caption", {}, name),
    rows.length ? el("tbody", {}, rows) : el("tbody", {}, el("tr", {}, el("td", {}, "not given by this teacher"))));
}

class Inspector {
  constructor() {
    this.node = el("div", { class: "inspector", role: "tooltip", id: "inspector", hidden: true });
    document.body.append(this.node);
  }
  show(rollout, i, span) {
    if (this.rollout === rollout && this.i === i && !this.node.hidden) return;
    Object.assign(this, { rollout, i, span });
    const at = (name) => rollout[name]?.[i];
    const trained = rollout.trained?.[i] !== false;
    this.node.replaceChildren(
      el("div", { class: "what" }, el("code", {}, tokenText(rollout.tokens[i])),
        el("span", {}, `token ${rollout.token_ids[i]} · position ${i}`, at("special") ? " · special" : "", trained ? "" : " · not trained on")),
      trained && el("dl", {}, numbersAt(rollout, i).map(([label, value, about]) => el("div", {}, el("dt", {}, label), el("dd", {}, value, el("small", {}, about))))),
      trained && el("div", { class: "sides" }, ["student", "teacher"].map((name) => side(
        name, at(`${name}_top_ids`), at(`${name}_top_tokens`), at(`${name}_top_logprobs`), rollout.token_ids[i]))),
      trained && el("p", { class: "hint" }, `Probabilities at T = ${rollout.temperature}`));
    const following = !this.node.hidden;
    this.node.hidden = false;
    if (following) this.place();
    else this.follow();
  }
  // The same in a sentence.
  say(rollout, i) {
    const numbers = rollout.trained?.[i] === false ? "not trained on" : numbersAt(rollout, i).map(([label, value]) => `${label} ${value}`).join(", ");
    announce(`${tokenText(rollout.tokens[i])}, position ${i}: ${numbers}`);
  }
  // Stays at its token, frame by frame, whatever moves it: scrolling, a window's new size, text laid out late.
  // Where its token is drawn no more, as in a tab that was left, it goes.
  follow() {
    if (!this.node.hidden) this.place();
    if (!this.node.hidden) requestAnimationFrame(() => this.follow());
  }
  place() {
    const [box] = this.span.getClientRects();
    if (!box) return this.hide();
    this.node.classList.toggle("away", box.bottom < 0 || box.top > innerHeight);
    const { offsetWidth: width, offsetHeight: height } = this.node;
    const left = Math.max(8, Math.min(innerWidth - width - 8, box.left + box.width / 2 - width / 2));
    const below = box.bottom + 8;
    const top = below + height < innerHeight ? below : Math.max(8, box.top - height - 8);
    this.node.style.setProperty("left", `${left}px`);
    this.node.style.setProperty("top", `${top}px`);
  }
  hide() {
    this.node.hidden = true;
  }
}

export const inspector = new Inspector();
