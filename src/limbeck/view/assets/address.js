// The page's state in its address, so that a link opens what its sender saw: `#curves?runs=a,b&smooth=0.6&zoom=10-90`.
//
// A key of one tab is named with it, such as `curves.smooth`. The address has it without the tab, and only while that tab
// is open; meanwhile the page remembers it. A key without a dot is of all tabs, and one of SHARED. A panel reads its keys in
// `open()`, which is called again when somebody goes back, edits the address or follows a link.

const SHARED = {
  run: "the run that Samples, Disagreement, System and Recipe show",
  runs: "the runs that are shown, where they are not the first few",
  group: "recipe keys by which runs are put together: see `groups.js`",
  band: "what the band around a group's mean is",
};
const OLD_TABS = { tokens: "samples" };

const decoded = (text) => { try { return decodeURIComponent(text); } catch { return text; } };
const encoded = (text) => encodeURIComponent(text).replaceAll("%3A", ":").replaceAll("%2F", "/").replaceAll("%20", "+");
const written = (value) => (Array.isArray(value) ? value.map((item) => encoded(String(item))).join(",") : value === true ? "1" : value === false ? "0" : encoded(String(value)));

// A raw value as what its fallback is: a list, a switch, a number or a text. One that is no such thing is the fallback.
function readAs(raw, fallback) {
  const text = (part) => decoded(part.replaceAll("+", " "));
  if (Array.isArray(fallback)) return raw ? raw.split(",").map(text) : [];
  if (typeof fallback === "boolean") return raw === "1" ? true : raw === "0" ? false : fallback;
  if (typeof fallback === "number") return raw !== "" && Number.isFinite(Number(text(raw))) ? Number(text(raw)) : fallback;
  return text(raw);
}

class Address extends EventTarget {
  constructor() {
    super();
    this.values = new Map();  // key -> as it is written
    this.defaults = new Map();  // key -> its default as it would be written
    this.read();
    addEventListener("hashchange", () => {
      if (location.hash === this.hash()) return;
      this.read();
      this.dispatchEvent(new Event("navigate"));
    });
  }

  // A link of earlier versions was `#tokens/RUN/ROLLOUT`.
  read() {
    const [path, query = ""] = location.hash.slice(1).split("?");
    const [tab, run, rollout] = path.split("/").map(decoded);
    this.tab = OLD_TABS[tab] ?? tab;
    for (const key of [...this.values.keys()]) if (this.isIn(key, this.tab)) this.values.delete(key);
    for (const part of query.split("&").filter(Boolean)) {
      const [key, ...rest] = part.split("=");
      this.values.set(decoded(key) in SHARED ? decoded(key) : `${this.tab}.${decoded(key)}`, rest.join("="));
    }
    if (run) this.values.set("run", written(run));
    if (rollout) this.values.set(`${this.tab}.rollout`, written(rollout));
  }

  isIn(key, tab) { return key in SHARED || key.startsWith(`${tab}.`); }

  // What a key says, in the kind of `fallback`: a list, a switch, a number or a text. The fallback, which is what a text
  // may also be without, is the key's default: it is never written.
  get(key, fallback = null) {
    requireKey(key);
    if (fallback !== null) this.defaults.set(key, written(fallback));
    return this.values.has(key) ? readAs(this.values.get(key), fallback) : fallback;
  }
  has(key) { return this.values.has(key); }
  // A list, or null where there is none: of which an empty one is something else.
  list(key) { return this.has(key) ? readAs(this.values.get(key), []) : null; }

  // Keeps the keys; null forgets one. The tab stays, and Back does not undo it.
  set(changes) {
    this.values = this.with(changes);
    const hash = this.hash();
    if (hash !== location.hash) history.replaceState(null, "", hash);
  }

  // Goes to a tab, with some keys changed, as a step that Back undoes.
  go(tab, changes = {}) {
    const before = this.hash();
    this.values = this.with(changes);
    this.tab = tab;
    const hash = this.hash();
    if (hash !== before) history.pushState(null, "", hash);
    this.dispatchEvent(new Event("navigate"));
  }

  // The address of a tab as it would be with some keys changed: for `href`.
  link(tab, changes = {}) { return this.hash(tab, this.with(changes)); }

  with(changes) {
    const values = new Map(this.values);
    for (const [key, value] of Object.entries(changes)) {
      requireKey(key);
      if (value === null || value === undefined || written(value) === this.defaults.get(key)) values.delete(key);
      else values.set(key, written(value));
    }
    return values;
  }

  hash(tab = this.tab, values = this.values) {
    const parts = [...values].filter(([key]) => this.isIn(key, tab)).map(([key, value]) => `${key in SHARED ? key : encoded(key.slice(tab.length + 1))}=${value}`);
    return `#${encodeURIComponent(tab)}${parts.length ? `?${parts.sort().join("&")}` : ""}`;
  }
}

function requireKey(key) {
  if (key in SHARED) return;
  const name = key.slice(key.indexOf(".") + 1);
  if (!key.includes(".")) throw new Error(`address key ${key}: name it with its tab, such as curves.${key}`);
  if (name in SHARED) throw new Error(`address key ${key}: ${name} is a key of all tabs, and would be read as that one`);
}

export const address = new Address();
