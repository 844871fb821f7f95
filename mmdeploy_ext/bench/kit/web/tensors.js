/**
 * Compares tensors of an engine with PyTorch's by the column groups and tolerances of the contract.
 *
 * The rules are those of mmdeploy_ext/spec/comparison.py.
 */

import { isWhole, shapeText, sizeOf } from 'kit/arrays.js';

const [MOST_SLICES, LARGEST_SLICED, SENTINEL] = [128, 1e-3, 1e4];
const [OTHER_SCALE, FEWEST_VALUES, FEW_VALUES, WINDOW, LONGEST_PERIOD] = [10, 4, 16, 32, 4096];
const [JUMP, LEAST] = [100, 1e-3];
const [DEFAULT_RTOL, FLOOR] = [1e-4, 1e-6];
const [ROUNDINGS, MOST_ROUNDING] = [3, 10];

/**
 * Return a row {name, maxAbs, tolerance, reason} per column group; `reason` is '' if the group passes.
 *
 * `expected` and `outputs` are objects of arrays by name, `spec` is that of the file's metadata, `rounding` has
 * arrays of distances of `expected` from float64.
 */
export function compareTensors(expected, outputs, spec, rounding = {}) {
  return spec.outputs
    .filter((tensor) => tensor.compare === 'values')
    .flatMap((tensor) => {
      const { name } = tensor;
      return compareOutput(tensor, expected[name], outputs[name], rounding[name]);
    });
}

/** Return the row of a tensor that could not be compared. */
export const failedRow = (name, reason) => ({ name, maxAbs: null, tolerance: null, reason });

function compareOutput(tensor, expected, output, rounding) {
  const reason = incomparable(expected, output);
  if (reason) return [failedRow(tensor.name, reason)];
  const width = expected.shape.at(-1) ?? 1;
  const all = [...Array(width).keys()];
  const rows = tensor.groups.map((group) => {
    const name = tensor.groups.length > 1 && group.name ? `${tensor.name} [${group.name}]` : tensor.name;
    const columns = group.columns ?? all;
    if (columns.some((column) => column >= width)) {
      return failedRow(name, `the contract has columns ${columns}, the tensor has ${width}`);
    }
    return compareGroup(name, group, columns, expected, output, rounding);
  });
  const covered = new Set(tensor.groups.flatMap((group) => group.columns ?? all));
  const uncovered = all.filter((column) => !covered.has(column));
  if (uncovered.length) rows.push(failedRow(tensor.name, `columns ${uncovered} belong to no column group`));
  return rows;
}

function incomparable(expected, output) {
  if (!expected) return 'missing in the reference';
  if (!output) return 'missing in the candidate';
  const [got, wanted] = [output, expected].map((array) => shapeText(array.shape));
  if (got !== wanted) return `shape: got ${got}, expected ${wanted}`;
  if (output.dtype !== expected.dtype) return `dtype: got ${output.dtype}, expected ${expected.dtype}`;
  return sizeOf(expected.shape) ? '' : `empty (${wanted}): nothing was compared`;
}

