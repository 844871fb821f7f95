/**
 * IoU of boxes and masks of two lists of results, R of the reference and C of the candidate.
 *
 * Every function returns a matrix: an array of R rows, each a Float64Array of C values, -1 across classes.
 */

/** Return the matrix of `measure(row, column)` for results of one class. */
function withinClasses(reference, candidate, measure) {
  return Array.from(reference.labels, (label, row) =>
    Float64Array.from(candidate.labels, (other, column) => (label === other ? measure(row, column) : -1)),
  );
}

/** Return the IoU of boxes; corners that differ by `bars.corner_eps` pixels or less are the same. */
export function boxOverlaps(reference, candidate, bars) {
  const eps = bars.corner_eps;
  return withinClasses(reference, candidate, (row, column) => {
    let [overlap, area, otherArea] = [1, 1, 1];
    for (const axis of [0, 1]) {
      const [start, end] = [reference.boxes[4 * row + axis], reference.boxes[4 * row + axis + 2]];
      const [otherStart, otherEnd] = [
        candidate.boxes[4 * column + axis],
        candidate.boxes[4 * column + axis + 2],
      ];
      if (Math.abs(start - otherStart) <= eps && Math.abs(end - otherEnd) <= eps) continue; // sides of 1
      const shared = Math.min(end, otherEnd) - Math.max(start, otherStart);
      if (shared <= 0) return 0;
      overlap *= shared;
      area *= end - start;
      otherArea *= otherEnd - otherStart;
    }
    const union = area + otherArea - overlap;
    return union > 0 ? overlap / union : 0;
  });
}

/** Return the IoU of masks; those that differ in `bars.flipped_pixels` or fewer are equal. */
export function maskOverlaps(reference, candidate, bars) {
  const [masks, others] = [reference, candidate].map((side) => side.masks.map(packed));
  return withinClasses(reference, candidate, (row, column) => {
    const { words, area } = masks[row];
    let overlap = 0;
    for (let index = 0; index < words.length; index += 1)
      overlap += bitCount(words[index] & others[column].words[index]);
    const union = area + others[column].area - overlap;
    if (union === 0 || (overlap > 0 && union - overlap <= bars.flipped_pixels)) return 1;
    return overlap / union;
  });
}

/** Return the bits of a mask, a Uint8Array of 0 and 1, in words of 32, and their number. */
function packed(mask) {
  const words = new Uint32Array(Math.ceil(mask.length / 32));
  let area = 0;
  for (let index = 0; index < mask.length; index += 1) {
    if (mask[index]) {
      words[index >> 5] |= 1 << (index & 31);
      area += 1;
    }
  }
  return { words, area };
}

function bitCount(word) {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}
