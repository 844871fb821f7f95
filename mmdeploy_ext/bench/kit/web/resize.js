/**
 * Bilinear resizing of pictures, bit for bit as the libraries of the test pipelines compute it.
 *
 * Pictures are {height, width, values}: values are a Uint8Array of three channels per pixel, row by row.
 * Sources: OpenCV 4, modules/imgproc/src/resize.cpp; Pillow 13, src/libImaging/Resample.c.
 */

const f32 = Math.fround;
/** Fixed-point weights have so many bits. */
const [OPENCV_BITS, PILLOW_BITS] = [11, 22];

/** Library of a rule -> function that returns a picture of another height and width. */
export const RESIZERS = { cv2: resizeAsOpenCV, pillow: resizeAsPillow };

/**
 * Resize as OpenCV's bilinear interpolation does: weights of 11 bits, and sums in whole numbers.
 *
 * An exact halving is the mean of four pixels there, rounded half up.
 */
function resizeAsOpenCV(picture, height, width) {
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
      weights: [f32(1 - share), share].map((weight) => roundHalfEven(weight * 2 ** OPENCV_BITS)),
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

/**
 * Resize as Pillow does: a mean over all pixels that a new one covers, along one axis, then the other.
 *
 * Rows come first where that leaves the smaller picture in between.
 */
function resizeAsPillow(picture, height, width) {
  const [lessRows, lessColumns] = [picture.height - height, picture.width - width];
  if (lessRows > Math.max(2 * lessColumns, 0)) return resampledColumns(resampledRows(picture, height), width);
  return resampledRows(resampledColumns(picture, width), height);
}

function resampledRows({ height, width, values }, size) {
  return { height: size, width, values: resampled(values, 1, height, width * 3, size) };
}

function resampledColumns({ height, width, values }, size) {
  return { height, width: size, values: resampled(values, height, width, 3, size) };
}

/** Return values (outer, source, inner) resized to (outer, size, inner), each sum rounded to 8 bits. */
function resampled(values, outer, source, inner, size) {
  if (size === source) return values;
  const windows = pillowWindows(source, size);
  const resized = new Uint8ClampedArray(outer * size * inner);
  for (let row = 0; row < outer; row += 1) {
    windows.forEach(({ first, weights }, index) => {
      for (let place = 0; place < inner; place += 1) {
        let sum = 1 << (PILLOW_BITS - 1);
        weights.forEach((weight, tap) => {
          sum += weight * values[(row * source + first + tap) * inner + place];
        });
        resized[(row * size + index) * inner + place] = sum >> PILLOW_BITS;
      }
    });
  }
  return new Uint8Array(resized.buffer);
}

/** Return for each position of an axis the first pixel that it covers, and the weights of all of them. */
function pillowWindows(source, size) {
  const scale = source / size;
  const stretch = Math.max(scale, 1);
  return Array.from({ length: size }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - stretch + 0.5), 0);
    const end = Math.min(Math.trunc(centre + stretch + 0.5), source);
    const shares = Array.from({ length: end - first }, (_, tap) =>
      Math.max(1 - Math.abs((first + tap - centre + 0.5) * (1 / stretch)), 0),
    );
    const total = shares.reduce((sum, share) => sum + share, 0);
    const weights = shares.map((share) => Math.trunc(0.5 + (share / total) * 2 ** PILLOW_BITS));
    return { first, weights };
  });
}
