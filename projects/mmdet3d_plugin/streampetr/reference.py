"""StreamPETR in PyTorch as steppers: the published model as it is, and the chain of modules that is exported.

Glossary: N cameras, H, W network input in pixels, n memory rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState, invert_pose
from mmdeploy_ext.runtime.streampetr_boxes import decode
from mmdeploy_ext.runtime.streampetr_fork import ForkContract
from mmdeploy_ext.runtime.streampetr_state import Moment, relative_motion, to_global, to_local
from mmdeploy_ext.taps import collect_taps, tap
from projects.mmdet3d_plugin.streampetr.memory import Memory
from projects.mmdet3d_plugin.streampetr.spec import FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.preprocess_multiview import Calibration
    from mmdeploy_ext.sequence.family import Graph
    from mmdeploy_ext.spec import GraphSpec


class Reference:
    """The detector's own test path, memory kept by its head in global coordinates.

    It knows scenes by their token alone, as published: no time gap empties its memory.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Keep a `Petr3D` in evaluation mode; its memory is emptied."""
        self.model = model
        self.head = model.pts_bbox_head
        self.device = next(model.parameters()).device
        self._last: StreamState | None = None
        self.reset()

    @property
    def state(self) -> StreamState | None:
        """See `Stepper.state`; converted from the head's global memory in float64."""
        if self.head.memory is None or self._last is None:
            return None
        memory = {name: rows.cpu().numpy() for name, rows in self.head.memory._asdict().items()}
        pose, time = self._last.ego_pose, self._last.timestamp_s
        return StreamState(to_local(memory, pose, time), pose, time, self._last.scene_token)

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.reset()
        if state is None:
            return
        memory = to_global(state.tensors, state.ego_pose, state.timestamp_s)
        self.head.memory = Memory(*(torch.from_numpy(memory[field]).to(self.device) for field in FIELDS))
        self.model.prev_scene_token = state.scene_token
        self._last = state

    def reset(self) -> None:
        """Empty the memory."""
        self.head.reset_memory()
        self.model.prev_scene_token = None
        self._last = None

    def step(self, frame: Frame) -> StepResult:
        """Run one frame through `forward_test`, with everything that it names as outputs."""
        with torch.no_grad(), collect_taps() as taps:
            results = self.model(return_loss=False, rescale=True, **self._data(frame))
        taps.update(
            (name, torch.from_numpy(np.asarray(value, np.float32))[None])
            for name, value in (('lidar2img', frame.lidar2img), ('intrinsics', frame.intrinsics))
        )
        for name, value in taps.items():
            tap(name, value)  # for whoever collects around this step
        self._last = StreamState({}, frame.ego_pose, frame.timestamp_s, frame.scene_token)
        outputs = {name: taps[name].cpu().numpy() for name in ('all_cls_scores', 'all_bbox_preds')}
        outputs['outs_dec'] = taps['out_outs_dec'].cpu().numpy()
        outputs.update((f'post_memory_{name}', rows) for name, rows in self.state.tensors.items())
        return StepResult(outputs, _detections(results[0]['pts_bbox']), not float(taps['prev_exists']))

    def _data(self, frame: Frame) -> dict[str, Any]:
        """Return the frame as the test loader gives it, one augmentation of one sample."""
        from mmdet3d.core.bbox import LiDARInstance3DBoxes

        inverse = invert_pose(frame.ego_pose) if frame.ego_pose_inv is None else frame.ego_pose_inv
        matrices = dict(
            lidar2img=frame.lidar2img,
            intrinsics=frame.intrinsics,
            ego_pose=frame.ego_pose,
            ego_pose_inv=inverse,
        )
        data = {key: [[self._tensor(value)]] for key, value in matrices.items()}
        data['timestamp'] = [[torch.tensor(frame.timestamp_s, dtype=torch.float64, device=self.device)]]
        shape = (*frame.images.shape[2:], 3)
        meta = dict(
            scene_token=frame.scene_token,
            pad_shape=[shape] * len(frame.images),
            img_shape=[shape] * len(frame.images),
            box_type_3d=LiDARInstance3DBoxes,
        )
        return dict(data, img=[self._tensor(frame.images)[None]], img_metas=[[meta]])

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)


def _detections(result: Mapping[str, Any]) -> Detections3D:
    """Return mmdet3d's result of one sample, in descending score order."""
    order = np.argsort(-result['scores_3d'].numpy(), kind='stable')
    return Detections3D(
        result['boxes_3d'].tensor.numpy()[order],
        result['scores_3d'].numpy()[order],
        result['labels_3d'].numpy()[order].astype(np.int64),
    )


