/** Reads the files of a kit over HTTP, and compares them with their hashes. */

import { arrayOf } from 'kit/arrays.js';
import { resultsOfKit } from 'kit/results.js';

export const MANIFEST = 'manifest.json';

/** Return the bytes of a file, from the server. */
async function readFile(file) {
  const response = await fetch(file.split('/').map(encodeURIComponent).join('/'));
  if (!response.ok) throw new Error(`${file}: the server answered ${response.status}`);
  return response.arrayBuffer();
}

/** Return the SHA-256 of bytes in hexadecimal digits. */
async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** Return the metadata of the kit's file, of which each entry is JSON; of a module's file the spec alone. */
function metadataOf({ graphs, bars }) {
  const [{ metadata: texts = {}, spec }] = graphs;
  const entries = Object.entries(texts).map(([key, text]) => [key.replace('mm2onnx.', ''), JSON.parse(text)]);
  const metadata = { spec, ...Object.fromEntries(entries) };
  withGroups(metadata.spec, bars.rtol);
  return metadata;
}

/** Give every output of a spec that has no column groups one of all columns, with a relative tolerance. */
export function withGroups(spec, rtol) {
  for (const tensor of spec.outputs) {
    if (!tensor.groups.length)
      tensor.groups = [{ name: '', columns: null, unit: tensor.unit, rtol, atol: 0 }];
  }
}

/** The files of a kit. */
export class Kit {
  /** Read the manifest. */
  static async open() {
    return new Kit(JSON.parse(new TextDecoder().decode(await readFile(MANIFEST))));
  }

  constructor(manifest) {
    this.manifest = manifest;
    this.metadata = metadataOf(manifest);
  }

  /** Whether files can be compared with their hashes: browsers refuse to compute them on plain HTTP. */
  get isChecked() {
    return Boolean(globalThis.crypto?.subtle);
  }

  /** Return the bytes of a file of the kit; an error if it is missing, or was changed since. */
  async read(file) {
    const bytes = await readFile(file);
    if (this.isChecked && (await sha256(bytes)) !== this.manifest.files[file]) {
      throw new Error(`${file}: was changed since the kit was made; make it again`);
    }
    return bytes;
  }

  /** Return the bytes of a file of the library that runs the model; kits need not have it. */
  readLibrary(file) {
    return readFile(`web/ort/${file}`);
  }

  /** Return {name, title, images, inputs, beside, tensors, rounding, results} of one of the manifest's cases. */
  async readCase({ name, title, images, inputs, beside, tensors, rounding, results }) {
    const [inputArrays, besideArrays, tensorArrays, roundingArrays] = await Promise.all(
      [inputs, beside, tensors, rounding].map((part) => this.readArrays(part)),
    );
    const fields = await Promise.all(results.map((image) => this.readArrays(image.fields)));
    return {
      name,
      title,
      images,
      inputs: inputArrays,
      beside: besideArrays,
      tensors: tensorArrays,
      rounding: roundingArrays,
      results: fields.map(resultsOfKit),
    };
  }

  async readArrays(entries) {
    const arrays = await Promise.all(
      Object.entries(entries).map(async ([name, entry]) => [
        name,
        arrayOf(await this.read(entry.file), entry),
      ]),
    );
    return Object.fromEntries(arrays);
  }
}
