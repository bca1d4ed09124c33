// Elements without markup: text goes in as text, so nothing a model wrote is ever parsed, and only after
// `printable`, so that nothing hides in it either.

export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || (value === false && !name.startsWith("aria-"))) continue;
    if (name === "class") node.className = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "vars") for (const [key, v] of Object.entries(value)) node.style.setProperty(key, v);
    else if (name.startsWith("aria-")) node.setAttribute(name, printable(String(value)));
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && typeof value !== "string") node[name] = value;
    else node.setAttribute(name, value === true ? "" : name === "value" ? value : printable(String(value)));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false)
    .map((child) => (child instanceof Node ? child : printable(String(child)))));
  return node;
}

// Characters that hide, reorder or control text, as something to see. Line breaks and tabs stay, and so do joiners where they are
// spelling: between letters of scripts whose letters join, from Arabic to Mongolian, and between emoji.
const LETTER = "[\\u0600-\\u061b\\u061d-\\u0dff\\u1000-\\u109f\\u1780-\\u180d\\u180f-\\u18af]", EMOJI = "\\u2190-\\u2bff\\u{1f000}-\\u{1faff}";
const SPELLING = `(?<=${LETTER}[\\u200c\\u200d])${LETTER}|(?<=[${EMOJI}\\ufe0f]\\u200d)[${EMOJI}]`;  // seen from behind the joiner
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}]|[\ud800-\udfff]/u;
const HIDDEN = new RegExp(`(?:${CONTROLS.source})(?!${SPELLING})`, "gu");

export function printable(text) {
  return text.replace(HIDDEN, (char) => {
    const code = char.codePointAt(0);
    return `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}

export function debounce(wait, run) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => run(...args), wait);
  };
}

// A labelled <select>; options are [value, text].
export function choice(label, options, value, onchange) {
  const select = el("select", { onchange: () => onchange(select.value) });
  for (const [key, text] of options) select.append(el("option", { value: key, selected: key === value }, text));
  return el("label", { class: "field" }, el("span", {}, label), select);
}

// Buttons of which one is pressed; options are [value, text].
export function segments(label, options, value, onchange) {
  const group = el("div", { class: "segments", role: "radiogroup", "aria-label": label });
  const press = (chosen, focus) => {
    for (const button of group.children) {
      const on = button.dataset.value === chosen;
      button.setAttribute("aria-checked", on);
      button.tabIndex = on ? 0 : -1;
      if (on && focus) button.focus();
    }
  };
  for (const [key, text] of options) {
    const choose = (focus) => { press(key, focus); onchange(key); };
    group.append(el("button", { type: "button", role: "radio", data: { value: key }, onclick: () => choose(false) }, text));
  }
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const keys = options.map(([key]) => key);
    const now = keys.indexOf(document.activeElement.dataset.value);
    const next = keys[(now + step + keys.length) % keys.length];
    press(next, true);
    onchange(next);
  });
  press(value, false);
  return group;
}

export function check(label, value, onchange) {
  const box = el("input", { type: "checkbox", checked: value, onchange: () => onchange(box.checked) });
  return el("label", { class: "check" }, box, el("span", {}, label));
}

// A place that is wider than the window scrolls sideways, with the keyboard too, and its edges fade where there is more.
export function scroller(label, child) {
  const node = el("div", { class: "scroll", role: "group", "aria-label": label }, child);
  new ResizeObserver(() => { node.tabIndex = node.scrollWidth > node.clientWidth ? 0 : -1; }).observe(child);
  return fadingEdges(node, child);
}

export function fadingEdges(node, child = node.firstElementChild) {
  const fade = () => {
    const after = node.scrollWidth - node.clientWidth - node.scrollLeft;
    node.style.setProperty("--before", node.scrollLeft > 1 ? "28px" : "0px");
    node.style.setProperty("--after", after > 1 ? "28px" : "0px");
  };
  node.classList.add("fading");
  node.addEventListener("scroll", fade, { passive: true });
  const sizes = new ResizeObserver(fade);
  for (const each of [node, child]) if (each) sizes.observe(each);
  return node;
}

// For ears: what a key has moved to. The eyes see it where it is.
const spoken = el("div", { class: "hidden", role: "status", "aria-live": "polite" });
document.body.append(spoken);

export function announce(text) {
  spoken.textContent = printable(text);
}

export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
