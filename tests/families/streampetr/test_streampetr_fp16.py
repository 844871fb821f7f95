"""StreamPETR in float16: cosine per output, float32 islands, inputs and outputs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import streampetr_seeded as seeded
import toy_streampetr_deploy as deployed
import toy_streampetr_export as exported
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.files import export_graph
from mmdeploy_ext.families.streampetr.memory import FIELDS, to_local
from mmdeploy_ext.runtime.geometry import relative_motion
from streampetr_seeded import golden_frame_of_runtime as golden_frame

COSINE = 0.999


def files(model, **options):
    """Return graph name -> (spec, proto)."""
    chosen = FAMILIES['streampetr'].choose(precision='fp16', **options)
    graphs = contract_of(deployed.deployment().family, chosen).graphs(model, chosen)
    return {graph.name: (graph.spec, export_graph(graph, chosen)) for graph in graphs}


@pytest.fixture(scope='module')
def toy():
    return files(deployed.deployment().model)


def session_of(model):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])


def cosine(found, wanted):
    found, wanted = (np.asarray(array, np.float64).ravel() for array in (found, wanted))
    size = np.linalg.norm(found) * np.linalg.norm(wanted)
    return 1.0 if size == 0 else float(found @ wanted / size)


class Chain:
    """The three sessions of the deploy contract with a memory that the caller gives."""

    def __init__(self, found):
        self.names = {name: spec.output_names for name, (spec, _) in found.items()}
        self.sessions = {name: session_of(model) for name, (_, model) in found.items()}

    def run(self, name, feeds):
        return dict(zip(self.names[name], self.sessions[name].run(None, feeds), strict=True))

    def frame(self, frame, state, motion, gap, prev_exists):
        """Return all outputs of all graphs for one frame."""
        inverse = np.linalg.inv(frame.lidar2img)[None].astype(np.float32)
        rig = dict(img2lidar=inverse, intrinsics=frame.intrinsics[None].astype(np.float32))
        outputs = self.run('extract_img_feat', dict(img=frame.images))
        outputs.update(self.run('position_embedding', rig))
        feeds = dict(
            outputs,
            **{f'pre_memory_{field}': rows for field, rows in state.items()},
            ego_motion=motion[None].astype(np.float32),
            delta_t_s=np.array([gap], np.float32),
            prev_exists=np.array([prev_exists], np.float32),
        )
        return {**outputs, **self.run('pts_head_memory', feeds)}


def zeros(spec):
    return {field: np.zeros(spec.tensor(f'pre_memory_{field}').axes, np.float32) for field in FIELDS}


def test_outputs_are_close_to_float32_with_the_memory_of_float32(toy):
    family, model = deployed.deployment().family, deployed.deployment().model
    chain, reference = Chain(toy), family.reference(model)
    state, last = zeros(toy['pts_head_memory'][0]), None
    for index in range(4):
        frame = exported.frame(index)
        motion = np.eye(4) if last is None else relative_motion(last.ego_pose, frame.ego_pose)
        gap = 0.0 if last is None else frame.timestamp_s - last.timestamp_s
        found = chain.frame(frame, state, motion, gap, float(index > 0))
        wanted = reference.step(frame).outputs
        for name in ('all_cls_scores', 'all_bbox_preds'):
            assert cosine(found[name], wanted[name]) >= COSINE, (index, name)
        state, last = reference.state.tensors, frame


def test_poses_times_points_and_what_the_top_k_sorts_are_float32(toy):
    for name in ('position_embedding', 'pts_head_memory'):
        inferred = onnx.shape_inference.infer_shapes(toy[name][1], strict_mode=True).graph
        types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
        types.update((value.name, value.type.tensor_type.elem_type) for value in inferred.input)
        islands = [node for node in inferred.node if node.op_type in ('Sin', 'Cos', 'Log', 'TopK')]
        assert islands
        for node in islands:
            assert types[node.input[0]] == TensorProto.FLOAT, node.name
        attention = [node for node in inferred.node if node.op_type in ('Softmax', 'LayerNormalization')]
        assert {types[node.output[0]] for node in attention} <= {TensorProto.FLOAT16}


@pytest.mark.matrix
def test_cosine_over_the_goldens_with_golden_memory():
    folder = seeded.require_golden()
    family = deployed.deployment().family
    cfg = load_config('projects/configs/StreamPETR/stream_petr_r50_704_bs2_seq_428q_nui_60e.py')
    model = family.build(cfg)
    model.load_state_dict(seeded.seeded_state_dict(), strict=True)
    half = files(model)
    chain, wanted = Chain(half), np.load(folder / 'outputs.npz')
    worst = dict.fromkeys(('all_cls_scores', 'all_bbox_preds', 'img_feats', 'chosen', 'kept'), 1.0)
    last, state = None, zeros(half['pts_head_memory'][0])
    for index in range(seeded.NUM_FRAMES):
        frame = golden_frame(index)
        continues = index not in (0, 4)
        motion = relative_motion(last.ego_pose, frame.ego_pose) if continues else np.eye(4)
        gap = frame.timestamp_s - last.timestamp_s if continues else 0.0
        found = chain.frame(frame, state, motion, gap, float(continues))
        golden = {field: wanted[f'f{index}_memory_{field}'] for field in FIELDS}
        state, last = to_local(golden, frame.ego_pose, frame.timestamp_s), frame
        values = {name: cosine(found[name], wanted[f'f{index}_{name}']) for name in list(worst)[:2]}
        features = found['img_feats'][:, :, ::16, ::2, ::4]
        values['img_feats'] = cosine(features, wanted[f'f{index}_img_feats_slice'])
        values.update(memory_cosines(found, state, wanted[f'f{index}_topk_indexes']))
        worst = {name: min(value, values[name]) for name, value in worst.items()}
    print('\nsmallest cosine of six frames', {name: f'{value:.6f}' for name, value in worst.items()})
    assert min(worst.values()) >= COSINE


def memory_cosines(found, state, wanted_queries):
    """Compare the memory's rows: those kept one by one, the new ones by the query that they are of.

    The scores of random weights lie so close that float16 brings rows into another order.
    """
    scores = found['all_cls_scores'][-1, 0].max(-1)
    queries = np.argsort(-scores, kind='stable')[: len(wanted_queries)]
    both = sorted(set(queries.tolist()) & set(wanted_queries.tolist()))
    assert len(both) >= 0.9 * len(queries)
    ours = [queries.tolist().index(query) for query in both]
    theirs = [wanted_queries.tolist().index(query) for query in both]
    count = len(queries)
    rows = {field: (found[f'post_memory_{field}'][0], state[field][0]) for field in FIELDS}
    return dict(
        chosen=min(cosine(mine[ours], golden[theirs]) for mine, golden in rows.values()),
        kept=min(cosine(mine[count:], golden[count:]) for mine, golden in rows.values()),
    )
