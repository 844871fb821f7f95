/** Arrays as numpy has them, {dtype, shape, values}: values are a typed array, row by row. */

const TYPES = {
  float32: Float32Array,
  float64: Float64Array,
  int64: BigInt64Array,
  int32: Int32Array,
  int16: Int16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
};

/** Return the array of a raw little-endian file; `entry`, of the manifest, has its dtype and shape. */
export function arrayOf(bytes, { dtype, shape, file }) {
  const Type = TYPES[dtype];
  if (!Type)
    throw new Error(
      `${file}: is ${dtype}, which this page cannot read; it reads ${Object.keys(TYPES).join(', ')}`,
    );
  const size = sizeOf(shape) * Type.BYTES_PER_ELEMENT;
  if (bytes.byteLength !== size)
    throw new Error(`${file}: has ${bytes.byteLength} bytes, expected ${dtype} ${shapeText(shape)}`);
  return { dtype, shape, values: new Type(bytes) };
}

/** Return the array at an index of the first axis; it shares the values. */
export function at(array, index) {
  const shape = array.shape.slice(1);
  const size = sizeOf(shape);
  return { dtype: array.dtype, shape, values: array.values.subarray(index * size, (index + 1) * size) };
}

/** Return the number of values of a shape. */
export const sizeOf = (shape) => shape.reduce((product, side) => product * side, 1);

/** Return '1x3x256x320', or 'scalar'. */
export const shapeText = (shape) => shape.join('x') || 'scalar';

/** Return whether values of a dtype are whole numbers or truth values. */
export const isWhole = (dtype) => /^(u?int|bool)/.test(dtype);

/** Return whole numbers in another dtype of whole numbers if that changes none; else the array as it is. */
export function inDtype(array, dtype) {
  if (array.dtype === dtype || !isWhole(array.dtype) || !isWhole(dtype)) return array;
  const convert = dtype === 'int64' ? BigInt : Number;
  const values = TYPES[dtype].from(array.values, convert);
  const unchanged = values.every((value, index) => Number(value) === Number(array.values[index]));
  return unchanged ? { ...array, dtype, values } : array;
}
