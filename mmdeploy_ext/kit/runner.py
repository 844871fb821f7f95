"""Run the inputs of this kit in ONNX Runtime: python run_onnxruntime.py OUTPUTS [PROVIDER...].

Needs numpy and onnxruntime. Afterwards, where mm2onnx is: mm2onnx judge KIT OUTPUTS --told 'DEVICE, ENGINE'.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

KIT = Path(__file__).resolve().parent


def read(entry: dict) -> np.ndarray:
    """Return the array of an entry of the manifest, a dict of `file`, `dtype` and `shape`."""
    dtype = np.dtype(entry['dtype']).newbyteorder('<')
    return np.fromfile(KIT / entry['file'], dtype).reshape(entry['shape']).astype(entry['dtype'])


def main(outputs: str, *providers: str) -> None:
    """Run every case and write its outputs to OUTPUTS/CASE.npz, and the kit's hash to OUTPUTS/kit.txt.

    `providers` are execution providers of ONNX Runtime, in order; without any its default runs.
    """
    manifest = json.loads((KIT / 'manifest.json').read_text())
    session = onnxruntime.InferenceSession(KIT / manifest['file'], providers=providers or None)
    if providers and session.get_providers()[0] != providers[0]:
        sys.exit(f'{providers[0]} did not start; this session has {session.get_providers()}')
    names = [output.name for output in session.get_outputs()]
    folder = Path(outputs)
    folder.mkdir(parents=True, exist_ok=True)
    for case in manifest['cases']:
        feeds = {name: read(entry) for name, entry in case['inputs'].items()}
        arrays = dict(zip(names, session.run(names, feeds), strict=True))
        np.savez(folder / f'{case["name"]}.npz', **arrays)
        print(case['name'], case['title'])
    (folder / 'kit.txt').write_text(manifest['kit_sha256'])


if __name__ == '__main__':
    main(*sys.argv[1:])
