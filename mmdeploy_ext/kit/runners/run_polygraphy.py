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
    """Return the entries in the manifest of the cases of the file that KIT_GRAPH names.

    Without that variable they are of the first file, and of a name that no file has there are none.
    """
    manifest = json.loads((KIT / 'manifest.json').read_text())
    graph = os.environ.get('KIT_GRAPH', manifest['graphs'][0]['name'])
    return [case for case in manifest['cases'] if case['graph'] == graph]


def load_data() -> Iterator[dict]:
    """Yield the inputs of each case of `cases` by name."""
    for case in cases():
        yield {
            name: np.fromfile(KIT / entry['file'], entry['dtype']).reshape(entry['shape'])
            for name, entry in case['inputs'].items()
        }


def main(results: str, outputs: str) -> None:
    """Write the results of Polygraphy as outputs of `cases` into a folder, with the hash of the kit.

    `results` is the path of the JSON file of --save-outputs, of which the last engine counts; `outputs` is
    the folder, which is made if it is missing. ValueError: the file has not one result for each case.
    """
    from polygraphy.comparator import RunResults
    from run_onnxruntime import save

    _, iterations = RunResults.load(results)[-1]
    folder = Path(outputs)
    folder.mkdir(parents=True, exist_ok=True)
    for case, arrays in zip(cases(), iterations, strict=True):
        save(folder / f'{case["name"]}.npz', {name: arrays[name] for name in arrays})
    (folder / 'kit.txt').write_text((KIT / 'kit.txt').read_text())


if __name__ == '__main__':
    main(*sys.argv[1:])
