"""Show the fault of the graph in this folder again: `python run.py`."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')  # before onnxruntime is imported

Arrays = Mapping[str, np.ndarray]


def compute(source: str | bytes, feeds: Arrays, optimized: bool) -> dict[str, np.ndarray]:
    """Run a model, a path or bytes, in ONNX Runtime with all its optimisations or none."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(source, options, providers=['CPUExecutionProvider'])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def not_finite(arrays: Arrays) -> str:
    """Return 'nan', 'inf' or ''; only numpy's native floats count."""
    values = [np.asarray(array) for array in arrays.values()]
    values = [array.astype(np.float64) for array in values if array.dtype.kind == 'f']
    if any(np.isnan(array).any() for array in values):
        return 'nan'
    return 'inf' if any(np.isinf(array).any() for array in values) else ''


def difference(outputs: Arrays, expected: Arrays) -> float:
    """Return the largest difference over all outputs, relative to each largest expected value."""
    names = [name for name in expected if name in outputs]
    return max((_difference(outputs[name], expected[name]) for name in names), default=0.0)


def _difference(array: Any, expected: Any) -> float:
    array, expected = np.asarray(array), np.asarray(expected)
    if array.shape != expected.shape:
        return float('inf')
    if array.dtype.kind in 'OSU':
        return 0.0 if (array.astype(str) == expected.astype(str)).all() else float('inf')
    unequal = array != expected
    is_integer = expected.dtype.kind in 'iu'
    array, expected = array.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(expected)
    same_special = np.array_equal(array[~finite], expected[~finite], equal_nan=True)
    if not same_special or not np.isfinite(array[finite]).all():
        return float('inf')
    largest = float(np.abs(expected[finite]).max(initial=0.0))
    error = float(np.abs(array[finite] - expected[finite]).max(initial=0.0))
    if is_integer and unequal.any():  # large ones may be equal in float64
        error = max(error, 1.0)
    if not largest:
        return float('inf') if error else 0.0
    return error / largest


def outcome(source: str | bytes, feeds: Arrays) -> str:
    """Return 'runs', or the name of ONNX Runtime's exception."""
    try:
        compute(source, feeds, optimized=True)
    except Exception as error:
        print(error, file=sys.stderr)
        return type(error).__name__
    return 'runs'


def _arrays(file: Path) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def judge(folder: Path, case: Mapping[str, Any]) -> bool:
    """Run the model of a folder and print the result; return whether the fault is shown."""
    kind, source = case['check'], str(folder / 'model.onnx')
    feeds, expected = _arrays(folder / 'inputs.npz'), _arrays(folder / 'expected.npz')
    if kind == 'crash':
        found = outcome(source, feeds)
        print(f'ended with: {found}; recorded: {case["outcome"]}')
        return found == case['outcome']
    try:
        outputs = compute(source, feeds, optimized=kind in ('engines', 'reference'))
    except Exception as error:
        if kind != 'engines':
            raise
        compute(source, feeds, optimized=False)  # if this fails as well, the optimisations are not at fault
        print(f'with all optimisations: {error}', file=sys.stderr)
        return True
    outputs = {name: outputs[name] for name in case['outputs']}
    for name, array in outputs.items():
        print(f'{name}: {np.asarray(array).dtype} {np.shape(array)}, {not_finite({name: array}) or "finite"}')
    if kind == 'nan':
        return not_finite(outputs) == case['outcome']
    if kind == 'engines':
        expected = compute(source, feeds, optimized=False)
    error = difference(outputs, expected)
    print(f'largest difference: {error:.3g} of the largest expected value; tolerance {case["tolerance"]:g}')
    if kind == 'command':
        print(f'the check was a command: {case["command"]} model.onnx')
        return error <= case['tolerance']
    return error > case['tolerance']


def main() -> int:
    folder = Path(__file__).resolve().parent
    case = json.loads((folder / 'case.json').read_text(encoding='utf-8'))
    is_shown = judge(folder, case)
    print('the fault appears' if is_shown else 'the fault does NOT appear')
    return 0 if is_shown else 1


if __name__ == '__main__':
    sys.exit(main())
