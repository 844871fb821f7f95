/**
 * Pastes masks that lie in the frames of boxes into images, in float32 as PyTorch's grid_sample computes.
 *
 * The same as mmdeploy_ext/families/common/runtime/pasted_masks.py, step by step.
 */

const f32 = Math.fround;

/**
 * Return masks as Uint8Array of height * width: 1 where a mask reaches the threshold.
 *
 * @param masks arrays (m, m) of 0..1.
 * @param boxes Float32Array of x1 y1 x2 y2 per mask, pixels of the image.
 */
export function pasteMasks(masks, boxes, height, width, threshold) {
  return masks.map((mask, index) => {
    const [x1, y1, x2, y2] = boxes.subarray(4 * index, 4 * index + 4);
    const [rows, columns] = mask.shape;
    const down = taps(span(y1, y2, height), y1, y2, rows);
    const across = taps(span(x1, x2, width), x1, x2, columns);
    const value = (row, column) => {
      const inside = row >= 1 && row <= rows && column >= 1 && column <= columns;
      return inside ? mask.values[(row - 1) * columns + column - 1] : 0;
    };
    const pasted = new Uint8Array(height * width);
    for (const { pixel: y, places: rowPlaces, weights: rowWeights } of down) {
      for (const { pixel: x, places, weights } of across) {
        let sum = 0;
        for (const row of [0, 1]) {
          for (const column of [0, 1]) {
            const weight = f32(weights[column] * rowWeights[row]);
            sum = f32(sum + f32(value(rowPlaces[row], places[column]) * weight));
          }
        }
        pasted[y * width + x] = sum >= f32(threshold);
      }
    }
    return pasted;
  });
}

/** Return the pixels along an axis that a box may touch. */
function span(low, high, size) {
  const first = Math.max(Math.floor(low) - 1, 0);
  return Array.from(
    { length: Math.max(Math.min(Math.ceil(high) + 1, size) - first, 0) },
    (_, index) => first + index,
  );
}

/** Return for each pixel its two neighbours in a mask, which has a border of one, and their weights. */
function taps(pixels, low, high, size) {
  const length = f32(high - low);
  return pixels.map((pixel) => {
    let place = f32(f32(f32(f32(f32(pixel + 0.5) - low) / length) * 2) - 1);
    if (Math.abs(place) === Infinity) place = 0;
    place = f32(f32(f32(f32(place + 1) * size) - 1) / 2);
    const first = Math.floor(place);
    const weight = f32(place - first);
    const index = clip(first || 0, -2, size + 1);
    return {
      pixel,
      places: [clip(index + 1, 0, size + 1), clip(index + 2, 0, size + 1)],
      weights: [f32(1 - weight) || 0, weight || 0],
    };
  });
}

const clip = (value, low, high) => Math.min(Math.max(value, low), high);
