// Where the data come from: the server beside the run, or the page itself in a report.

export class Lost extends Error {}

// JSON's tables without a prototype: a key of a file may be `constructor` or `__proto__`, and finds nothing but itself.
export function bare(value) {
  if (Array.isArray(value)) value.forEach(bare);
  else if (value !== null && typeof value === "object") {
    Object.values(value).forEach(bare);
    Object.setPrototypeOf(value, null);
  }
  return value;
}

class Live {
  live = true;
  async get(what, query = {}) {
    const answer = await fetch(`api/${what}?${new URLSearchParams(query)}`).catch(() => { throw new Lost("the server does not answer: it was stopped"); });
    const data = bare(await answer.json().catch(() => ({})));
    if (!answer.ok) throw new Error(data.error || `the server answered ${answer.status}`);
    return data;
  }
  runs(since) { return this.get("runs", { since }); }
  metrics(run, offset) { return this.get("metrics", { run, offset }); }
  rollouts(run, known, last) { return this.get("rollouts", { run, known, last }); }
  rollout(run, id) { return this.get("rollout", { run, id }); }
  async search(run, text) { return (await this.get("search", { run, text })).ids; }
  evaluations(run) { return this.get("evaluations", { run }); }
  answers(run, step) { return this.get("answers", { run, step }); }
  answer(run, step, number) { return this.get("answer", { run, step, number }); }
  async found(run, step, text) { return (await this.get("found", { run, step, text })).numbers; }
  disagreement(run, wanted) { return this.get("disagreement", { run, ...wanted }); }
}

class Embedded {
  live = false;
  constructor(data) { this.data = data; }
  async runs() { return this.data.runs; }
  async metrics(run) { return this.data.metrics[run]; }
  async rollouts(run) { return this.data.rollouts[run]; }
  async rollout(run, id) {
    const found = this.data.details[run][id];
    if (!found) throw new Error("This rollout's tokens are not in the report; `limbeck view` shows them all.");
    return found;
  }
  async search(run, text) {
    const wanted = text.toLowerCase();
    return this.data.rollouts[run].rows
      .filter((row) => [row.prompt_text, row.response_text, row.prompt_id].some((t) => t?.toLowerCase().includes(wanted)))
      .map((row) => row.id);
  }
  async evaluations(run) { return this.data.evaluations[run]; }
  async answers(run, step) { return this.data.evaluations[run].files[step]; }
  async answer(run, step, number) {
    const file = this.data.evaluations[run].files[step];
    return { ...file.rows[number], ...file.whole[number] };
  }
  async found(run, step, text) {
    const wanted = text.toLowerCase(), file = this.data.evaluations[run].files[step];
    return file.rows.filter((row, i) => [row.prompt_id, file.whole[i].prompt, file.whole[i].response].some((t) => t.toLowerCase().includes(wanted))).map((row) => row.number);
  }
  async disagreement(run, { steps }) { return this.data.disagreement[run][steps] ?? this.data.disagreement[run].late; }
}

const embedded = document.getElementById("data");
export const source = embedded ? new Embedded(bare(JSON.parse(embedded.textContent))) : new Live();
