/** Says of the outputs of a kit's cases what `mm2onnx judge` says of them, by the bars of the manifest. */

import { inDtype, shapeText, sizeOf } from 'kit/arrays.js';
import { matchResults } from 'kit/matching.js';
import { hasResults, resultsOf } from 'kit/results.js';
import { compareTensors, failedRow } from 'kit/tensors.js';

/**
 * Return {tensors, results, failures} of one case: rows as of tensors.js and matching.js, and sentences.
 *
 * @param kitCase with inputs, beside, tensors, rounding and results, see `Kit.readCase`.
 * @param outputs object of arrays by name.
 * @param kit with the manifest and the metadata of the file.
 */
export function judgeCase(kitCase, outputs, kit) {
  const { spec } = kit.metadata;
  const expected = Object.fromEntries(spec.outputs.map((tensor) => [tensor.name, tensor]));
  const tensors = misnamed(outputs, expected);
  const typed = {};
  for (const [name, array] of Object.entries(outputs)) {
    if (!(name in expected)) continue;
    typed[name] = inDtype(array, expected[name].dtype);
    const reason = misfit(typed[name], expected[name]);
    if (reason) tensors.push(failedRow(name, reason));
  }
  if (!tensors.length && Object.keys(kitCase.tensors).length) {
    const outputsWithValues = spec.outputs.filter(({ name }) => !isEmpty(kitCase.tensors[name], typed[name]));
    const compared = { ...spec, outputs: outputsWithValues };
    tensors.push(...compareTensors(kitCase.tensors, typed, compared, kitCase.rounding));
  }
  const isRight = tensors.every((row) => !row.reason);
  const results = isRight && hasResults(kit) ? matchImages(kitCase, typed, kit) : [];
  if (isRight && hasResults(kit) && typed.labels) tensors.push(...brokenPromises(typed, kit.metadata));
  const failures = [...tensors, ...results]
    .filter((row) => row.reason)
    .map((row) => `${kitCase.name} ${kitCase.title}: ${row.name}: ${row.reason}`);
  return { tensors, results, failures };
}

function misnamed(outputs, expected) {
  const missing = Object.keys(expected).filter((name) => !(name in outputs));
  const unknown = Object.keys(outputs).filter((name) => !(name in expected));
  return [
    ...missing.map((name) =>
      failedRow(name, `missing; the engine gave ${Object.keys(outputs).join(', ') || 'nothing'}`),
    ),
    ...unknown.map((name) =>
      failedRow(name, `not an output of this kit; these are ${Object.keys(expected).join(', ')}`),
    ),
  ];
}

/** Return why dtype or shape of an array are not those of a tensor of the contract, '' if they are. */
function misfit({ dtype, shape }, tensor) {
  if (dtype !== tensor.dtype) return `dtype: got ${dtype}, expected ${tensor.dtype}`;
  const fits =
    shape.length === tensor.axes.length &&
    tensor.axes.every((axis, index) => typeof axis === 'string' || axis === shape[index]);
  return fits ? '' : `shape: got ${shapeText(shape)}, expected ${shapeText(tensor.axes)}`;
}

/** Return whether a tensor has no value on both sides: they are equal, but show nothing. */
function isEmpty(expected, output) {
  return expected && !sizeOf(expected.shape) && shapeText(expected.shape) === shapeText(output.shape);
}

/**
 * Return failing rows of what `full` files promise of order and padding, on which no matching depends.
 *
 * The rules are those of `order_rows` in mmdeploy_ext/spec/comparison.py.
 */
function brokenPromises({ dets, scores, labels }, { postprocess, classes }) {
  const [name, array] = dets ? ['dets', dets] : ['scores', scores];
  const [count, columns] = [labels.shape[1], dets ? dets.shape[2] : 1];
  const numClasses = postprocess.num_classes || classes.length;
  if (array.values.length !== labels.values.length * columns) {
    return [failedRow('labels', `shape: got ${shapeText(labels.shape)}, expected that of ${name}`)];
  }
  const score = (place) => array.values[(place + 1) * columns - 1];
  const rows = [];
  const check = (output, title, isWrong) => {
    const place = labels.values.findIndex((_, index) => isWrong(index, Number(labels.values[index])));
    if (place < 0) return;
    const where = `image ${Math.floor(place / count)}, row ${place % count}`;
    rows.push(failedRow(output, `${title}: ${where}`));
  };
  const isAfterPadding = (place) =>
    Array.from({ length: place % count }, (_, index) => score(place - index - 1)).includes(0);
  check(name, 'a score is not finite', (place) => !Number.isFinite(score(place)));
  check(name, 'scores do not descend', (place) => place % count > 0 && score(place) > score(place - 1));
  check('labels', 'padding without label -1', (place, label) => score(place) === 0 && label !== -1);
  check('labels', 'a negative score behind padding', (place) => score(place) < 0 && isAfterPadding(place));
  check(
    'labels',
    `a label outside of 0..${numClasses - 1}`,
    (place, label) => score(place) !== 0 && (label < 0 || label >= numClasses),
  );
  return rows;
}

function matchImages(kitCase, outputs, { metadata, manifest: { task, bars } }) {
  const expected = kitCase.results;
  const fail = (reason) =>
    kitCase.images.map((name, index) => ({
      name,
      reference: expected[index].scores.length,
      matched: 0,
      reason,
    }));
  let candidates;
  try {
    candidates = resultsOf(outputs, { ...kitCase.inputs, ...kitCase.beside }, metadata);
  } catch (error) {
    return fail(`no results: ${error.message}`);
  }
  if (candidates.length !== expected.length) {
    return fail(`got results of ${candidates.length} images, expected ${expected.length}`);
  }
  return kitCase.images.map((name, index) => ({
    name,
    ...matchResults(expected[index], candidates[index], task, bars),
  }));
}

/** Return {equal, matched, compared, failures, claim} of all cases; not equal if nothing was compared. */
export function verdictOf(judgements, kit) {
  const sumOf = (name) =>
    judgements.reduce(
      (sum, { results }) => sum + results.reduce((count, row) => count + (row[name] ?? 0), 0),
      0,
    );
  const matched = sumOf('matched');
  const failures = [
    ...loneLowResults(sumOf('low'), sumOf('low_alone'), kit.manifest.bars),
    ...judgements.flatMap((judgement) => judgement.failures),
  ];
  const compared = judgements.reduce((sum, { tensors }) => sum + tensors.length, 0);
  if (!failures.length && matched + compared === 0) {
    failures.push('nothing was compared: PyTorch has no result in these inputs');
  }
  const equal = !failures.length;
  const isPart = !hasResults(kit) && kit.manifest.cases.some((entry) => entry.results.length);
  const word = isPart ? 'TENSORS EQUAL' : 'EQUAL';
  const count = `${judgements.length} ${judgements.length === 1 ? 'INPUT' : 'INPUTS'}`;
  return { equal, matched, compared, failures, claim: equal ? `${word} ON ${count}` : 'NOT EQUAL' };
}

/** Return why results below the score threshold fail a kit: too many have no partner; else []. */
function loneLowResults(low, alone, bars) {
  if (alone <= Math.max(bars.low_alone, bars.low_alone_share * low)) return [];
  return [`${alone} of ${low} results below the score threshold have no partner on the other side`];
}
