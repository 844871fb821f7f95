/** Compares tensors of an engine with PyTorch's by the column groups and tolerances of the contract. */

import { isWhole, shapeText, sizeOf } from 'kit/arrays.js';

/**
 * Return a row {name, maxAbs, tolerance, reason} per column group; `reason` is '' if the group passes.
 *
 * `expected` and `outputs` are objects of arrays by name, `spec` is that of the file's metadata.
 */
export function compareTensors(expected, outputs, spec) {
  return spec.outputs
    .filter((tensor) => tensor.compare === 'values')
    .flatMap((tensor) => compareOutput(tensor, expected[tensor.name], outputs[tensor.name]));
}

/** Return the row of a tensor that could not be compared. */
export const failedRow = (name, reason) => ({ name, maxAbs: null, tolerance: null, reason });

function compareOutput(tensor, expected, output) {
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
    return compareGroup(name, group, columns, expected, output, width);
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

function compareGroup(name, group, columns, expected, output, width) {
  const rows = [...Array(expected.values.length / width).keys()];
  const places = rows.flatMap((row) => columns.map((column) => row * width + column));
  const [reference, candidate] = [expected, output].map(({ values }) =>
    Float64Array.from(places, (place) => Number(values[place])),
  );
  if (!reference.length) return failedRow(name, 'empty column group: nothing was compared');
  const odd = [notFinite('candidate', candidate), notFinite('reference', reference)].filter(Boolean);
  if (odd.length) return failedRow(name, odd.join('; '));
  const isExact = isWhole(expected.dtype);
  const smallest = isExact ? 1 : 0; // of a difference: large int64 are equal as float64
  const scale = reference.reduce((largest, value) => Math.max(largest, Math.abs(value)), 0);
  const tolerance = isExact ? Math.floor(group.atol) : Math.max(group.rtol * scale, group.atol);
  let [maxAbs, over] = [0, 0];
  places.forEach((place, index) => {
    const isSame = expected.values[place] === output.values[place];
    const difference = isSame ? 0 : Math.max(smallest, Math.abs(reference[index] - candidate[index]));
    maxAbs = Math.max(maxAbs, difference);
    over += difference > tolerance;
  });
  let reason = '';
  if (scale > 0 && candidate.every((value) => value === 0)) {
    reason = 'the candidate is all zero, the reference is not';
  } else if (over) {
    const bar = `${Number(tolerance.toPrecision(3))} ${group.unit}`.trim();
    reason = `${over} of ${reference.length} values differ by more than ${bar}`;
  }
  return { name, maxAbs, tolerance, reason };
}

function notFinite(side, values) {
  const bad = values.reduce((count, value) => count + !Number.isFinite(value), 0);
  return bad ? `${side}: ${bad} of ${values.length} values are NaN or infinite` : '';
}
