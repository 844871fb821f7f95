"""Key points at the border of a picture: rounding decides there, and the proof says so; not farther away."""

import dataclasses
from unittest import mock

import numpy as np
import pytest

from mmdeploy_ext.exporting.ops import deformable_aggregation
from mmdeploy_ext.families.sparse4d import border_points
from mmdeploy_ext.families.sparse4d.border_points import BorderPoints
from mmdeploy_ext.proving.inputs.synthetic_drive import synthetic_drive
from mmdeploy_ext.proving.ladder import prove
from toy_frames import SPARSE4D

ROUNDING, BEYOND = -5e-7, -1e-3
"""Where a point is, in shares of the side from the left border: outside by rounding, and by more."""
CAMERA = 0


@pytest.fixture(scope='module')
def deployment(tmp_path_factory):
    return SPARSE4D.load(tmp_path_factory.mktemp('sparse4d'))


@pytest.fixture(scope='module')
def frames(deployment):
    return list(synthetic_drive(3, deployment.rule, scenes=1))


@pytest.fixture
def reference(deployment):
    return deployment.family.reference_of(deployment.model, deployment.family.choose(opset=0))


def moved_to(reference, frame, place):
    """Return a frame in which a key point of the first layer is at the left border, and which point it is.

    Where the points of the first layer are depends on the weights alone.
    """
    layers, rule = [], border_points.in_pictures

    def noting(places):
        layers.append(places.numpy().copy())
        return rule(places)

    with mock.patch.object(border_points, 'in_pictures', noting):
        reference.step(frame)
    reference.reset()
    first = layers[0][:, :, CAMERA]
    instance, point = np.argwhere(((first > 0.3) & (first < 0.7)).all(-1))[0].tolist()
    lidar2img = np.array(frame.lidar2img, np.float64)
    way = (first[instance, point, 0] - place) * frame.images.shape[3]
    lidar2img[CAMERA, 0] -= way * lidar2img[CAMERA, 2]
    return dataclasses.replace(frame, lidar2img=lidar2img), (0, instance, point, CAMERA)


def test_the_reference_takes_the_side_of_an_engine_and_keeps_its_memory(reference, frames):
    frame, place = moved_to(reference, frames[1], ROUNDING)
    reference.step(frames[0])
    before = reference.state
    engine = reference._run(frame, BorderPoints([place]))
    reference.state = before
    own = reference.step(frame)
    after = reference.state
    decision = reference.decided_as(frame, before, engine.outputs)
    assert np.abs(own.outputs['pred_anchor'] - engine.outputs['pred_anchor']).max() > 5e-3
    for name, values in decision.result.outputs.items():
        np.testing.assert_array_equal(values, engine.outputs[name])
    assert f'key point {place[2]} of instance {place[1]} in layer 0 is 5e-07' in decision.text
    for name, values in after.tensors.items():
        np.testing.assert_array_equal(values, reference.state.tensors[name])
    assert reference.decided_as(frame, before, own.outputs) is None


def test_a_point_that_is_farther_from_the_border_than_rounding_has_no_other_side(reference, frames):
    frame, _ = moved_to(reference, frames[0], BEYOND)
    own = reference.step(frame)
    assert reference.decided_as(frame, None, own.outputs) is None and not reference._points.distances


@pytest.mark.matrix
@pytest.mark.parametrize('place', [ROUNDING, BEYOND])
def test_a_graph_with_a_wider_border_is_proven_if_rounding_explains_it(
    deployment, reference, frames, tmp_path, place
):
    """The graph counts points that are outside by up to a little more than that."""

    def wider(places):
        return ((places > 1.5 * place) & (places < 1 - 1.5 * place)).all(-1)

    drive = [moved_to(reference, frames[0], place)[0], *frames[1:]]
    with mock.patch.object(deformable_aggregation, '_in_pictures', wider):
        verdict, _ = prove(deployment, SPARSE4D.export(deployment, tmp_path), drive)
    notes = [note for note in verdict.notes if 'from the border of camera 0' in note]
    assert verdict.passed == bool(notes) == (place == ROUNDING), verdict.reasons
