// The tabs: which one is open is in the address, and so is what its panel shows.
import { address } from "./address.js";
import { el, fadingEdges } from "./dom.js";

// `views`: name -> [label, panel, when]. A panel has its `node` and `open()`, which shows what the address says. `when()`
// says whether there is something for the tab to show; without it, there always is. `opened(name)` is called before `open`.
export function makeTabs(views, bar, main, opened) {
  const tabOf = (name) => document.getElementById(`tab-${name}`);
  const names = () => Object.keys(views).filter((name) => views[name][2]?.() ?? true);
  const show = (name) => {
    for (const key of Object.keys(views)) {
      document.getElementById(`panel-${key}`).hidden = key !== name;
      tabOf(key).setAttribute("aria-selected", key === name);
      tabOf(key).tabIndex = key === name ? 0 : -1;
    }
    tabOf(name).scrollIntoView({ block: "nearest", inline: "nearest" });
    opened(name);
    views[name][1].open();
  };
  const open = () => {
    if (!names().includes(address.tab)) { address.tab = names()[0]; address.set({}); }
    show(address.tab);
  };
  const refresh = () => { for (const name of Object.keys(views)) tabOf(name).hidden = !names().includes(name); };
  for (const [key, [label, panel]] of Object.entries(views)) {
    bar.append(el("button", { type: "button", role: "tab", id: `tab-${key}`, "aria-controls": `panel-${key}`, onclick: () => address.go(key) }, label));
    main.append(el("div", { role: "tabpanel", id: `panel-${key}`, "aria-labelledby": `tab-${key}`, hidden: true }, el("h2", { class: "hidden" }, label), panel.node));
  }
  fadingEdges(bar);
  bar.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const all = names();
    const next = all[(all.indexOf(address.tab) + by + all.length) % all.length];
    address.go(next);
    tabOf(next).focus();
  });
  address.addEventListener("navigate", open);
  refresh();
  open();
  return { refresh };
}
