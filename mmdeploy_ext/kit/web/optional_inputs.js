/**
 * Removes the defaults of optional inputs from an ONNX file, so that onnxruntime-web can feed them.
 *
 * A default is an initializer with the name of an input. The library's sessions know such inputs only as
 * constants, and refuse to be fed them. Nothing else of the file changes. Field numbers are of onnx.proto.
 */

const MODEL_GRAPH = 7;
const GRAPH_INITIALIZER = 5;
const TENSOR_NAME = 8;
const [VARINT, FIXED64, BYTES, FIXED32] = [0, 1, 2, 5];

/** Return the bytes of a model in which inputs with these names have no defaults. */
export function withoutDefaults(model, inputNames) {
  const names = new Set(inputNames);
  const parts = [];
  for (const field of fieldsOf(model)) {
    if (field.number !== MODEL_GRAPH) {
      parts.push(model.subarray(field.start, field.end));
      continue;
    }
    const graph = model.subarray(field.contentStart, field.end);
    const kept = fieldsOf(graph)
      .filter(
        ({ number, contentStart, end }) =>
          number !== GRAPH_INITIALIZER || !names.has(nameOf(graph.subarray(contentStart, end))),
      )
      .map(({ start, end }) => graph.subarray(start, end));
    const size = kept.reduce((sum, part) => sum + part.length, 0);
    parts.push(varint((MODEL_GRAPH << 3) | BYTES), varint(size), ...kept);
  }
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    bytes.set(part, offset);
    offset += part.length;
  }
  return bytes;
}

/** Return {number, start, contentStart, end} of every field of a message of protobuf. */
function fieldsOf(message) {
  const fields = [];
  let offset = 0;
  const readVarint = () => {
    let [value, factor] = [0, 1];
    for (;;) {
      const byte = message[offset++];
      value += (byte & 0x7f) * factor;
      if (byte < 0x80) return value;
      factor *= 128;
    }
  };
  while (offset < message.length) {
    const start = offset;
    const key = readVarint();
    const sizes = {
      [VARINT]: () => (readVarint(), 0),
      [FIXED64]: () => 8,
      [BYTES]: readVarint,
      [FIXED32]: () => 4,
    };
    const size = sizes[key % 8]();
    fields.push({ number: Math.floor(key / 8), start, contentStart: offset, end: (offset += size) });
  }
  return fields;
}

function nameOf(tensor) {
  const field = fieldsOf(tensor).find(({ number }) => number === TENSOR_NAME);
  return field ? new TextDecoder().decode(tensor.subarray(field.contentStart, field.end)) : '';
}

function varint(value) {
  const bytes = [];
  for (; value >= 128; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return Uint8Array.from([...bytes, value]);
}
