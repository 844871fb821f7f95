"""FlashOcc's contracts: proven as streams; wrong occupancies are not."""

import dataclasses
import functools
from unittest import mock

import numpy as np
import pytest
import torch

import toy_frames
from eager_files import eager_row, names_of
from marking import in_suite
from mm2onnx_driving import plugin_bevdet
from mm2onnx_driving.common.runtime.lift_splat import LiftOnnx
from mm2onnx_driving.flashocc.family import PooledFiles
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.bench.kit.contents import KitCase, StoredCase
from mmdeploy_ext.bench.kit.frames import write_frames
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from planting import replaced
from proofs import prove
from replay import Replay, once_a_frame

TOY = toy_frames.FLASHOCC


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    return TOY.load(tmp_path_factory.mktemp('flashocc'))


@pytest.fixture(scope='module')
def frames(detector):
    return list(synthetic_drive(3, detector.rule, scenes=2))


@pytest.fixture(scope='module')
def path_of(detector, tmp_path_factory):
    """Contract -> its file, exported when it is asked for."""
    folder = tmp_path_factory.mktemp('export')
    return functools.cache(lambda contract: TOY.export(detector, folder / contract, contract=contract))


@pytest.mark.parametrize('contract', in_suite(['portable', 'trt-plugin', 'trt-argmax'], 'portable'))
def test_the_file_is_proven_as_a_stream(detector, frames, path_of, contract):
    verdict = prove(detector, path_of(contract), frames)
    assert verdict.passed, verdict.failures
    summary = verdict.summary()
    assert summary['matched'] == summary['reference'] >= 3000 and summary['worst_iou'] == 1
    assert detector.classes[-1] == 'free'


def test_a_kit_has_the_classes_and_leads_of_pytorch(detector, frames, path_of, tmp_path):
    (entry,) = write_frames(detector, path_of('portable'), frames[:1], tmp_path)['cases']
    (occupancy,) = KitCase.read(tmp_path, StoredCase.from_json(entry), 'flashocc').results
    expected = detector.family.reference(detector.model).step(frames[0]).detections
    np.testing.assert_array_equal(occupancy.labels, expected.labels)
    np.testing.assert_array_equal(occupancy.leads, expected.leads)


@pytest.fixture(scope='module')
def row_of(detector, frames, tmp_path_factory):
    """Run a contract's loop beside the recorded results of PyTorch."""
    recorded, folder = Replay(detector, frames[:2]), tmp_path_factory

    def row(contract='portable'):
        with mock.patch.object(type(detector.family), 'reference', lambda *_: recorded):
            return eager_row(detector, folder.mktemp('eager'), frames[:2], contract=contract)

    return row


PROGRAMS = {'trt-plugin': ('output_0', 5), 'trt-argmax': ('cls_occ_label', 4)}
"""Contract -> name and rank of its output. Source: tools/convert_bevdet_to_TRT.py of FlashOcc."""
TABLES = 'ranks_depth', 'ranks_feat', 'ranks_bev', 'interval_starts', 'interval_lengths'


@pytest.mark.parametrize('contract', PROGRAMS)
def test_the_loops_of_the_converters_files_give_the_results_of_pytorch(row_of, contract):
    row, specs = row_of(contract)
    assert row.passed and row.matched >= 1000, row.reasons
    inputs, outputs = names_of(*specs.values())
    assert inputs == [('img', 4), *((name, 1) for name in TABLES)] and outputs == [PROGRAMS[contract]]


def test_a_depth_network_that_knows_the_camera_is_in_the_portable_graph_alone(frames, tmp_path):
    depth = dict(type='LSSViewTransformerBEVDepth', depthnet_cfg=dict(use_dcn=False, aspp_mid_channels=96))
    changes = {f'model.img_view_transformer.{key}': value for key, value in depth.items()}
    toy = dataclasses.replace(TOY, changes={'model.type': 'BEVDepthOCC', **changes})
    detector = toy.load(tmp_path)
    row, _ = eager_row(detector, tmp_path, frames[:2])
    assert row.passed and row.matched >= 1000, row.reasons
    with pytest.raises(ConfigError, match='depth network'):
        PooledFiles(detector.family).check(detector.cfg)


RUN = 'mm2onnx_driving.common.runtime.lift_splat:LiftOnnx.run'
FEEDS = 'mm2onnx_driving.common.runtime.lift_splat:LiftOnnx.feeds_of'
LIFT = 'mm2onnx_driving.common.lift:LiftNetwork.lift'
ENCODED = 'mm2onnx_driving.common.lift:LiftNetwork.encoded'