function compareGroup(name, group, columns, expected, output, rounding) {
  const width = expected.shape.at(-1) ?? 1;
  const rows = [...Array(expected.values.length / width).keys()];
  const places = rows.flatMap((row) => columns.map((column) => row * width + column));
  if (!places.length) return failedRow(name, 'empty column group: nothing was compared');
  const [reference, candidate, distances] = [expected, output, rounding].map(
    (array) => array && Float64Array.from(places, (place) => Number(array.values[place])),
  );
  if (isWhole(expected.dtype)) return compareExactly(name, group, places, expected, output);
  const differences = reference.map((value, index) => differenceOf(value, candidate[index]));
  if (differences.includes(Infinity)) {
    return failedRow(name, 'NaN and infinite values have to be in the same places');
  }
  if (reference.every(Number.isNaN)) return failedRow(name, 'every value is NaN on both sides');
  const sizes = reference.map((value, index) => {
    const size = Math.abs(value);
    return Number.isFinite(size) && (differences[index] > 0 || size < SENTINEL) ? size : 0;
  });
  const shape = expected.shape.length ? [...expected.shape.slice(0, -1), columns.length] : [];
  const unrounded = new Float64Array(sizes.length);
  const isDead = candidate.every((value) => value === 0);
  let worst = worstValue(differences, sizes, shape, group, unrounded, isDead);
  if (worst.isDead || worst.difference > worst.tolerance) {
    worst = worstValue(differences, sizes, shape, group, distances, isDead);
  }
  let reason = '';
  if (worst.isDead) {
    reason = 'the candidate is all zero, the reference is not';
  } else if (!(worst.difference <= worst.tolerance)) {
    const bar = `${Number(worst.tolerance.toPrecision(3))} ${group.unit}`.trim();
    const by = Number(worst.difference.toPrecision(3));
    reason = `${worst.over} of ${sizes.length} values differ, most by ${by}, allowed ${bar}`;
  }
  return { name, maxAbs: worst.difference, tolerance: worst.tolerance, reason };
}

/** Compare whole numbers: int64 that are equal as float64 differ by 1. */
function compareExactly(name, group, places, expected, output) {
  const tolerance = Math.floor(group.atol);
  let [maxAbs, over] = [0, 0];
  for (const place of places) {
    const [one, other] = [expected.values[place], output.values[place]];
    const difference = one === other ? 0 : Math.max(1, Math.abs(Number(one) - Number(other)));
    maxAbs = Math.max(maxAbs, difference);
    over += difference > tolerance;
  }
  const isZero = (array) => places.every((place) => Number(array.values[place]) === 0);
  let reason = '';
  if (isZero(output) && !isZero(expected)) reason = 'the candidate is all zero, the reference is not';
  else if (over) reason = `${over} of ${places.length} values differ by more than ${tolerance}`;
  return { name, maxAbs, tolerance, reason };
}

function differenceOf(expected, got) {
  if (Object.is(expected, got) || expected === got) return 0;
  const difference = Math.abs(expected - got);
  return Number.isFinite(difference) ? difference : Infinity;
}

/** Return the value farthest beyond its tolerance; without `rounding` that of the tensor's size counts. */
function worstValue(differences, sizes, shape, group, rounding, isZero) {
  const largest = largestOf(sizes);
  const share = Math.min(FLOOR, (group.rtol * FLOOR) / DEFAULT_RTOL);
  const least = rounding ? share : share * Math.max(largest, 1);
  const rounded = rounding ?? new Float64Array(sizes.length);
  const relative = (size) => Math.max(group.rtol * size, group.atol);
  const allowed = (size, distance) =>
    Math.max(
      relative(size),
      least,
      Math.min(ROUNDINGS * distance, Math.max(MOST_ROUNDING * relative(size), relative(largest))),
    );
  const isDead = isZero && largest > Math.max(least, ROUNDINGS * largestOf(rounded));
  let worst = { difference: 0, tolerance: 0, over: 0, ratio: -1 };
  for (const { slices, isUsual } of slicings(shape, group.rtol, sizes)) {
    const bars = new Float64Array(sizes.length);
    const floor = isUsual || slices[0].length >= FEW_VALUES ? 0 : usualOf(slices, rounded);
    for (const places of slices) setBars(bars, places, sizes, rounded, allowed, floor, isUsual);
    const found = { difference: 0, tolerance: 0, over: 0, ratio: -1 };
    bars.forEach((tolerance, place) => {
      const difference = differences[place];
      const ratio = difference > 0 ? difference / tolerance : 0;
      found.over += difference > tolerance;
      if (ratio > found.ratio) Object.assign(found, { difference, tolerance, ratio });
    });
    if (found.ratio > worst.ratio) worst = found;
  }
  return { ...worst, isDead };
}

const largestOf = (values) => values.reduce((largest, value) => Math.max(largest, value), 0);

