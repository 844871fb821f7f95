"""Results of seeded toys over a short drive, recorded when their code equalled upstream's numbers.

`python projects/driving/tests/support/toy_drive_goldens.py` writes the files again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mmdeploy_ext.families.detector import Detector

GOLDENS = Path(__file__).resolve().parents[4] / 'tests/goldens'
FILES = dict(
    streampetr='streampetr/toy_drive.npz',
    petr='petr/toy_drive_petr.npz',
    petrv2='petr/toy_drive_petrv2.npz',
    bevformer='bevformer/toy_drive.npz',
    sparse4d='sparse4d/toy_drive.npz',
)
FRAMES = 2
TOLERANCE = 2e-3


def results(model: Detector) -> dict[str, np.ndarray]:
    """Return the last layer's predictions and the boxes and scores of each frame of a drive, in PyTorch."""
    from mmdeploy_ext.families.synthetic.drive import synthetic_drive

    stepper, found = model.family.reference(model.model), {}
    stepper.reset()
    for index, frame in enumerate(synthetic_drive(FRAMES, model.rule, scenes=1)):
        step = stepper.step(frame)
        for name in ('all_cls_scores', 'all_bbox_preds', 'pred_class_score', 'pred_anchor'):
            if name in step.outputs:
                values = step.outputs[name]
                found[f'f{index}_{name}'] = values[-1] if name.startswith('all_') else values
        found[f'f{index}_scores'] = step.detections.scores
        found[f'f{index}_sorted_boxes'] = np.sort(step.detections.boxes, 0)  # boxes of near-ties may swap
    return {name: np.asarray(values, np.float32) for name, values in found.items()}


def check(model: Detector) -> None:
    """Assert that a toy gives the recorded numbers."""
    stored, found = np.load(GOLDENS / FILES[model.family.name]), results(model)
    assert set(stored.files) == set(found)
    for name in stored.files:
        np.testing.assert_allclose(found[name], stored[name], rtol=0, atol=TOLERANCE, err_msg=name)


def main() -> int:
    from mmdeploy_ext.upstream import compat

    compat.apply()
    import toy_frames

    for toy in toy_frames.TOYS:
        with TemporaryDirectory() as folder:
            np.savez_compressed(GOLDENS / FILES[toy.name], **results(toy.load(Path(folder))))
    return 0


if __name__ == '__main__':
    sys.exit(main())
