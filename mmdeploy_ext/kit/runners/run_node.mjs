// Run the inputs of this kit in onnxruntime-node: node run_node.mjs OUTPUTS [PROVIDER]
//
// Needs npm's onnxruntime-node where node finds it (npm install onnxruntime-node). Writes OUTPUTS/CASE/NAME.bin.
// Afterwards, where mm2onnx is: mm2onnx judge KIT OUTPUTS --told 'DEVICE, ENGINE'.
import fs from 'node:fs';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const ort = createRequire(path.join(process.cwd(), 'package.json'))('onnxruntime-node');
const kit = path.dirname(fileURLToPath(import.meta.url));
const [outputs, provider] = process.argv.slice(2);
if (!outputs) {
  console.error('usage: node run_node.mjs OUTPUTS [PROVIDER]');
  process.exit(1);
}
const manifest = JSON.parse(fs.readFileSync(path.join(kit, 'manifest.json')));
const arrays = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array,
  int8: Int8Array, bool: Uint8Array, float16: Uint16Array, int16: Int16Array, uint16: Uint16Array,
};

function read({ file, dtype, shape }) {
  const bytes = fs.readFileSync(path.join(kit, file));
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length);
  return new ort.Tensor(dtype, new arrays[dtype](buffer), shape);
}

function write(name, results) {
  fs.mkdirSync(path.join(outputs, name), { recursive: true });
  for (const [output, { data }] of Object.entries(results)) {
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    fs.writeFileSync(path.join(outputs, name, `${encodeURIComponent(output)}.bin`), bytes);
  }
}

const sessions = {};
for (const { name, file } of manifest.graphs) {
  const options = provider ? { executionProviders: [provider] } : {};
  sessions[name] = await ort.InferenceSession.create(path.join(kit, file), options);
}

function run(name, computed) {
  const { graph, inputs } = manifest.cases.find((entry) => entry.name === name);
  const feeds = Object.entries(inputs).map(([input, entry]) => [input, computed[input] ?? read(entry)]);
  return sessions[graph].run(Object.fromEntries(feeds));
}

for (const { name } of manifest.cases) write(name, await run(name, {}));
const tensors = {};
for (const frame of manifest.frames) {
  let last;
  for (const { case: name, computed } of frame.steps) {
    const entries = Object.entries(computed).map(([input, output]) => [input, tensors[output]]);
    last = await run(name, Object.fromEntries(entries));
    Object.assign(tensors, last);
  }
  write(frame.outputs, last);
}
fs.copyFileSync(path.join(kit, 'kit.txt'), path.join(outputs, 'kit.txt'));
