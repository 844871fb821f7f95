"""Outputs of a kit of the ATSS toy, changed as faulty programs change them."""

import shutil

import numpy as np


def rewritten(outputs, folder, change):
    """Copy outputs; `change(path without suffix, arrays)` writes each case."""
    folder.mkdir(exist_ok=True)
    for file in outputs.glob('*.npz'):
        with np.load(file) as arrays:
            change(folder / file.stem, dict(arrays))
    shutil.copyfile(outputs / 'kit.txt', folder / 'kit.txt')
    return folder


def changed(**change):
    """Return a change for `rewritten`: name of an output -> function of its array; None leaves it out."""

    def write(target, arrays):
        arrays = {name: change.get(name, lambda array: array)(array) for name, array in arrays.items()}
        kept = {name: array for name, array in arrays.items() if array is not None}
        np.savez(target.with_suffix('.npz'), **kept)

    return write


FAULTS = {
    'zeros': changed(dets=np.zeros_like),
    'permuted labels': changed(labels=lambda array: np.roll(array, 1, 1)),
    'a missing output': changed(labels=lambda _: None),
    'another dtype': changed(dets=lambda array: array.astype(np.float64)),
    'other axes': changed(dets=lambda array: array.transpose(0, 2, 1)),
    'boxes moved by two pixels': changed(dets=lambda array: array + np.float32([2, 0, 2, 0, 0])),
    'scores lower by 0.001': changed(dets=lambda array: array - np.float32([0, 0, 0, 0, 1e-3])),
    'images of a batch mixed up': changed(dets=lambda array: array[::-1], labels=lambda array: array[::-1]),
    'one box fewer': changed(labels=lambda array: np.where(np.arange(array.shape[1]) == 0, -1, array)),
    'NaN': changed(dets=lambda array: array * np.float32(np.nan)),
    'the best result last': changed(dets=lambda array: array[:, ::-1], labels=lambda array: array[:, ::-1]),
    'padding with a class': changed(
        dets=lambda array: np.pad(array, ((0, 0), (0, 1), (0, 0))),
        labels=lambda array: np.pad(array, ((0, 0), (0, 1))),
    ),
}
