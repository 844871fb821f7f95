/**
 * Makes a picture into the input of a model by the rule in the file's metadata, bit for bit as in Python.
 *
 * The rule is that of mmdeploy_ext/runtime/preprocess/pictures.py: resize, normalise with OpenCV's arithmetic, pad.
 * Pictures are {height, width, values}: values are a Uint8Array of blue, green, red per pixel, row by row.
 */

import { RESIZERS } from 'kit/resize.js';

const f32 = Math.fround;

/** Return why this page cannot prepare pictures by a rule, '' if it can. */
export function cannotPrepare(rule, image) {
  if (image?.pixels) return 'its input is pixels (uint8), which this page prepares for its own cases alone';
  return rule.to_float32 ? 'its pictures are resized in float32, which this page does not do' : '';
}

/** Return the [height, width] of the network input, if the file has a fixed one, in place of the rule's. */
export function ruleOf({ preprocess, spec }) {
  const size = spec.inputs[0].axes.slice(2);
  return size.every(Number.isInteger) ? { ...preprocess, size } : preprocess;
}

/** Return {tensor: Float32Array (3, H, W), shape: [H, W], content: [h, w], scale, original, border}. */
export function prepare(rule, picture) {
  const { height, width } = picture;
  const [resizedHeight, resizedWidth] = resizedShape(rule, height, width);
  const resized = RESIZERS[rule.resize](picture, resizedHeight, resizedWidth);
  const [paddedHeight, paddedWidth] = paddedShape(rule, resizedHeight, resizedWidth);
  let [top, left, rows, columns] = [0, 0, resizedHeight, resizedWidth];
  if (rule.centred) {
    const halves = [paddedHeight, resizedHeight, paddedWidth, resizedWidth].map((side) => side >> 1);
    [top, left] = [halves[0] - halves[1], halves[2] - halves[3]];
    rows = Math.min(rows, halves[0] + halves[1]);
    columns = Math.min(columns, halves[2] + halves[3]);
  }
  const tensor = new Float32Array(3 * paddedHeight * paddedWidth);
  for (let channel = 0; channel < 3; channel += 1) {
    const plane = tensor.subarray(
      channel * paddedHeight * paddedWidth,
      (channel + 1) * paddedHeight * paddedWidth,
    );
    const levels = normalisedLevels(rule, channel);
    const source = rule.to_rgb ? 2 - channel : channel;
    plane.fill(rule.pad_val[channel]);
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        const level = resized.values[3 * (row * resizedWidth + column) + source];
        plane[(row + top) * paddedWidth + column + left] = levels[level];
      }
    }
  }
  const scale = [resizedWidth / width, resizedHeight / height];
  return {
    tensor,
    shape: [paddedHeight, paddedWidth],
    content: [resizedHeight, resizedWidth],
    scale: Float32Array.from([...scale, ...scale]),
    original: [height, width],
    border: [top, left],
  };
}

/** Return what becomes of the 256 values of a channel: float32 differences, multiplied in float64. */
function normalisedLevels(rule, channel) {
  const [mean, factor] = [f32(rule.mean[channel]), 1 / f32(rule.std[channel])];
  return Float32Array.from({ length: 256 }, (_, level) => f32(level - mean) * factor);
}

function resizedShape(rule, height, width) {
  let factor;
  if (rule.size) {
    if (!rule.keep_ratio) return rule.size;
    factor = Math.min(rule.size[0] / height, rule.size[1] / width);
  } else if (!rule.img_scale) {
    return [height, width];
  } else if (!rule.keep_ratio) {
    return [rule.img_scale[1], rule.img_scale[0]];
  } else {
    const [long, short] = [Math.max(...rule.img_scale), Math.min(...rule.img_scale)];
    factor = Math.min(long / Math.max(height, width), short / Math.min(height, width));
  }
  return [height, width].map((side) => Math.max(Math.floor(side * factor + 0.5), 1));
}

function paddedShape(rule, height, width) {
  if (rule.size) return rule.size;
  if (rule.pad_size) return [Math.max(rule.pad_size[0], height), Math.max(rule.pad_size[1], width)];
  if (rule.pad_or) return [height, width].map((side) => (side | rule.pad_or) + rule.pad_more);
  return [height, width].map((side) => Math.ceil(side / rule.size_divisor) * rule.size_divisor);
}
