// The tab Samples: recorded rollouts with their tokens, or the answers of evaluations.
import { address } from "./address.js";
import { AnswersPanel } from "./answers.js";
import { el, segments } from "./dom.js";
import { RolloutsPanel } from "./rollouts.js";

const VIEWS = [["rollouts", "Rollouts"], ["evaluations", "Evaluations"]];

export class SamplesPanel {
  constructor() {
    this.panels = { rollouts: new RolloutsPanel(), evaluations: new AnswersPanel() };
    this.head = el("div", { class: "toolbar which" });
    this.body = el("div", {});
    this.node = el("div", { class: "samples" }, this.head, this.body);
  }

  open() {
    const asked = address.get("samples.view", "rollouts"), view = this.panels[asked] ? asked : "rollouts";
    this.head.replaceChildren(segments("Samples of", VIEWS, view, (chosen) => { address.set({ "samples.view": chosen }); this.open(); this.head.querySelector(`[data-value="${chosen}"]`).focus(); }));
    this.body.replaceChildren(this.panels[view].node);
    this.panels[view].open();
  }
}
