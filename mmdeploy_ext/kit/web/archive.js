/** Outputs as files that `mm2onnx judge` reads: an archive of `outputs/CASE/NAME.npy` and the kit's hash. */

const DESCRIPTIONS = {
  float32: '<f4',
  float64: '<f8',
  int64: '<i8',
  int32: '<i4',
  int16: '<i2',
  int8: '|i1',
  uint8: '|u1',
  bool: '|b1',
};
const BLOCK = 512;
/** Bytes of a path in a header; longer ones come before it, as GNU's tar has them. */
const PATH_BYTES = 100;
const text = new TextEncoder();

/** An archive that grows case by case. */
export class OutputArchive {
  constructor(kitHash) {
    this.parts = [];
    this.add('kit.txt', text.encode(kitHash));
  }

  /** Add the outputs of a case, an object of arrays by name. */
  addCase(name, outputs) {
    for (const [output, array] of Object.entries(outputs)) {
      this.add(`${name}/${encodeURIComponent(output)}.npy`, ...npy(array));
    }
  }

  add(path, ...contents) {
    const full = text.encode(`outputs/${path}`);
    if (full.length > PATH_BYTES) this.addFile(text.encode('././@LongLink'), 'L', [full, new Uint8Array(1)]);
    this.addFile(full, '0', contents);
  }

  /** Add a file of some contents under a path, in bytes, of a type of tar's. */
  addFile(path, type, contents) {
    const size = contents.reduce((sum, content) => sum + content.byteLength, 0);
    this.parts.push(header(path, type, size), ...contents, new Uint8Array(-size & (BLOCK - 1)));
  }

  /** Return the archive as a Blob, closed by two empty blocks. */
  toBlob() {
    return new Blob([...this.parts, new Uint8Array(2 * BLOCK)], { type: 'application/x-tar' });
  }
}

/** Return the parts of an .npy file of version 1.0; its values begin at a multiple of 64 bytes. */
function npy({ dtype, shape, values }) {
  const sides = shape.map((side) => `${side},`).join(' ');
  const facts = `{'descr': '${DESCRIPTIONS[dtype]}', 'fortran_order': False, 'shape': (${sides}), }`;
  const padded = facts.padEnd(Math.ceil((facts.length + 11) / 64) * 64 - 11) + '\n';
  const start = Uint8Array.of(0x93, ...text.encode('NUMPY'), 1, 0, padded.length & 255, padded.length >> 8);
  return [start, text.encode(padded), values];
}

/** Return the header of a file in a tar archive, in the format ustar; the path is cut if it is too long. */
function header(path, type, size) {
  const block = new Uint8Array(BLOCK);
  const octal = (value, digits) => value.toString(8).padStart(digits, '0');
  const write = (offset, words) => block.set(text.encode(words), offset);
  block.set(path.subarray(0, PATH_BYTES));
  write(100, octal(0o644, 7));
  write(124, octal(size, 11));
  write(136, octal(0, 11));
  write(148, '        ');
  write(156, type);
  write(257, 'ustar\0' + '00');
  const checksum = block.reduce((sum, byte) => sum + byte, 0);
  write(148, `${octal(checksum, 6)}\0 `);
  return block;
}
