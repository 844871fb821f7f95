"""Sparse4D in the test loop: both engines' boxes, track ids and metrics over whole scenes."""

import pickle

import numpy as np
import pytest

import toy_nuscenes
from dev.seeded.weights import write_seeded
from toy_frames import SPARSE4D

pytestmark = pytest.mark.matrix
SCENES, FRAMES = 2, 3


def test_boxes_track_ids_and_metrics_are_equal_on_both_engines(tmp_path):
    root = toy_nuscenes.write(tmp_path, val_scenes=SCENES, frames=FRAMES, sweeps=0, drop_share=0)
    infos, work_dir, checkpoint = (
        root / toy_nuscenes.INFOS,
        tmp_path / 'sparse4d_toy',
        str(tmp_path / 'm.pth'),
    )
    write_seeded(SPARSE4D.config, checkpoint)
    for engine in ('pth', 'onnx'):
        config = SPARSE4D.config.replace('.py', f'_{engine}.py')
        assert toy_nuscenes.evaluate(config, checkpoint, infos, work_dir, out=f'{engine}.pkl') == 0
    toy_nuscenes.assert_equal_scores(work_dir)
    reference, other = (pickle.loads((work_dir / f'{name}.pkl').read_bytes()) for name in ('pth', 'onnx'))
    assert len(reference) == len(other) == SCENES * FRAMES
    for boxes, found in zip(reference, other, strict=True):
        # boxes of nearly equal scores may change places: an id tells which is which
        order, places = (np.argsort(one['instance_ids'].numpy()) for one in (boxes, found))
        for name, tolerance in (('instance_ids', 0), ('labels_3d', 0), ('scores_3d', 1e-4)):
            values, got = boxes[name].numpy()[order], found[name].numpy()[places]
            np.testing.assert_allclose(got, values, rtol=0, atol=tolerance)
