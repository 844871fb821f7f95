/**
 * Makes a picture into the input of a model by the rule in the file's metadata, bit for bit as in Python.
 *
 * The rule is that of mmdeploy_ext/preprocess/pictures.py: resize, normalise, pad, with OpenCV's arithmetic.
 * Pictures are {height, width, values}: values are a Uint8Array of blue, green, red per pixel, row by row.
 */

const f32 = Math.fround;
/** Fixed-point weights of OpenCV's bilinear interpolation have so many bits. */
const WEIGHT_BITS = 11;

/** Return why this page cannot prepare pictures by a rule, '' if it can. */
export function cannotPrepare(rule) {
  if (rule.resize !== 'cv2')
    return `its pictures are resized with ${rule.resize}, which this page does not do`;
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
  const resized = resizeBilinear(picture, resizedHeight, resizedWidth);
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

/**
 * Resize as OpenCV's bilinear interpolation does: weights of 11 bits, and sums in whole numbers.
 *
 * An exact halving is the mean of four pixels there, rounded half up.
 */
export function resizeBilinear(picture, height, width) {
  if (height === picture.height && width === picture.width) return picture;
  if (picture.height === 2 * height && picture.width === 2 * width) return halved(picture);
  const across = taps(picture.width, width, true);
  const down = taps(picture.height, height, false);
  const values = new Uint8Array(height * width * 3);
  const rows = new Map(); // row of the picture -> the same, resized across
  const resizedRow = (row) => {
    if (!rows.has(row)) {
      if (rows.size > 2) rows.clear();
      rows.set(
        row,
        resizeRow(picture.values.subarray(row * picture.width * 3, (row + 1) * picture.width * 3), across),
      );
    }
    return rows.get(row);
  };
  down.forEach(({ first, weights }, y) => {
    const [upper, lower] = [first, first + 1].map((row) =>
      resizedRow(Math.min(Math.max(row, 0), picture.height - 1)),
    );
    for (let index = 0; index < width * 3; index += 1) {
      const sum = ((weights[0] * (upper[index] >> 4)) >> 16) + ((weights[1] * (lower[index] >> 4)) >> 16);
      values[y * width * 3 + index] = (sum + 2) >> 2;
    }
  });
  return { height, width, values };
}

function resizeRow(row, across) {
  const resized = new Int32Array(across.length * 3);
  across.forEach(({ first, weights }, x) => {
    for (let channel = 0; channel < 3; channel += 1) {
      const next = weights[1] ? row[3 * (first + 1) + channel] * weights[1] : 0;
      resized[3 * x + channel] = row[3 * first + channel] * weights[0] + next;
    }
  });
  return resized;
}

/** Return for each position of an axis its first neighbour and both weights; across, none is outside. */
function taps(source, size, isAcross) {
  const scale = 1 / (size / source);
  return Array.from({ length: size }, (_, index) => {
    const place = f32((index + 0.5) * scale - 0.5);
    let [first, share] = [Math.floor(place), f32(place - Math.floor(place))];
    if (isAcross && first < 0) [first, share] = [0, 0];
    if (isAcross && first >= source - 1) [first, share] = [source - 1, 0];
    return {
      first,
      weights: [f32(1 - share), share].map((weight) => roundHalfEven(weight * 2 ** WEIGHT_BITS)),
    };
  });
}

function roundHalfEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor + (floor % 2);
}

function halved({ height, width, values }) {
  const [rows, columns] = [height / 2, width / 2];
  const means = new Uint8Array(rows * columns * 3);
  for (let y = 0; y < rows; y += 1) {
    for (let index = 0; index < columns * 3; index += 1) {
      const place = 2 * y * width * 3 + 6 * Math.floor(index / 3) + (index % 3);
      const sum =
        values[place] + values[place + 3] + values[place + width * 3] + values[place + width * 3 + 3];
      means[y * columns * 3 + index] = (sum + 2) >> 2;
    }
  }
  return { height: rows, width: columns, values: means };
}
