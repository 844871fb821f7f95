"""The deployment fork's contract: names and shapes of contract.json, inputs that are inputs, the goldens."""

import json

import numpy as np
import onnxruntime
import pytest

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import streampetr_golden as seeded
import toy_streampetr as toy
import toy_streampetr_deploy as deployed
import toy_streampetr_export as exported
from eager_files import eager_row
from marking import in_suite
from mm2onnx_driving.streampetr import graphs
from mm2onnx_driving.streampetr.fork import fork_spec
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector_files import export_graph

VERSIONS = ('1.0', '1.1')
BOX = np.array([5e-3] * 3 + [1e-3] * 7)
MEMORY = dict(embedding='embedding', egopose='egopose', ref_point='reference_point', velo='velo')
"""The fork's name of a tensor of the memory -> that in outputs.npz."""


def graph_of(**options):
    chosen = FAMILIES['streampetr'].choose(contract='fork', **options)
    detector = deployed.detector()
    return contract_of(detector.family, chosen).graphs(detector.model, chosen)[0], chosen


@pytest.fixture(scope='module', params=in_suite(VERSIONS, '1.1'))
def version(request):
    return request.param


@pytest.fixture(scope='module')
def exported_fork(version):
    """The toy's graph at opset 11 and its contract."""
    graph, options = graph_of(fork_version=version, opset=11)
    return graph, export_graph(graph, options)


