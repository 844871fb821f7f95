"""Polygraphy on the inputs of this kit; the README has the commands for each file.

    export KIT_GRAPH=NAME
    polygraphy run FILE.onnx --trt --data-loader-script run_polygraphy.py --save-outputs RESULTS.json
    python run_polygraphy.py RESULTS.json OUTPUTS

`polygraphy run` runs all cases of the file NAME, which `load_data` yields; then this program writes the
results of its last engine as OUTPUTS/CASE.npz. Needs numpy and polygraphy. Afterwards, where mm2onnx is:
mm2onnx judge.
"""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

KIT = Path(__file__).resolve().parent


def cases() -> list[dict]:
    """Return the entries of the cases of the file that KIT_GRAPH names; without it of the first file."""
    manifest = json.loads((KIT / 'manifest.json').read_text())
    graph = os.environ.get('KIT_GRAPH', manifest['graphs'][0]['name'])
    return [case for case in manifest['cases'] if case['graph'] == graph]


def load_data() -> Iterator[dict]:
    """Yield the inputs of each case by name."""
    for case in cases():
        yield {
            name: np.fromfile(KIT / entry['file'], entry['dtype']).reshape(entry['shape'])
            for name, entry in case['inputs'].items()
        }


def main(results: str, outputs: str) -> None:
    """Write the results of Polygraphy, the path of a JSON file, as outputs of the cases into a folder."""
    from polygraphy.comparator import RunResults

    _, iterations = RunResults.load(results)[-1]
    folder = Path(outputs)
    folder.mkdir(parents=True, exist_ok=True)
    for case, arrays in zip(cases(), iterations, strict=True):
        np.savez(folder / f'{case["name"]}.npz', **{name: np.asarray(arrays[name]) for name in arrays})
    (folder / 'kit.txt').write_text((KIT / 'kit.txt').read_text())


if __name__ == '__main__':
    main(*sys.argv[1:])
