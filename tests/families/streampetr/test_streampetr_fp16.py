"""StreamPETR in float16: cosine per output, float32 islands, inputs and outputs."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
import toy_streampetr_deploy as deployed
import toy_streampetr_export as exported
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.files import export_graph
from mmdeploy_ext.families.streampetr.memory import FIELDS
from mmdeploy_ext.runtime.geometry import relative_motion

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
