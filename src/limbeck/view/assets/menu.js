// A button with a panel below it, and lists of things to choose in such a panel.
import { el } from "./dom.js";

// `build()` gives the panel's content, anew each time it opens.
export function menu(label, build) {
  const body = el("div", { class: "menu-body" });
  const summary = el("summary", {}, label);
  const node = el("details", { class: "menu", ontoggle: () => { if (node.open) { body.replaceChildren(build()); body.querySelector("input, select, button")?.focus({ preventScroll: true }); } } }, summary, body);
  const close = (focus) => { node.open = false; if (focus) summary.focus(); };
  node.addEventListener("keydown", (event) => { if (event.key === "Escape" && node.open) { event.stopPropagation(); close(true); } });
  document.addEventListener("pointerdown", (event) => { if (node.open && !node.contains(event.target)) close(false); });
  return Object.assign(node, { close, relabel: (text) => summary.replaceChildren(text) });
}

// Boxes under heads, found by typing. `heads`: [head, [[id, label, about], ...]]; `isOn(id)`; `onchange(id, on)`.
export function boxes(heads, isOn, onchange, foot) {
  const sections = heads.filter(([, items]) => items.length).map(([head, items]) => {
    const rows = items.map(([id, label, about]) => {
      const box = el("input", { type: "checkbox", checked: isOn(id), data: { id }, onchange: () => onchange(id, box.checked) });
      return el("label", { class: "check", title: about, data: { find: `${label} ${id}`.toLowerCase() } }, box, el("span", {}, label));
    });
    return el("fieldset", {}, el("legend", {}, head), rows);
  });
  const search = el("input", { type: "search", placeholder: "Find", "aria-label": "Find in this list", oninput: () => {
    const wanted = search.value.trim().toLowerCase();
    for (const section of sections) {
      const rows = [...section.querySelectorAll("label")];
      for (const row of rows) row.hidden = !row.dataset.find.includes(wanted);
      section.hidden = rows.every((row) => row.hidden);
    }
  } });
  return el("div", { class: "boxes" }, search, el("div", { class: "boxes-list" }, sections), foot);
}
