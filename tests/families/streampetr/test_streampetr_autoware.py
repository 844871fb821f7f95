"""StreamPETR for camera_streampetr: proven frame by frame through the node's own loop, its faults refused."""

import copy
import dataclasses
from unittest import mock

import numpy as np
import onnx
import pytest

import toy_streampetr_deploy as deployed
from marking import in_suite
from mmdeploy_ext.cli.check_app import check_autoware as main
from mmdeploy_ext.consumers.autoware.nodes import STREAMPETR
from mmdeploy_ext.consumers.autoware.streampetr import NORMS, AutowareStreamPetr, from_node
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.proving.ladder import prove
from planting import replaced
from proofs import OF_OTHER_CONTRACTS, check_files, refuted
from toy_autoware import key
from verdicts import checks_of, graphs_of, sequence_of

LOOP = 'mmdeploy_ext.consumers.autoware.streampetr'
HERE = f'{LOOP}_export'
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
    deployment = deployed.deployment()
    deployment.model.CLASSES = CLASSES
    named = mock.patch.dict(deployment.cfg._cfg_dict, classes=list(CLASSES))
    with named, mock.patch.object(deployment, 'classes', CLASSES):
        yield deployment


@pytest.fixture(scope='module')
def folder(toy, tmp_path_factory):
    place = tmp_path_factory.mktemp('autoware')
    deployed.export(place, contract='autoware', opset=17)
    return place / 'deploy'


@pytest.fixture(scope='module')
def drive():
    return deployed.drive(6)


def paths(folder):
    return [str(folder / f'{name}.onnx') for name in STREAMPETR.graphs]


@pytest.mark.parametrize('proof', OF_OTHER_CONTRACTS)
def test_the_files_are_proven_frame_by_frame_with_a_reset(toy, folder, proof):
    verdict, _ = proof(toy, paths(folder), deployed.drive(12))
    assert verdict.proven, verdict.failures
    teacher, free = sequence_of(verdict)
    assert teacher.resets >= 1 and free.matched == free.reference >= 200


def test_the_node_would_take_the_folder_and_classes_that_it_does_not_know_are_told(folder, capsys):
    assert main([str(folder)]) == 0
    assert '4 files, 0 errors, 1 warnings' in capsys.readouterr().out
    names = [one.name for one in onnx.load(paths(folder)[1]).graph.input]
    assert names == ['img_metas_pad', 'intrinsics', 'img2lidar']
    used = {name for node in onnx.load(paths(folder)[1]).graph.node for name in node.input}
    assert 'img_metas_pad' in used  # or an engine could drop it


IN_THE_LOOP = {
    'no reset of the memory': (
        f'{LOOP}:AutowareStreamPetr.begins_scene',
        lambda _: lambda self, last, timestamp_s, scene_token: last is None,
    ),
    'no time taken off': (f'{LOOP}:AutowareStreamPetr.clock', lambda _: lambda self, time: np.float32(0)),
    'the vehicle stands still': (
        f'{LOOP}:AutowareStreamPetr.relative',
        lambda _: lambda self, pose: np.eye(4),
    ),
}


@pytest.mark.parametrize(
    'fault',
    [pytest.param(one, marks=[] if 'reset' in one else [pytest.mark.matrix]) for one in IN_THE_LOOP],
)
def test_a_fault_in_the_loop_is_refused(toy, folder, fault):
    with replaced(*IN_THE_LOOP[fault]):
        verdict = refuted(toy, paths(folder), deployed.drive(12))
    assert all(graph.passed for graph in graphs_of(verdict))
    assert not verdict.proven and not all(row.passed for row in sequence_of(verdict))


def inverse_for_pose(original):
    return lambda self, x, pos, cone, pose, inverse, *rows: original(self, x, pos, cone, inverse, pose, *rows)


def stays_in_the_vehicle(original):
    def forward(self, x, pos, cone, pose, inverse, *rows):
        return original(self, x, pos, cone, pose @ inverse, inverse, *rows)

    return forward


def rows_for_columns(original):
    def forward(self, *given):
        scores, found, *rest = original(self, *given)
        return scores, found.flip(2), *rest

    return forward


@pytest.mark.parametrize(
    'fault', in_suite([inverse_for_pose, stays_in_the_vehicle, rows_for_columns], inverse_for_pose)
)
def test_a_fault_in_the_graph_is_refused(toy, tmp_path, fault, drive):
    with replaced(f'{HERE}:NodeMemoryHead.forward', fault):
        deployed.export(tmp_path, contract='autoware', opset=17)
    if fault is rows_for_columns:
        verdict, _ = prove(toy, paths(tmp_path / 'deploy'), drive)
        assert not all(row.passed for row in sequence_of(verdict))
    else:
        verdict = check_files(toy, paths(tmp_path / 'deploy'))
    assert [graph.name for graph in graphs_of(verdict) if not graph.passed] == ['simplify_pts_head_memory']


