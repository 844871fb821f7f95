/** Draws a picture with its results on a canvas. */

const TINT = 0.45;

/** Return the colour of a class, the same in every picture; hues are a golden angle apart. */
export const classColour = (label) => `hsl(${(12 + label * 137.5) % 360} 80% 38%)`;

/** Return the name of a class, or its number. */
export const className = (label, classes) => classes[label] ?? `class ${label}`;

/**
 * Draw a picture and the results of at least a score, the best on top.
 *
 * @param canvas gets the size of the picture.
 * @param bitmap of the picture.
 * @param results of one image, in its pixels, see results.js.
 */
export function drawResults(canvas, bitmap, results, classes, threshold) {
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext('2d');
  context.drawImage(bitmap, 0, 0);
  const unit = Math.max(bitmap.width, bitmap.height) / 320;
  const shown = [...results.scores.keys()]
    .filter((index) => results.scores[index] >= threshold)
    .sort((a, b) => results.scores[a] - results.scores[b]);
  const colour = (index) => classColour(results.labels[index]);
  if (results.masks)
    shown.forEach((index) => tint(context, results.masks[index], results.maskShape, colour(index)));
  if (results.boxes) shown.forEach((index) => drawBox(context, results, index, colour(index), classes, unit));
}

function tint(context, mask, [height, width], colour) {
  const layer = new OffscreenCanvas(width, height);
  const layerContext = layer.getContext('2d');
  layerContext.fillStyle = colour;
  layerContext.fillRect(0, 0, 1, 1);
  const [red, green, blue] = layerContext.getImageData(0, 0, 1, 1).data;
  const pixels = layerContext.createImageData(width, height);
  mask.forEach((inside, index) => {
    if (inside) pixels.data.set([red, green, blue, 255 * TINT], 4 * index);
  });
  layerContext.putImageData(pixels, 0, 0);
  context.drawImage(layer, 0, 0);
}

function drawBox(context, { boxes, scores, labels }, index, colour, classes, unit) {
  const [x1, y1, x2, y2] = boxes.subarray(4 * index, 4 * index + 4);
  const size = Math.max(10, 5 * unit);
  const text = `${className(labels[index], classes)} ${scores[index].toFixed(2)}`;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = 'top';
  context.lineWidth = Math.max(1.5, unit);
  context.strokeStyle = colour;
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  const width = context.measureText(text).width + size * 0.6;
  const left = Math.max(0, Math.min(x1, context.canvas.width - width));
  const top = y1 >= size * 1.3 ? y1 - size * 1.3 : y1;
  context.fillStyle = colour;
  context.fillRect(left, top, width, size * 1.3);
  context.fillStyle = '#fff';
  context.fillText(text, left + size * 0.3, top + size * 0.15);
}
