/** Takes a picture of the visitor through the model: decoded by the browser, prepared by the file's rule. */

import { cannotPrepare, prepare, ruleOf } from 'kit/prepare.js';
import { hasResults, resultsOf } from 'kit/results.js';

/** Return why the model of a kit cannot be shown a picture on this page, '' if it can. */
export function cannotShow(kit) {
  const { metadata } = kit;
  if (!metadata.form) return 'it is no detector that mm2onnx exported';
  if (metadata.postprocess?.mask_thr < 0) return 'its masks are of 0 to 255';
  if (!hasResults(kit)) return `its form is ${metadata.form}, whose results are made outside of the graph`;
  const unknown = metadata.spec.inputs
    .slice(1)
    .find(({ name, default: fill }) => fill === null && !(name in SIZES));
  return unknown
    ? `it needs ${unknown.name}, which is not made of a picture`
    : cannotPrepare(metadata.preprocess, metadata.spec.inputs[0]);
}

/** Name of an input -> its values for one image, of what `prepare` returns. */
const SIZES = {
  img_shape: ({ content }) => content,
  scale_factor: ({ scale }) => scale,
  border: ({ border }) => border,
  orig_target_sizes: ({ original }) => [original[1], original[0]],
  ori_shape: ({ original }) => original,
};

/** Return {bitmap, picture} of a file: what a canvas draws, and blue, green, red as OpenCV reads them. */
export async function decode(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none', premultiplyAlpha: 'none' });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext('2d');
  context.drawImage(bitmap, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  const values = new Uint8Array(width * height * 3);
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    for (let channel = 0; channel < 3; channel += 1)
      values[3 * pixel + channel] = data[4 * pixel + 2 - channel];
  }
  return { bitmap, picture: { width, height, values } };
}

/** Return the results of a picture, as of results.js, in its pixels. */
export async function detect(engine, picture, metadata) {
  const prepared = prepare(ruleOf(metadata), picture);
  const feeds = feedsOf(prepared, metadata.spec.inputs);
  const size = { dtype: 'int64', shape: [2], values: BigInt64Array.from(prepared.original, BigInt) };
  const outputs = await engine.run(feeds);
  return resultsOf(outputs, { ori_shape: size, ...feeds }, metadata)[0];
}

/** Return every input by name for a prepared picture, repeated if the batch is fixed. */
export function feedsOf(prepared, inputs) {
  const repeats = Number.isInteger(inputs[0].axes[0]) ? inputs[0].axes[0] : 1;
  const feeds = {};
  for (const [index, { name, dtype, axes, default: fill }] of inputs.entries()) {
    const size = SIZES[name]?.(prepared) ?? [fill];
    const values = index ? size : prepared.tensor;
    const shape = index ? [values.length] : [3, ...prepared.shape];
    const isBatched = index === 0 || axes.length > 1;
    const copies = isBatched
      ? Array(repeats)
          .fill([...values])
          .flat()
      : [...values];
    const typed = dtype === 'int64' ? BigInt64Array.from(copies, BigInt) : Float32Array.from(copies);
    feeds[name] = { dtype, shape: isBatched ? [repeats, ...shape] : shape, values: typed };
  }
  return feeds;
}
