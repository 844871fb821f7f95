"""FlashOcc with a head of centres: each voxel of an object has the nearest centre of its class."""

import dataclasses
from unittest import mock

import numpy as np
import pytest

import toy_frames
from eager_files import eager_row
from mm2onnx_driving.flashocc import runtime
from mm2onnx_driving.flashocc.runtime import FlashOccOnnx
from mmdeploy_ext.bench.kit.contents import KitCase, StoredCase
from mmdeploy_ext.bench.kit.frames import write_frames
from mmdeploy_ext.families.synthetic.drive import synthetic_drive
from planting import replaced
from proofs import prove
from replay import Replay, once_a_frame

TOY = toy_frames.PANOPTIC


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    return TOY.load(tmp_path_factory.mktemp('panoptic'))


@pytest.fixture(scope='module')
def frames(detector):
    return list(synthetic_drive(2, detector.rule, scenes=2))


@pytest.mark.matrix
def test_instances_are_proven_and_kept_by_a_kit(detector, frames, tmp_path):
    path = TOY.export(detector, tmp_path / 'export')
    verdict = prove(detector, path, frames)
    assert verdict.passed and verdict.summary()['matched'] >= 3000, verdict.failures
    (entry,) = write_frames(detector, path, frames[:1], tmp_path)['cases']
    (occupancy,) = KitCase.read(tmp_path, StoredCase.from_json(entry), 'flashocc').results
    assert len(np.unique(occupancy.instances.rows)) >= 20


@pytest.fixture(scope='module')
def row_of(detector, frames, tmp_path_factory):
    """Run the loop beside the recorded results of PyTorch; the network runs once a frame."""
    recorded, run = Replay(detector, frames), once_a_frame(FlashOccOnnx.run)

    def row():
        with (
            mock.patch.object(type(detector.family), 'reference', lambda *_: recorded),
            mock.patch.object(FlashOccOnnx, 'run', run),
        ):
            return eager_row(detector, tmp_path_factory.mktemp('eager'), frames)[0]

    return row


def of_maps(**changes):
    def make(original):
        def instances_of(labels, maps, facts):
            return original(
                labels, {**maps, **{name: change(maps[name]) for name, change in changes.items()}}, facts
            )

        return instances_of

    return make


def of_facts(**changes):
    return lambda original: (
        lambda labels, maps, facts: original(labels, maps, dataclasses.replace(facts, **changes))
    )


def moved_cells(ahead_m, times):
    """Read the centres' voxels in a grid that begins elsewhere and has larger steps."""

    def change(labels, maps, facts):
        low, step = np.array(facts.voxel_low), np.array(facts.voxel_step)
        return dataclasses.replace(facts, voxel_low=low - [ahead_m, 0, 0], voxel_step=step * times)

    return lambda original: lambda *args: original(*args[:2], change(*args))


def of_cells(change):
    """Change the voxels (n, 3) of the centres, given those and the shape of the grid."""
    return lambda original: (
        lambda labels, voxels, classes: original(labels, change(voxels, labels.shape), classes)
    )


def maps_of_frame_before(original):
    kept = []

    def instances_of(labels, maps, facts):
        kept.append(maps)
        return original(labels, kept[0], facts)

    return instances_of


def wider_suppression(original):
    def peaks(heat):
        around = np.pad(heat, ((0, 0), (2, 2), (2, 2)))
        windows = np.lib.stride_tricks.sliding_window_view(around, (5, 5), (1, 2))
        return np.where(heat == windows.max((-2, -1)), heat, np.float32(0))

    return peaks


def second_nearest(labels, voxels, classes):
    found = np.full(labels.shape, -1, np.int32)
    for center_class, voxel_class in enumerate(runtime.VOXEL_CLASSES):
        rows, places = np.flatnonzero(classes == center_class), np.argwhere(labels == voxel_class)
        if len(rows) > 1 and len(places):
            apart = ((places[:, None] - voxels[rows]) ** 2).sum(-1)
            found[tuple(places.T)] = rows[apart.argsort(1)[:, 1]]
    return found


def of_instances(**changes):
    def make(original):
        def instances_of(*args):
            found = original(*args)
            return dataclasses.replace(found, **{name: change(found) for name, change in changes.items()})

        return instances_of

    return make


INSTANCES = 'mm2onnx_driving.flashocc.runtime:instances_of'
NEAREST = 'mm2onnx_driving.flashocc.runtime:nearest'
PEAKS = 'mm2onnx_driving.flashocc.runtime:peaks'
VOXEL_CLASSES = 'mm2onnx_driving.flashocc.runtime:VOXEL_CLASSES'


def other_order(found):
    return np.where(found.rows < 0, -1, found.rows.max() - found.rows)


def one_left_out(found):
    rows = found.rows.copy()
    rows.flat[rows.argmax()] = -1
    return rows


VARIANTS = {
    'x and y of offsets exchanged': (INSTANCES, of_maps(reg=lambda maps: maps[:, ::-1])),
    'height left out': (INSTANCES, of_maps(height=np.zeros_like)),
    'classes shifted': (INSTANCES, of_maps(heatmap=lambda maps: np.roll(maps, 1, 1))),
    'maps of the frame before': (INSTANCES, maps_of_frame_before),
    'rows of the maps flipped': (INSTANCES, of_maps(heatmap=lambda maps: maps[:, :, ::-1])),
    'a lower threshold of centres': (INSTANCES, of_facts(score_threshold=0.25)),
    'fewer centres': (INSTANCES, of_facts(max_num=20)),
    'no suppression beside a peak': (PEAKS, lambda _: lambda heat: heat),
    'suppression two cells wide': (PEAKS, wider_suppression),
    'x and y of voxels exchanged': (NEAREST, of_cells(lambda voxels, shape: voxels[:, [1, 0, 2]])),
    'z flipped': (
        NEAREST,
        of_cells(lambda voxels, shape: voxels * [1, 1, -1] + [0, 0, shape[2] - 1]),
    ),
    'voxels of another corner': (NEAREST, of_cells(lambda voxels, shape: voxels + np.eye(3, dtype=int)[0])),
    'all cells 8 m ahead': (INSTANCES, moved_cells(8.0, 1.0)),
    'all cells twice as large': (INSTANCES, moved_cells(0.0, 2.0)),
    'the second nearest centre': (NEAREST, lambda _: second_nearest),
    'classes of voxels shifted': (VOXEL_CLASSES, lambda classes: (*classes[1:], classes[0])),
    'a voxel without an instance': (INSTANCES, of_instances(rows=one_left_out)),
    'instances exchanged': (INSTANCES, of_instances(rows=other_order)),
    'centres of other classes': (
        NEAREST,
        lambda original: lambda labels, voxels, classes: original(labels, voxels, np.roll(classes, 1)),
    ),
}


def test_instances_equal_those_of_pytorch(row_of):
    row = row_of()
    assert row.passed and row.matched >= 3000, row.reasons


@pytest.mark.parametrize('variant', VARIANTS)
def test_wrong_instances_are_not_proven(row_of, variant):
    with replaced(*VARIANTS[variant]):
        assert not row_of().passed


def test_the_first_of_equally_near_centres_is_taken():
    labels = np.full((5, 1, 1), runtime.VOXEL_CLASSES[0], np.uint8)
    rows = runtime.nearest(labels, np.array([[4, 0, 0], [0, 0, 0], [1, 0, 0]]), np.array([0, 0, 1]))
    assert rows[:, 0, 0].tolist() == [1, 1, 0, 0, 0]