def session_of(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


def run(session, spec_, feeds):
    used = {value.name for value in session.get_inputs()}
    outputs = session.run(None, {name: array for name, array in feeds.items() if name in used})
    return dict(zip(spec_.output_names, outputs, strict=True))


def feeds_of(graph, seed=0):
    """Return inputs as of a frame in the middle of a drive."""
    rng = np.random.default_rng(seed)
    feeds = {tensor.name: rng.normal(size=tensor.axes).astype(tensor.dtype) for tensor in graph.spec.inputs}
    frame = exported.frame(1)
    for name in ('ego_pose', 'ego_pose_inv'):
        feeds[name] = getattr(frame, name)[None].astype(np.float32)
    inverse = np.linalg.inv(frame.lidar2img).astype(np.float32)
    feeds['img2lidar'] = np.repeat(inverse, feeds['img2lidar'].shape[1] // len(inverse), axis=0)[None]
    feeds['intrinsic'] = np.abs(feeds['intrinsic'])
    feeds['prev_exists'] = np.ones(1, np.float32)
    feeds['in_mem_ref_point'] = feeds['in_mem_ref_point'] * 20 + feeds['ego_pose'][:, None, :3, 3]
    if 'timestamp' in feeds:
        feeds['timestamp'] = np.array([frame.timestamp_s])
        feeds['in_mem_timestamp'] = feeds['in_mem_timestamp'] - frame.timestamp_s
    return feeds


@pytest.mark.parametrize('known_version', VERSIONS)
def test_the_contract_is_the_forks(known_version):
    version = json.loads((seeded.IN_REPOSITORY / 'contract.json').read_text())['versions'][
        f'V{known_version}'
    ]
    size = graphs.Sizes(6, 256, 704, 16, 64, 256, 6, 428, 10, 10, 512, 640)
    deep = dict(contract='fork', fork_version=known_version, fork_img2lidar='depth')
    found = fork_spec(size, FAMILIES['streampetr'].choose(**deep))
    for title in ('inputs', 'outputs'):
        wanted = [(entry['name'], entry['dtype'], tuple(entry['shape'])) for entry in version[title]]
        assert [(tensor.name, tensor.dtype, tensor.axes) for tensor in getattr(found, title)] == wanted


def test_the_default_of_the_fork_gives_the_results_of_pytorch(tmp_path):
    """Version 1.0, with absolute times and a matrix per token; the suite has the others as files."""
    frames = list(deployed.drive(6))[:3]  # two scenes
    row, _ = eager_row(deployed.detector(), tmp_path, frames, contract='fork')
    assert row.passed and row.matched >= 10, row.reasons


def test_each_input_of_the_file_is_an_input(exported_fork):
    graph, model = exported_fork
    assert [entry.version for entry in model.opset_import] == [11]
    assert [value.name for value in model.graph.input] == graph.spec.input_names
    assert [value.name for value in model.graph.output] == graph.spec.output_names
    session, feeds = session_of(model), feeds_of(graph)
    wanted = run(session, graph.spec, feeds)
    for name, array in feeds.items():
        other = dict(feeds, **{name: array * 0 if name == 'prev_exists' else array + array.dtype.type(0.37)})
        found = run(session, graph.spec, other)
        changed = [output for output in found if not np.array_equal(found[output], wanted[output])]
        assert bool(changed) == (name != 'ego_pose'), name


def test_the_memory_that_comes_out_is_after_the_pre_update(exported_fork, version):
    graph, model = exported_fork
    feeds = feeds_of(graph)
    found = run(session_of(model), graph.spec, feeds)
    kept = toy.MEMORY_LEN
    np.testing.assert_array_equal(found['mem_embedding'], feeds['in_mem_embedding'][:, :kept])
    np.testing.assert_array_equal(found['mem_velo'], feeds['in_mem_velo'][:, :kept])
    age = feeds['in_mem_timestamp'] + feeds.get('timestamp', np.zeros(1, np.float32))
    np.testing.assert_allclose(found['mem_timestamp'], age[:, :kept], atol=1e-6)
    assert found['mem_timestamp'].dtype == (np.float64 if version == '1.0' else np.float32)
    rotation, shift = feeds['ego_pose_inv'][0, :3, :3], feeds['ego_pose_inv'][0, :3, 3]
    points = feeds['in_mem_ref_point'][:, :kept] @ rotation.T + shift
    np.testing.assert_allclose(found['mem_ref_point'], points, atol=2e-3)


@pytest.mark.matrix
@pytest.mark.parametrize('full_version', VERSIONS)
def test_the_full_size_file_gives_the_goldens_with_golden_memory(full_version):
    folder = seeded.require_golden()
    family = deployed.detector().family
    cfg = load_config('projects/configs/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py')
    model = family.build(cfg)
    model.load_state_dict(seeded.seeded_state_dict(), strict=True)
    options = FAMILIES['streampetr'].choose(contract='fork', fork_version=full_version)
    graph = contract_of(family, options).graphs(model, options)[0]
    session = session_of(export_graph(graph, options))
    inputs, outputs, boundary = (
        np.load(folder / f'{name}.npz') for name in ('inputs', 'outputs', 'boundary')
    )
    key = f'v{full_version.replace(".", "")}'
    for index in range(seeded.NUM_FRAMES):
        feeds = golden_feeds(graph.spec, inputs, outputs, boundary, index, key)
        found = run(session, graph.spec, feeds)
        wanted = {name: outputs[f'f{index}_{name}'] for name in (*graphs.PREDICTIONS, 'outs_dec')}
        np.testing.assert_allclose(found['all_cls_scores'], wanted['all_cls_scores'], rtol=0, atol=1e-3)
        assert (np.abs(found['all_bbox_preds'] - wanted['all_bbox_preds']) <= BOX).all()
        np.testing.assert_allclose(found['outs_dec'], wanted['outs_dec'], rtol=0, atol=1e-3)
        for name, bar in dict(egopose=2e-4, ref_point=2e-3, velo=2e-4).items():
            np.testing.assert_allclose(
                found[f'mem_{name}'], boundary[f'f{index}_out_mem_{name}'], rtol=0, atol=bar
            )
        times = boundary[f'f{index}_{key}_out_mem_timestamp']
        np.testing.assert_allclose(found['mem_timestamp'], times, rtol=0, atol=1e-6)


def golden_feeds(contract, inputs, outputs, boundary, index, key):
    """Return the 12 inputs of a golden frame; the memory is the golden one of the frame before."""
    feeds = {name: inputs[f'f{index}_{name}'] for name in ('prev_exists',)}
    feeds['img'] = seeded.golden_images(index)[0].numpy()
    feeds['timestamp'] = np.array([inputs[f'f{index}_timestamp']])
    for name in ('ego_pose', 'ego_pose_inv'):
        feeds[name] = inputs[f'f{index}_{name}'][None]
    feeds['img2lidar'] = np.repeat(boundary[f'f{index}_img2lidar_per_camera'], 704, axis=0)[None]
    focal = np.abs(np.diagonal(inputs[f'f{index}_intrinsics'], axis1=1, axis2=2)[:, :2]) / 1e3
    feeds['intrinsic'] = np.tile(focal, (704, 1))[None].astype(np.float32)
    np.testing.assert_allclose(
        feeds['intrinsic'][0, :12], boundary[f'f{index}_intrinsic_first12_tokens'], rtol=1e-6
    )
    for name, ours in MEMORY.items():
        tensor = contract.tensor(f'in_mem_{name}')
        empty = np.zeros(tensor.axes, tensor.dtype)
        feeds[tensor.name] = outputs[f'f{index - 1}_memory_{ours}'] if index else empty
    feeds['in_mem_timestamp'] = boundary[f'f{index}_{key}_in_mem_timestamp']
    return feeds
