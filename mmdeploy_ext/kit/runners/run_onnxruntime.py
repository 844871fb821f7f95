"""Run the inputs of this kit in ONNX Runtime: python run_onnxruntime.py OUTPUTS [PROVIDER...].

Needs numpy and onnxruntime. Afterwards, where mm2onnx is: mm2onnx judge KIT OUTPUTS --told 'DEVICE, ENGINE'.
"""

import json
import sys
from pathlib import Path

import numpy as np

KIT = Path(__file__).resolve().parent


def read(kit: Path, entry: dict) -> np.ndarray:
    """Return the array of an entry of the manifest, a dict of `file`, `dtype` and `shape`."""
    dtype = np.dtype(entry['dtype']).newbyteorder('<')
    return np.fromfile(kit / entry['file'], dtype).reshape(entry['shape']).astype(entry['dtype'])


def open_file(path: Path, *providers: str) -> object:
    """Return a function from inputs to outputs of an ONNX file, both dicts of arrays by name.

    `providers` are execution providers of ONNX Runtime, the preferred one first; without any it chooses.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, settings, providers=list(providers) or None)
    if providers and session.get_providers()[0] != providers[0]:
        sys.exit(f'{providers[0]} did not start; this session has {session.get_providers()}')
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def main(outputs: str, *options: str, kit: Path = KIT, opens: object = open_file) -> None:
    """Run every case, then the frames of a model of several files; write their outputs to the folder OUTPUTS.

    `options` go to `opens`, which is `open_file` or the same of another engine; `kit` is the folder of a kit.
    """
    manifest, folder = json.loads((kit / 'manifest.json').read_text()), Path(outputs)
    folder.mkdir(parents=True, exist_ok=True)
    files = {graph['name']: opens(kit / graph['file'], *options) for graph in manifest['graphs']}
    cases = {case['name']: case for case in manifest['cases']}

    def run(case: dict, computed: dict) -> dict:
        inputs = {name: read(kit, entry) for name, entry in case['inputs'].items()} | computed
        results = files[case['graph']](inputs)
        return {name: results[name] for name in case['output_shapes']}

    for name, case in cases.items():  # each file on inputs of PyTorch
        np.savez(folder / f'{name}.npz', **run(case, {}))
    tensors = {}  # name of an output -> its last value
    for frame in manifest['frames']:  # each file on what those before it computed, memory included
        for step in frame['steps']:
            computed = {name: tensors[output] for name, output in step['computed'].items()}
            last = run(cases[step['case']], computed)
            tensors |= last
        np.savez(folder / f'{frame["outputs"]}.npz', **last)
    (folder / 'kit.txt').write_text(manifest['kit_sha256'])


if __name__ == '__main__':
    main(*sys.argv[1:])
