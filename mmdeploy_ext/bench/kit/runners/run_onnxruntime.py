"""Run the inputs of this kit in ONNX Runtime: python run_onnxruntime.py OUTPUTS [PROVIDER...]."""

import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')  # before onnxruntime is imported
KIT = Path(__file__).resolve().parent


def read(kit: Path, entry: dict) -> np.ndarray:
    dtype = np.dtype(entry['dtype']).newbyteorder('<')
    return np.fromfile(kit / entry['file'], dtype).reshape(entry['shape']).astype(entry['dtype'])


def save(path: Path, arrays: dict) -> None:
    """Write arrays by name as .npz, also an array called 'file', which `np.savez` refuses."""
    with zipfile.ZipFile(path, 'w') as archive:
        for name, array in arrays.items():
            with archive.open(f'{name}.npy', 'w', force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array))


def open_file(path: Path, *providers: str) -> Callable[[dict], dict]:
    """Return a function from inputs to outputs, both arrays by name, without CUDA's TF32 rounding."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors
    options = {'CUDAExecutionProvider': {'use_tf32': '0'}}
    preferences = [(name, options.get(name, {})) for name in providers]
    session = onnxruntime.InferenceSession(path, settings, providers=preferences or None)
    if providers and session.get_providers()[0] != providers[0]:
        sys.exit(f'{providers[0]} did not start; this session has {session.get_providers()}')
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(names, inputs), strict=True))


def main(*words: str, kit: Path = KIT, opens: Callable = open_file, say: Callable = print) -> None:
    if not words or words[0].startswith('-'):
        sys.exit(f'usage: python {Path(sys.argv[0]).name} OUTPUTS [OPTION...]')
    outputs, *options = words
    manifest, folder = json.loads((kit / 'manifest.json').read_text()), Path(outputs)
    folder.mkdir(parents=True, exist_ok=True)
    files = {graph['name']: opens(kit / graph['file'], *options) for graph in manifest['graphs']}
    cases = {case['name']: case for case in manifest['cases']}

    def run(case: dict, computed: dict) -> dict:
        inputs = {name: read(kit, entry) for name, entry in case['inputs'].items()} | computed
        results = files[case['graph']](inputs)
        return {name: results[name] for name in case['output_shapes']}

    for name, case in cases.items():  # each file on inputs of PyTorch
        save(folder / f'{name}.npz', run(case, {}))
        say(f'{name} of {len(cases)}: {case["title"]}')
    tensors = {}  # name of an output -> its last value
    for frame in manifest['frames']:  # each file on what those before it computed, memory included
        for step in frame['steps']:
            computed = {name: tensors[output] for name, output in step['computed'].items()}
            last = run(cases[step['case']], computed)
            tensors |= last
        save(folder / f'{frame["outputs"]}.npz', last)
        say(f'{frame["outputs"]} of {len(manifest["frames"])} frames')
    (folder / 'kit.txt').write_text(manifest['kit_sha256'])
    if kit == KIT:  # run as a program of the kit
        say(f'outputs are in {folder}; next, where mm2onnx is installed: mm2onnx judge {kit} {folder}')


if __name__ == '__main__':
    main(*sys.argv[1:])
