// Student's t for whole degrees of freedom, exactly: Abramowitz and Stegun 26.7.3 and 26.7.4.

// Two-sided p-value of `t`.
export function studentP(t, degrees) {
  const angle = Math.atan(Math.abs(t) / Math.sqrt(degrees)), sine = Math.sin(angle), square = Math.cos(angle) ** 2;
  const odd = degrees % 2 === 1;
  let term = odd ? Math.cos(angle) : 1, total = 0;
  for (let k = odd ? 1 : 0; k <= degrees - 2; k += 2) {
    total += term;
    term *= square * (k + 1) / (k + 2);
  }
  return Math.min(1, Math.max(0, 1 - (odd ? (2 / Math.PI) * (angle + sine * total) : sine * total)));
}

const points = new Map();

// The 97.5% point: the half width of a 95% interval, in standard errors.
export function studentPoint(degrees) {
  if (!points.has(degrees)) {
    let [low, high] = [0, 13];
    for (let i = 0; i < 60; i += 1) {
      const middle = (low + high) / 2;
      if (studentP(middle, degrees) > 0.05) low = middle;
      else high = middle;
    }
    points.set(degrees, high);
  }
  return points.get(degrees);
}
