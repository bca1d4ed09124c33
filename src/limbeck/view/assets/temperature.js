// At which temperature a number is: KLs and entropies at different ones are different quantities.

const DEPENDS = /(?:^|\/)(?:reverse_kl|objective|entropy|support|top_k_overlap|mismatch)(?:\/|$)/;
export const dependsOnT = (key) => DEPENDS.test(key);

const positive = (value) => (Number(value) > 0 ? Number(value) : undefined);
const DEFAULT = 1;  // of a recipe that can be read and does not have the key

// Of a run's metric in its train or eval lines: an evaluation may have its own temperature. null where nobody knows, as of a recipe
// that cannot be read.
export function temperatureOf(run, from, key) {
  const { recipe } = run.info, { rollout, eval: asked } = recipe;
  if (!Object.keys(recipe).length) return null;
  const own = from === "eval" ? [asked?.sets?.[key.split("/")[0]]?.temperature, asked?.temperature] : [];
  return own.map(positive).find(Boolean) ?? positive(rollout?.temperature ?? DEFAULT) ?? null;
}

// Each temperature once, by size, and null at the end.
export const inOrder = (temperatures) => [...new Set(temperatures)].sort((a, b) => (a === null) - (b === null) || a - b);

// Whether numbers at these temperatures are not of one quantity, as far as is known: two that are not known may differ.
export const areMixed = (temperatures) => new Set(temperatures).size > 1 || (temperatures.length > 1 && temperatures.includes(null));

// `T 0.7`, `T 0.7, 1 and unknown`.
export function nameOfT(temperatures) {
  const names = inOrder(temperatures).map((one) => one ?? "unknown");
  return `T ${names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names[0]}`;
}
