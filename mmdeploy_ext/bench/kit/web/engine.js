/** Runs the model with onnxruntime-web: one thread, in WebAssembly or on WebGPU. */

/** Execution provider -> its title, and the files of the library. */
export const PROVIDERS = {
  wasm: { title: 'WebAssembly', loader: 'ort.wasm.bundle.min.mjs', binary: 'ort-wasm-simd-threaded.wasm' },
  webgpu: {
    title: 'WebGPU',
    loader: 'ort.webgpu.bundle.min.mjs',
    binary: 'ort-wasm-simd-threaded.asyncify.wasm',
  },
};

/** A session of a model. */
export class Engine {
  /** Load the library and the model of a kit for an execution provider, a key of `PROVIDERS`. */
  static async open(kit, provider) {
    const { loader, binary } = PROVIDERS[provider];
    const ort = await import(`kit/ort/${loader}`);
    ort.env.logLevel = 'error';
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = await kit.readLibrary(binary);
    const model = new Uint8Array(await kit.read(kit.manifest.file));
    const options = { executionProviders: [provider], logSeverityLevel: 3 };
    const session = await ort.InferenceSession.create(model, options);
    return new Engine(ort, session);
  }

  constructor(ort, session) {
    this.ort = ort;
    this.session = session;
  }

  /** Version of the library. */
  get version() {
    return this.ort.env.versions.web;
  }

  /** Return the outputs by name; `inputs` and outputs are objects of arrays, see arrays.js. */
  async run(inputs) {
    const feeds = {};
    for (const name of this.session.inputNames) {
      const { dtype, shape, values } = inputs[name];
      feeds[name] = new this.ort.Tensor(dtype, values, shape);
    }
    const outputs = await this.session.run(feeds);
    const arrays = Object.entries(outputs).map(([name, { type, dims, data }]) => [
      name,
      { dtype: type, shape: [...dims], values: data },
    ]);
    return Object.fromEntries(arrays);
  }
}