class Boundary:
    """The modules of the graphs in PyTorch, with what the runtime does around the graphs."""

    def __init__(self, graphs: list[Graph], facts: Mapping[str, Any]) -> None:
        """Keep the parts.

        Args:
            graphs: of one contract.
            facts: the family's `postprocess_facts`.
        """
        parts = {graph.name: _TorchGraph(graph, facts) for graph in graphs}
        self.contract = ForkContract(parts['fork']) if 'fork' in parts else _DeployChain(parts)
        self.facts = facts
        self._last: tuple[np.ndarray, float, str] | None = None

    @property
    def state(self) -> StreamState | None:
        """See `Stepper.state`."""
        if self._last is None:
            return None
        pose, time, scene = self._last
        return StreamState(self.contract.read_state(pose, time), pose, time, scene)

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self._last = None
        if state is not None:
            self.contract.write_state(state.tensors, state.ego_pose, state.timestamp_s)
            self._last = state.ego_pose, state.timestamp_s, state.scene_token

    def reset(self) -> None:
        """Empty the memory."""
        self._last = None

    def step(self, frame: Frame) -> StepResult:
        """See `Stepper.step`."""
        from mmdeploy_ext.preprocess_multiview import Calibration

        last, pose, time = self._last, frame.ego_pose, frame.timestamp_s
        continues = last is not None and last[2] == frame.scene_token
        motion = relative_motion(last[0], pose) if continues else np.eye(4)
        inverse = invert_pose(pose) if frame.ego_pose_inv is None else frame.ego_pose_inv
        moment = Moment(pose, inverse, time, motion, time - last[1] if continues else 0.0, continues)
        outputs = self.contract.run(frame.images, Calibration(frame.lidar2img, frame.intrinsics), moment)
        self._last = pose, time, frame.scene_token
        found = decode(outputs['all_cls_scores'], outputs['all_bbox_preds'], self.facts)
        return StepResult(outputs, found, not continues)


class _TorchGraph:
    """One module behind arrays; what `ForkContract` needs of a backend."""

    def __init__(self, graph: Graph, facts: Mapping[str, Any]) -> None:
        self.spec: GraphSpec = graph.spec
        self.module = graph.module
        self.device = next(graph.module.parameters()).device
        self.metadata = _Facts(dict(facts))

    def infer(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the module on checked feeds; features are float32 whatever the spec says."""
        self.spec.check_feeds(feeds)
        tensors = [torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self.spec.input_names]
        tensors = [tensor.float() if tensor.dtype == torch.float16 else tensor for tensor in tensors]
        with torch.no_grad():
            outputs = self.module(*(tensor.to(self.device) for tensor in tensors))
        return {
            tensor.name: value.cpu().numpy().astype(tensor.dtype)
            for tensor, value in zip(self.spec.outputs, outputs, strict=True)
        }


class _Facts:
    """The part of a file's metadata that the fork's runtime reads."""

    def __init__(self, postprocess: dict[str, Any]) -> None:
        self.postprocess = postprocess


class _DeployChain:
    """The three modules of the deploy contract and the memory between frames."""

    def __init__(self, parts: Mapping[str, _TorchGraph]) -> None:
        self.backbone, self.embedding, self.head = (
            parts[name] for name in ('extract_img_feat', 'position_embedding', 'pts_head_memory')
        )
        self.memory = self._empty()

    def _empty(self) -> dict[str, np.ndarray]:
        spec = self.head.spec
        tensors = {field: spec.tensor(f'pre_memory_{field}') for field in FIELDS}
        return {field: np.zeros(tensor.axes, tensor.dtype) for field, tensor in tensors.items()}

    def run(self, images: np.ndarray, calibration: Calibration, moment: Moment) -> dict[str, np.ndarray]:
        """Run one frame and keep the memory; returns all outputs of the head."""
        img2lidar = np.linalg.inv(calibration.lidar2img)[None].astype(np.float32)
        intrinsics = calibration.intrinsics[None].astype(np.float32)
        memory = self.memory if moment.prev_exists else self._empty()
        feeds = dict(
            self.backbone.infer({'img': images.astype(self.backbone.spec.tensor('img').dtype)}),
            **self.embedding.infer(dict(img2lidar=img2lidar, intrinsics=intrinsics)),
            **{f'pre_memory_{field}': rows for field, rows in memory.items()},
            ego_motion=moment.ego_motion[None].astype(np.float32),
            delta_t_s=np.array([moment.delta_t_s], np.float32),
            prev_exists=np.array([moment.prev_exists], np.float32),
        )
        outputs = self.head.infer(feeds)
        self.memory = {field: outputs[f'post_memory_{field}'] for field in FIELDS}
        return outputs

    def read_state(self, ego_pose: np.ndarray, timestamp_s: float) -> dict[str, np.ndarray]:
        """Return the memory after the last frame; it is local already."""
        return {field: rows.astype(np.float32) for field, rows in self.memory.items()}

    def write_state(
        self, tensors: Mapping[str, np.ndarray], ego_pose: np.ndarray, timestamp_s: float
    ) -> None:
        """Replace the memory by a local one."""
        self.memory = {field: np.asarray(tensors[field], rows.dtype) for field, rows in self._empty().items()}
