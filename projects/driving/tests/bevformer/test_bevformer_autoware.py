"""BEVFormer for tensorrt_bevformer: the node takes the folder, and it is proven through the node's record."""

from pathlib import Path
from types import SimpleNamespace as Names

import numpy as np
import pytest
import torch

from mm2onnx_driving.bevformer.autoware import NodeFrame
from mm2onnx_driving.bevformer.runtime import node_record, relative
from mmdeploy_ext.cli.check_app import check_autoware as main
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from mmdeploy_ext.runtime.bev_motion import bev_shift
from proofs import prove_samples
from toy_frames import BEVFORMER as toy

detector, paths = toy.fixtures(contract='autoware')


@pytest.mark.matrix
def test_the_file_is_proven_through_the_nodes_record(detector, paths, capsys):
    verdict = prove_samples(detector, paths, synthetic_drive(4, detector.rule))
    assert verdict.passed, verdict.failures
    assert verdict.summary()['matched'] == verdict.summary()['reference'] >= 200
    assert main([str(Path(paths[0]).parent)]) == 0, capsys.readouterr().out


def test_the_graph_turns_the_nodes_record_back():
    record = np.arange(18.0)
    fed = node_record(record)
    assert fed[7:16].tolist() == [13, 14, 15, 10, 11, 12, 7, 8, 9]  # velocity, rates, acceleration
    for kind, orientation in dict(wxyz=[3, 4, 5, 6], wwww=[3] * 4).items():
        back = NodeFrame.record(Names(model=Names(can_bus_orientation=kind)), torch.from_numpy(fed)).numpy()
        assert back.tolist() == [*record[:3], *orientation, *record[7:]]
    assert np.flatnonzero(relative(fed, None) != fed).tolist() == [1, 2, 17]  # entry 0 is 0
    moved = relative(fed, np.full(18, 2.0))
    assert moved.tolist() == [-2, -1, 0, *fed[3:17], 15]


def test_the_graph_has_the_shift_of_a_view_that_is_no_square():
    motion, head = np.random.default_rng(0).standard_normal(18), Names(pc_range=[-3.0, -5, -1, 4, 15, 3])
    for use_shift, expected in ((True, bev_shift(motion, (7.0, 20.0))), (False, np.zeros(2))):
        head.transformer = Names(use_shift=use_shift)
        shift = NodeFrame.shift(Names(model=Names(pts_bbox_head=head)), torch.from_numpy(motion))
        np.testing.assert_allclose(shift, expected, atol=1e-7)