def planes_as_they_come(original):
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.families.streampetr.graphs import ExtractImgFeat

    return lambda self, img: ExtractImgFeat.forward(self, img[0])


def test_pictures_in_the_order_of_another_node_are_refused(toy, tmp_path):
    """The toy is trained with RGB: what the graph takes from a node that feeds BGR has to be turned round."""
    with replaced(f'{HERE}:NodeImages.forward', planes_as_they_come):
        deployed.export(tmp_path, contract='autoware', opset=17)
        verdict = refuted(toy, paths(tmp_path / 'deploy'), deployed.drive(6))
    assert all(graph.passed for graph in graphs_of(verdict))
    assert not all(row.passed for row in sequence_of(verdict))


@pytest.mark.matrix
def test_a_file_for_nodes_that_feed_rgb_is_proven_and_turns_nothing(toy, folder, tmp_path):
    deployed.export(tmp_path, contract='autoware', opset=17, node_images='rgb')
    verdict, _ = prove(toy, paths(tmp_path / 'deploy'), deployed.drive(6))
    assert verdict.proven, verdict.failures
    ours, other = (len(onnx.load(paths(place)[0]).graph.node) for place in (tmp_path / 'deploy', folder))
    assert ours < other
    with pytest.raises(UsageError, match=r'--node-images.*--contract'):
        toy.family.choose(opset=17, node_images='rgb').check()


@pytest.mark.parametrize('planes', NORMS)
@pytest.mark.parametrize(
    ('mean', 'std', 'to_rgb'),
    [
        ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395), False),
        ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375), True),
        ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), False),
        ((0.0, 1.0, 2.0), (255.0, 254.0, 253.0), True),
    ],
)
def test_what_a_node_makes_of_the_bytes_becomes_what_the_model_was_trained_with(planes, mean, std, to_rgb):
    bgr = np.random.default_rng(0).integers(0, 256, (8, 9, 3))
    fed = (bgr[..., :: -1 if planes == 'rgb' else 1] - np.array(NORMS[planes][0])) / NORMS[planes][1]
    trained = (bgr[..., :: -1 if to_rgb else 1] - np.array(mean)) / std
    turned, scale, shift = from_node(planes, mean, std, to_rgb)
    np.testing.assert_allclose(fed[..., :: -1 if turned else 1] * scale + shift, trained, atol=1e-9)


@pytest.mark.matrix
def test_another_norm_is_changed_in_the_graph(toy, folder, tmp_path, monkeypatch):
    rule = dataclasses.replace(toy.rule, mean=(0.0, 1.0, 2.0), std=(255.0, 254.0, 253.0))
    monkeypatch.setattr(toy.model, 'rule', rule)
    cfg = copy.deepcopy(toy.cfg)
    cfg.test_pipeline[2].update(mean=rule.mean, std=rule.std)
    own = dataclasses.replace(toy, cfg=cfg, rule=rule)
    target = tmp_path / 'files'
    export_files(own, own.family.choose(contract='autoware', opset=17), str(target))
    ours, other = (onnx.load(paths(place)[0]).graph.node for place in (target, folder))
    added = [sum(node.op_type == kind for node in ours) for kind in ('Mul', 'Add')]
    assert added == [1 + sum(node.op_type == kind for node in other) for kind in ('Mul', 'Add')]
    verdict, _ = prove(own, paths(target), deployed.drive(6))
    assert verdict.proven, verdict.failures


def test_the_first_frame_and_a_frame_after_a_reset_are_alike(folder, drive):
    with AutowareStreamPetr(folder, max_gap_s=None) as runtime:
        frames = list(drive)
        first = runtime.step(frames[0]).outputs
        runtime.step(frames[1])
        assert runtime.state is not None
        runtime.reset()
        again = runtime.step(frames[0]).outputs
    for name, values in first.items():
        np.testing.assert_array_equal(values, again[name])


def test_another_manifest_is_told(toy, folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert [one for one in checks_of(check_files(toy, paths(tmp_path))) if not one.passed] == []
    key('ml_package_camera_streampetr.param.yaml', 'model_params.num_proposals', 5400)(tmp_path)
    assert main([str(tmp_path)]) == 1
    (told,) = [check for check in checks_of(check_files(toy, paths(tmp_path))) if not check.passed]
    assert 'ml_package_camera_streampetr.param.yaml as the export writes it' in told.name
    (tmp_path / 'ml_package_camera_streampetr.param.yaml').unlink()
    (told,) = [check for check in checks_of(check_files(toy, paths(tmp_path))) if not check.passed]
    assert told.detail == 'is not there'


def test_half_precision_is_refused(toy):
    with pytest.raises(UsageError, match=r'--contract.*fp32'):
        toy.family.choose(contract='autoware', precision='fp16').check(names=dict(precision='fp16'))
