"""Dumps of images: which options of the file the family gets. Dumps of frames: what a refused one leaves."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import DataError
from mmdeploy_ext.proving.against_dump import FrameDumpComparer


def test_a_frame_behind_one_that_the_files_refuse_is_not_compared():
    """Its memory would be that of an older frame, and the engine be blamed for it."""

    def step(frame):
        if frame.number == 1:
            raise DataError('ego_pose: is not a rigid transform')
        return SimpleNamespace(outputs=dict(boxes=np.ones((1, 1, 2), np.float32)))

    def dumped_frame(tensors, manifest):
        return SimpleNamespace(number=manifest['sample'], ego_pose=np.eye(4))

    family = SimpleNamespace(memory=True, data=SimpleNamespace(compared=(), dumped_frame=dumped_frame))
    spec = GraphSpec('toy', (), (TensorSpec('boxes', 'float32', (1, 1, 2)),))
    comparer = FrameDumpComparer(
        SimpleNamespace(step=step, reset=lambda: None),
        [SimpleNamespace(precision='fp32', spec=spec)],
        SimpleNamespace(family=family),
    )

    def compare(number):
        tensors = dict(boxes=np.ones((1, 1, 2), np.float32), prev_exists=np.float32([number > 0]))
        return comparer.compare(f'{number:06}', tensors, dict(sample=number))

    assert compare(0).passed
    with pytest.raises(DataError, match='rigid'):
        compare(1)
    with pytest.raises(DataError, match='its memory is not known'):
        compare(2)
