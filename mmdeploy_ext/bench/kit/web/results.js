/** Results per image, from the outputs of a file that has the whole post-processing, or from the kit. */

import { at } from 'kit/arrays.js';
import { pasteMasks } from 'kit/pasted_masks.js';

/** Fields of results in a kit -> their names here. */
const FIELDS = {
  scores: 'scores',
  labels: 'labels',
  bboxes_xyxy: 'boxes',
  masks: 'masks',
  mask_scores: 'maskScores',
  ids: 'ids',
};
/** A pixel of a panoptic map is its class, and of a thing also its number times this. */
const NUMBER = 1000;

/** Return whether this page makes and compares results; else, as for masks of 0..255, the runtime in Python does. */
export const hasResults = ({ metadata, manifest }) =>
  metadata.form === 'full' && 'iou_bar' in manifest.bars && !(metadata.postprocess?.mask_thr < 0);

/** Return the results of an image of a kit, PyTorch's, from its arrays by field. */
export function resultsOfKit(fields) {
  const results = {};
  for (const [field, array] of Object.entries(fields)) results[FIELDS[field]] = plain(field, array);
  if (fields.masks) results.maskShape = fields.masks.shape.slice(1);
  return results;
}

const plain = (field, array) => {
  if (field === 'masks') return Array.from({ length: array.shape[0] }, (_, index) => at(array, index).values);
  return ['labels', 'ids'].includes(field) ? Array.from(array.values, Number) : array.values;
};

/**
 * Return the results per image of the outputs of a `full` file.
 *
 * @param outputs object of arrays by name.
 * @param feeds the same of the inputs, and of what the manifest has beside them.
 * @param metadata of the file.
 */
export function resultsOf(outputs, feeds, metadata) {
  if (outputs.panoptic)
    return images(outputs.panoptic).map((map) => segmentsOf(map, metadata.postprocess.num_classes));
  if (outputs.num_dets) outputs = withLabels(outputs);
  const results = images(outputs.labels).map((labels, index) =>
    imageResults(labels, index, outputs, feeds, metadata),
  );
  checkLimits(outputs, results, metadata);
  return results;
}

/** Outputs of `--outputs efficient-nms` as boxes, scores, and labels that are -1 in padding. */
function withLabels(outputs) {
  const classes = outputs.det_classes;
  const most = classes.shape[1];
  const values = classes.values.map((label, index) =>
    index % most < outputs.num_dets.values[Math.floor(index / most)] ? label : -1,
  );
  const labels = { ...classes, values };
  return { ...outputs, labels, boxes: outputs.det_boxes, scores: outputs.det_scores };
}

const images = (array) => Array.from({ length: array.shape[0] }, (_, index) => at(array, index));

function imageResults(labels, index, outputs, feeds, metadata) {
  const rows = [...labels.values.keys()].filter((row) => labels.values[row] >= 0);
  const pick = (name, column) => {
    const array = at(outputs[name], index);
    return Float32Array.from(rows, (row) => array.values[row * (array.shape[1] ?? 1) + column]);
  };
  const corners = (name) => {
    const columns = [0, 1, 2, 3].map((column) => pick(name, column));
    return Float32Array.from({ length: 4 * rows.length }, (_, place) => columns[place % 4][place >> 2]);
  };
  const results = { labels: rows.map((row) => Number(labels.values[row])) };
  results.scores = outputs.dets ? pick('dets', 4) : pick('scores', 0);
  if (outputs.dets || outputs.boxes) results.boxes = corners(outputs.dets ? 'dets' : 'boxes');
  if (outputs.mask_scores) results.maskScores = pick('mask_scores', 0);
  if (outputs.masks)
    addMasks(
      results,
      rows.map((row) => at(at(outputs.masks, index), row)),
      index,
      outputs,
      feeds,
      metadata,
    );
  return results;
}

/** Add masks of the size of the image: cut off the padding of whole ones, paste those in frames of boxes. */
function addMasks(results, masks, index, outputs, feeds, metadata) {
  const { shape, dtype } = outputs.masks;
  const sizes = Array.from(feeds.ori_shape?.values ?? [0, 0], Number);
  const size = sizes.slice(sizes.length > 2 ? 2 * index : 0).slice(0, 2);
  const [height, width] = size.map((side, axis) => side || shape[2 + axis]); // 0: that of the masks
  results.maskShape = [height, width];
  if (dtype === 'bool') {
    results.masks = masks.map((mask) => cropped(mask, height, width));
    return;
  }
  const scale = feeds.scale_factor ? at(feeds.scale_factor, index).values : [1, 1, 1, 1];
  const factor = (place) => scale[place % 4]; // mmdet scales boxes to the input and back, which rounds
  const boxes = results.boxes.map((value, place) => Math.fround(value * factor(place)) / factor(place));
  results.masks = pasteMasks(masks, boxes, height, width, metadata.postprocess.mask_thr);
}

function cropped({ shape, values }, height, width) {
  if (shape[0] === height && shape[1] === width) return values;
  const mask = new Uint8Array(height * width);
  for (let row = 0; row < height; row += 1)
    mask.set(values.subarray(row * shape[1], row * shape[1] + width), row * width);
  return mask;
}

function segmentsOf(map, classes) {
  const ids = [...new Set(map.values)].filter((id) => id !== classes).sort((a, b) => a - b);
  return {
    ids,
    labels: ids.map((id) => id % NUMBER),
    scores: new Float32Array(ids.length).fill(1),
    masks: ids.map((id) => Uint8Array.from(map.values, (value) => value === id)),
    maskShape: map.shape,
  };
}

/** Refuse results of a file with `--max-candidates` or `--max-proposals` that may lack some. */
function checkLimits(outputs, results, { options, postprocess }) {
  const refuse = (count, option) => {
    throw new Error(
      `candidates: an image has ${count} of them, the file was exported with --${option} and left some out`,
    );
  };
  const { max_candidates: candidates = 0, max_proposals: proposals = 0 } = options;
  const limit = postprocess.max_per_img ?? -1;
  if (proposals) {
    const largest = Math.max(...Array.from(outputs.proposal_candidates.values, Number));
    if (largest > proposals) refuse(largest, `max-proposals ${proposals}`);
  }
  if (candidates) {
    Array.from(outputs.candidates.values, Number).forEach((count, image) => {
      const isFull = limit >= 0 && results[image].scores.length >= limit;
      if (count > candidates && !isFull) refuse(count, `max-candidates ${candidates}`);
    });
  }
}