def of_run(change):
    """Change the logits (1, X, Y, Z, K) of a run; the classes follow."""

    def make(original):
        def run(self, frame, memory):
            logits = np.ascontiguousarray(change(original(self, frame, memory)['occ_logits']))
            return dict(occ_logits=logits, occupancy=logits[0].argmax(-1).astype(np.uint8))

        return run

    return make


def of_feeds(**changes):
    def make(original):
        def feeds_of(self, frame, memory):
            feeds = original(self, frame, memory)
            return feeds | {name: change(feeds[name]) for name, change in changes.items()}

        return feeds_of

    return make


def other_grid(original):
    def tables(self, *rig):
        facts, crop = self.metadata.postprocess, self.rule.crop_matrix().astype(np.float64)
        low = facts.grid_low[0] + facts.grid_step[0], *facts.grid_low[1:]
        moved = dataclasses.replace(facts, grid_low=low)
        return plugin_bevdet.intervals(moved, plugin_bevdet.point_cells(moved, *rig, crop))

    return tables


def logits_for_shares(original):
    def lift(self, images, vectors):
        with mock.patch.object(torch.Tensor, 'softmax', lambda tensor, axis: tensor):
            return original(self, images, vectors)

    return lift


def second_best(original):
    def run(self, frame, memory):
        outputs = original(self, frame, memory)
        order = outputs['occ_logits'][0].argsort(-1)
        return outputs | dict(occupancy=order[..., -2].astype(np.uint8))

    return run


def of_frame_before(original):
    kept = []

    def run(self, frame, memory):
        kept.append(original(self, frame, memory))
        return kept[0]

    return run


def one_voxel(original):
    def run(self, frame, memory):
        outputs = original(self, frame, memory)
        labels = outputs['occupancy'].copy()
        labels[3, 4, 5] = (labels[3, 4, 5] + 1) % 18
        return outputs | dict(occupancy=labels)

    return run


VARIANTS = {
    'classes shifted': (RUN, of_run(lambda logits: np.roll(logits, 1, -1))),
    'classes in another order': (RUN, of_run(lambda logits: logits[..., [1, 0, *range(2, 18)]])),
    'x and y exchanged': (RUN, of_run(lambda logits: logits.transpose(0, 2, 1, 3, 4))),
    'x flipped': (RUN, of_run(lambda logits: logits[:, ::-1])),
    'z flipped': (RUN, of_run(lambda logits: logits[..., ::-1, :])),
    'voxels moved by one': (RUN, of_run(lambda logits: np.roll(logits, 1, 1))),
    'heights and classes exchanged': (
        RUN,
        of_run(lambda logits: logits.reshape(*logits.shape[:3], 18, -1).swapaxes(3, 4)),
    ),
    'second best classes': (RUN, second_best),
    'classes of the frame before': (RUN, of_frame_before),
    'one voxel of another class': (RUN, one_voxel),
    'cameras exchanged': (FEEDS, of_feeds(img=lambda images: images[::-1].copy())),
    'R, G, B': (FEEDS, of_feeds(img=lambda images: images[:, ::-1].copy())),
    'post-rotation left out': (
        FEEDS,
        of_feeds(intrinsics=lambda matrices: matrices * np.float32([[2], [2], [1]])),
    ),
    'depth without softmax': (LIFT, logits_for_shares),
    'the view transposed': (
        ENCODED,
        lambda original: lambda self, view: original(self, view.flip(2)),
    ),
    'ranks of another grid': ('mm2onnx_driving.plugin_bevdet:PoolLoop.tables', other_grid),
}
"""What is wrong -> (place of a public name, the change)."""


@pytest.fixture(scope='module')
def run_once():
    return once_a_frame(LiftOnnx.run)


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_wrong_variant_is_not_proven(row_of, run_once, variant):
    contract = 'trt-plugin' if variant.startswith('ranks') else 'portable'
    place, make = VARIANTS[variant]
    run = run_once if place == RUN else LiftOnnx.run
    with mock.patch.object(LiftOnnx, 'run', run), replaced(place, make):
        row, _ = row_of(contract)
    assert not row.passed


@pytest.mark.parametrize(
    ('changes', 'key'),
    [
        ({'model.occ_head.use_predicter': False}, 'use_predicter'),
        ({'model.img_view_transformer.accelerate': True}, 'accelerate'),
        ({'model.type': 'BEVStereo4DOCC'}, 'BEVStereo4DOCC.*--parts'),
    ],
)
def test_what_is_not_exported_is_named(changes, key):
    with pytest.raises(ConfigError, match=key):
        FAMILIES['flashocc'].check(load_config(TOY.config, changes), {})
