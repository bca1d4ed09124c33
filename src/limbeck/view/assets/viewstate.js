// How the curves are looked at, kept in the address: `#curves?x=tokens&smooth=0.6&zoom=10-90`.
import { X_AXES } from "./axes.js";
import { address } from "./address.js";
import { debounce } from "./dom.js";

const KEYS = { x: "steps", smooth: 0, log: false, zoom: "", outliers: false, overlay: false, healthy: false, more: false, chart: "", find: "" };

let unwritten = {};

class View extends EventTarget {
  constructor() {
    super();
    this.read();
  }
  read() {
    if (Object.keys(unwritten).length) write();
    for (const [key, fallback] of Object.entries(KEYS)) this[key] = address.get(`curves.${key}`, fallback);
    if (!Object.hasOwn(X_AXES, this.x)) this.x = "steps";
    this.smooth = Math.min(0.99, Math.max(0, this.smooth));
    const [from, to] = this.zoom.split("-").map(Number);
    this.zoom = this.zoom && from < to ? [from, to] : null;
  }
}
export const view = new View();

// Keeps what changed in the address, and tells the charts. Another axis is not zoomed into the same numbers. A slider changes
// many times a second, and browsers limit how often an address may: it is written when the hand rests.
const write = () => { const changes = unwritten; unwritten = {}; address.set(changes); };
const writeSoon = debounce(120, write);

export function setView(changes) {
  if (changes.x && changes.x !== view.x) changes = { zoom: null, ...changes };
  Object.assign(view, changes);
  for (const [key, value] of Object.entries(changes)) unwritten[`curves.${key}`] = key === "zoom" && value ? value.map((end) => Number(Math.max(0, end).toPrecision(6))).join("-") : value;
  writeSoon();
  view.dispatchEvent(Object.assign(new Event("change"), { keys: Object.keys(changes) }));
}
