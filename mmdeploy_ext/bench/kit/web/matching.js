/**
 * Matches two lists of results one to one, within a class and the bars of the manifest, whatever their order.
 *
 * The rules are those of `mm2onnx judge`: mmdeploy_ext/spec/matching.py says what each is for.
 */

import { boxOverlaps, maskOverlaps } from 'kit/overlaps.js';

/** Task of a kit -> function that returns how near results are to each other, and the further rules. */
const TASKS = {
  bbox2d: (reference, candidate, bars) => ({ nearness: boxOverlaps(reference, candidate, bars) }),
  mask: (reference, candidate, bars) => ({ nearness: maskOverlaps(reference, candidate, bars) }),
  panoptic: (reference, candidate, bars) => ({
    nearness: maskOverlaps(reference, candidate, bars),
    isNear: (iou, row, column) => iou >= bars.iou_bar && reference.ids[row] === candidate.ids[column],
  }),
  boxed_mask: boxesWithMasks,
};

function boxesWithMasks(reference, candidate, bars) {
  const boxes = boxOverlaps(reference, candidate, bars);
  const masks = maskOverlaps(reference, candidate, bars);
  const side = (row, axis) => reference.boxes[4 * row + axis + 2] - reference.boxes[4 * row + axis];
  return {
    nearness: boxes.map((values, row) => values.map((iou, column) => Math.min(iou, masks[row][column]))),
    isNear: (_, row, column) => {
      const isSliver = Math.min(side(row, 0), side(row, 1)) < bars.sliver;
      const maskBar = isSliver ? Math.min(bars.iou_bar, bars.sliver_iou) : bars.iou_bar;
      return boxes[row][column] >= bars.box_iou_bar && masks[row][column] >= maskBar;
    },
    gaps: reference.maskScores ? [scoreGaps(reference.maskScores, candidate.maskScores)] : [],
  };
}

/**
 * Return the counts and the reason of one image, '' if its results match.
 *
 * @param reference results of PyTorch: scores, labels, and boxes, masks, maskScores or ids.
 * @param candidate those of the engine.
 * @param task name of the rules, see `TASKS`.
 * @param bars of the manifest.
 */
export function matchResults(reference, candidate, task, bars) {
  const problem = incomparable(reference, candidate);
  if (problem) {
    const [missing, extra] = [reference.scores.length, candidate.scores.length];
    return {
      reference: missing,
      matched: 0,
      missing,
      extra,
      outside: 0,
      low: 0,
      low_alone: 0,
      worstIou: 0,
      worstScore: 1,
      reason: problem,
    };
  }
  const scores = scoreGaps(reference.scores, candidate.scores);
  const {
    nearness,
    isNear = (value) => value >= bars.iou_bar,
    gaps = [],
  } = TASKS[task](reference, candidate, bars);
  const allowed = nearness.map((values, row) =>
    Array.from(
      values,
      (value, column) =>
        isNear(value, row, column) && [scores, ...gaps].every((gap) => gap[row][column] <= bars.score_bar),
    ),
  );
  const matched = maximumMatching(allowed, nearness, reference.scores);
  const outside = nearestPairs(nearness, matched, bars.pair_iou);
  const counts = tally({ matched, outside }, reference.scores, candidate.scores, bars);
  const worst = (matrix) => counts.pairs.map(([row, column]) => matrix[row][column]);
  const worstIou = Math.min(1, ...worst(nearness));
  const worstScore = Math.max(0, ...worst(scores));
  const reasons = ['missing', 'extra'].filter((key) => counts[key]).map((key) => `${counts[key]} ${key}`);
  if (counts.outside) {
    const pairs = counts.outside > 1 ? 'pairs' : 'pair';
    const difference = `worst score difference ${Number(worstScore.toPrecision(2))}`;
    reasons.push(
      `${counts.outside} ${pairs} outside the bars (worst IoU ${worstIou.toFixed(5)}, ${difference})`,
    );
  }
  return { ...counts, worstIou, worstScore, reason: reasons.join(', ') };
}

/** Return why two lists cannot be compared at all, '' if they can. */
function incomparable(reference, candidate) {
  const isFinite = (values) => (values ?? []).every(Number.isFinite);
  for (const [side, results] of Object.entries({ reference, candidate })) {
    if (!isFinite(results.scores) || !isFinite(results.boxes))
      return `${side}: results have NaN or infinite values`;
  }
  const [size, expected] = [candidate, reference].map(({ maskShape = [] }) => maskShape.join('x'));
  return size === expected ? '' : `masks: got ${size} pixels, expected ${expected}`;
}

function scoreGaps(reference, candidate) {
  return Array.from(reference, (score) => Float64Array.from(candidate, (other) => Math.abs(score - other)));
}

/** Return row -> column of a largest matching of the allowed pairs; rows of higher score come first. */
function maximumMatching(allowed, preference, scores) {
  const choices = allowed.map((row, index) =>
    indicesWhere(row, Boolean).sort((a, b) => preference[index][b] - preference[index][a]),
  );
  const owner = new Map();
  const augment = (row, visited) =>
    choices[row].some((column) => {
      if (visited.has(column)) return false;
      visited.add(column);
      if (owner.has(column) && !augment(owner.get(column), visited)) return false;
      owner.set(column, row);
      return true;
    });
  for (const row of bestFirst(scores)) augment(row, new Set());
  return new Map([...owner].map(([column, row]) => [row, column]));
}

/** Return row -> column of the results without a partner, the nearest first, down to a nearness. */
function nearestPairs(nearness, matched, floor) {
  const columns = new Set(matched.values());
  const free = nearness
    .flatMap((values, row) =>
      matched.has(row) ? [] : Array.from(values, (value, column) => ({ row, column, value })),
    )
    .filter(({ column, value }) => value >= floor && !columns.has(column));
  const pairs = new Map();
  for (const { row, column } of free.sort((a, b) => b.value - a.value)) {
    if (!pairs.has(row) && !columns.has(column)) {
      pairs.set(row, column);
      columns.add(column);
    }
  }
  return pairs;
}

function tally({ matched, outside }, reference, candidate, bars) {
  const isNeeded = (row) => reference[row] >= bars.score_thr;
  const isSurplus = (column) => candidate[column] >= bars.score_thr + bars.score_bar;
  const counts = ([row, column]) => isNeeded(row) || isSurplus(column);
  const partner = new Map([...matched, ...outside]);
  const columns = new Set(partner.values());
  const missing = indicesWhere(reference, (_, row) => isNeeded(row) && !partner.has(row));
  const extra = indicesWhere(candidate, (_, column) => isSurplus(column) && !columns.has(column));
  const low = (row) => !isNeeded(row);
  const otherLow = (column) => !isSurplus(column);
  const lowCount =
    indicesWhere(reference, (_, row) => low(row)).length +
    indicesWhere(candidate, (_, column) => otherLow(column)).length;
  const lowPaired = [...matched].reduce((sum, [row, column]) => sum + low(row) + otherLow(column), 0);
  return {
    reference: indicesWhere(reference, (_, row) => isNeeded(row)).length,
    matched: [...matched.keys()].filter(isNeeded).length,
    missing: missing.length,
    extra: extra.length,
    outside: [...outside].filter(counts).length,
    low: lowCount,
    low_alone: lowCount - lowPaired,
    pairs: [...partner].filter(counts),
  };
}

const bestFirst = (scores) => [...scores.keys()].sort((a, b) => scores[b] - scores[a]);
const indicesWhere = (values, test) => [...values.keys()].filter((index) => test(values[index], index));