/** Return, for each axis and way to divide, the places of each slice. */
function slicings(shape, rtol, sizes) {
  const isSliced = rtol > 0 && rtol <= LARGEST_SLICED;
  const [found, last] = [[], shape.length - 1];
  shape.forEach((size, axis) => {
    if (!isSliced || size < 2) return;
    const isNamed = (axis === last && last > 0) || (axis === 1 && axis < last);
    const isUsual = isNamed && size <= MOST_SLICES;
    const step = sizeOf(shape.slice(axis + 1));
    const slices = divided(sizes.length, size, (place) => Math.floor(place / step) % size);
    if (isUsual || differInScale(slices, sizes)) found.push({ slices, isUsual });
  });
  if (!found.some(({ isUsual }) => isUsual)) found.push({ slices: [[...sizes.keys()]], isUsual: true });
  const isVector = Math.max(0, ...shape) === sizes.length;
  return isSliced && isVector ? [...found, ...slicingsOfVector(sizes)] : found;
}

function slicingsOfVector(sizes) {
  const count = sizes.length;
  const windows = divided(count, Math.ceil(count / WINDOW), (place) => Math.floor(place / WINDOW));
  const found = differInScale(windows, sizes, WINDOW) ? [{ slices: windows, isUsual: false }] : [];
  let [best, least] = [null, Infinity];
  for (let period = 2; period <= Math.min(LONGEST_PERIOD, Math.floor(count / FEWEST_VALUES)); period += 1) {
    if (count % period) continue;
    const slices = divided(count, period, (place) => place % period);
    if (!differInScale(slices, sizes)) continue;
    const logs = topsOf(slices, sizes).map(Math.log);
    const mean = logs.reduce((sum, log) => sum + log, 0) / logs.length;
    if (mean < least) [best, least] = [slices, mean];
  }
  return best ? [...found, { slices: best, isUsual: false }] : found;
}

function divided(count, number, sliceOf) {
  const slices = Array.from({ length: number }, () => []);
  for (let place = 0; place < count; place += 1) slices[sliceOf(place)].push(place);
  return slices;
}

/** Return the largest size of each slice that is not zero. */
const topsOf = (slices, sizes) =>
  slices.map((places) => places.reduce((most, place) => Math.max(most, sizes[place]), 0)).filter(Boolean);

function differInScale(slices, sizes, values = slices[0].length) {
  const tops = topsOf(slices, sizes);
  const isByChance = values < Math.max(FEWEST_VALUES, 3 * Math.log10(Math.max(tops.length, 1)));
  if (isByChance || tops.length < 2) return false;
  const smallest = tops.reduce((least, top) => Math.min(least, top), Infinity);
  return largestOf(tops) > OTHER_SCALE * smallest;
}

/** Return the median of the slices' largest distances. */
const usualOf = (slices, rounding) =>
  median(
    Float64Array.from(slices, (places) =>
      places.reduce((most, place) => Math.max(most, rounding[place]), 0),
    ),
  );

/** Set the tolerances of a slice: smaller magnitudes of a usual one have smaller ones. */
function setBars(bars, places, sizes, rounding, allowed, floor, isUsual) {
  const usual = median(Float64Array.from(places, (place) => rounding[place]));
  const set = (within, top, least = usual) => {
    const distance = within.reduce((most, place) => Math.max(most, rounding[place]), least);
    const bar = allowed(top, distance);
    for (const place of within) bars[place] = bar;
  };
  const ranked = Float64Array.from(places, (place) => sizes[place]).sort();
  set(places, ranked.at(-1), floor);
  if (!isUsual) return;
  for (let index = ranked.length - 2; index >= 0; index -= 1) {
    const [size, next] = [ranked[index], ranked[index + 1]];
    if (size > LEAST && next > JUMP * size) {
      set(
        places.filter((place) => sizes[place] <= size),
        size,
      );
    }
  }
}

function median(values) {
  const [ranked, half] = [values.sort(), values.length / 2];
  return (ranked[Math.ceil(half) - 1] + ranked[Math.floor(half)]) / 2;
}
