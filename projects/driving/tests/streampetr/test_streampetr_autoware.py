"""StreamPETR for camera_streampetr: proven frame by frame through the node's own loop, its faults refused."""

from unittest import mock

import numpy as np
import onnx
import pytest

import toy_streampetr_deploy as deployed
from mm2onnx_driving.autoware.nodes import STREAMPETR
from mm2onnx_driving.streampetr.targets.autoware import NORMS, from_node
from mmdeploy_ext.cli.check_app import check_autoware as main
from proofs import OF_OTHER_CONTRACTS
from verdicts import sequence_of

CLASSES = (
    'car',
    'truck',
    'bus',
    'trailer',
    'motorcycle',
    'bicycle',
    'pedestrian',
    'barrier',
    'animal',
    'cone',
)


@pytest.fixture(scope='module')
def toy():
    detector = deployed.detector()
    detector.model.CLASSES = CLASSES
    named = mock.patch.dict(detector.cfg._cfg_dict, classes=list(CLASSES))
    with named, mock.patch.object(detector, 'classes', CLASSES):
        yield detector


@pytest.fixture(scope='module')
def folder(toy, tmp_path_factory):
    place = tmp_path_factory.mktemp('autoware')
    deployed.export(place, contract='autoware', opset=17)
    return place / 'deploy'


def paths(folder):
    return [str(folder / f'{name}.onnx') for name in STREAMPETR.graphs]


@pytest.mark.parametrize('proof', OF_OTHER_CONTRACTS)
def test_the_files_are_proven_frame_by_frame_with_a_reset(toy, folder, proof):
    verdict = proof(toy, paths(folder), deployed.drive(6))
    assert verdict.proven, verdict.failures
    teacher, free = sequence_of(verdict)
    assert teacher.resets >= 1 and free.matched == free.reference >= 100


def test_the_node_would_take_the_folder(folder):
    assert main([str(folder)]) == 0
    names = [one.name for one in onnx.load(paths(folder)[1]).graph.input]
    assert names == ['img_metas_pad', 'intrinsics', 'img2lidar']
    used = {name for node in onnx.load(paths(folder)[1]).graph.node for name in node.input}
    assert 'img_metas_pad' in used  # or an engine could drop it


@pytest.mark.parametrize('planes', NORMS)
@pytest.mark.parametrize(
    ('mean', 'std', 'to_rgb'),
    [
        ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), False),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True),
    ],
)
def test_what_a_node_makes_of_the_bytes_becomes_what_the_model_was_trained_with(planes, mean, std, to_rgb):
    bgr = np.random.default_rng(0).integers(0, 256, (8, 9, 3))
    fed = (bgr[..., :: -1 if planes == 'rgb' else 1] - np.array(NORMS[planes][0])) / NORMS[planes][1]
    trained = (bgr[..., :: -1 if to_rgb else 1] - np.array(mean)) / std
    turned, scale, shift = from_node(planes, mean, std, to_rgb)
    np.testing.assert_allclose(fed[..., :: -1 if turned else 1] * scale + shift, trained, atol=1e-9)
