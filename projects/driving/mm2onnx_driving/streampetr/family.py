"""StreamPETR: frames, their dumps with the deployment fork's names, supported configs and models.

Source of the dumps: woquyuna/StreamPETR deployV1.0 0e9eefe, tools/test_pth.py and its documentation.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera import CameraData, CameraFamily
from mm2onnx_driving.common.camera_reference import CameraReference, array
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.streampetr.graphs import graphs
from mm2onnx_driving.streampetr.memory import FIELDS, to_global, to_local
from mm2onnx_driving.streampetr.runtime import GRAPHS, StreamPetrFacts, StreamPetrOnnx
from mm2onnx_driving.streampetr.steps import (
    HEAD_METHODS,
    Memory,
    check_parts,
    is_ours,
    memory_of,
    set_memory,
    steps_of,
    tap_geometry,
    tapped,
)
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.families.base import ABSENT, section_of
from mmdeploy_ext.families.common.lidar_parts import Hook
from mmdeploy_ext.families.synthetic.info_files import generated_dataset
from mmdeploy_ext.runtime.frames import Frame, StreamState
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.spec.tensors import ColumnGroup

# StreamPETR in PyTorch as a stepper.


class StreamPetrReference(CameraReference):
    reads, outputs = StreamPetrOnnx.reads, PREDICTIONS

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        embedding = 'embed_positions' if is_ours(self.head) else 'position_embeding'
        return dict(backbone=[(self.model, 'extract_img_feat')], embedding=[(self.head, embedding)])

    def forget(self) -> None:
        self.head.reset_memory()
        self.model.prev_scene_token = None

    def memory(self) -> dict[str, np.ndarray]:
        rows = {name: array(tensor) for name, tensor in memory_of(self.head)._asdict().items()}
        return to_local(rows, self._last.ego_pose, self._last.timestamp_s)

    def remember(self, state: StreamState) -> None:
        memory = to_global(state.tensors, state.ego_pose, state.timestamp_s)
        set_memory(self.head, Memory(*(torch.from_numpy(memory[field]).to(self.device) for field in FIELDS)))
        self.model.prev_scene_token = state.scene_token

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        return {}

    @contextlib.contextmanager
    def further_taps(self, frame: Frame) -> Iterator[None]:
        with tapped(self.model):
            yield
            rig = (self.tensor(matrices)[None] for matrices in (frame.lidar2img, frame.intrinsics))
            tap_geometry(self.model, *rig, self.tensor(frame.images))

    def tensors(self, values: Mapping[str, Tensor], was_reset: bool) -> dict[str, np.ndarray]:
        outputs = super().tensors(values, was_reset)
        outputs['outs_dec'] = array(values['out_outs_dec'])
        return outputs | {f'post_memory_{name}': rows for name, rows in self.memory().items()}

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        inverse = frame.ego_pose_inv
        if inverse is None:
            inverse = np.linalg.inv(np.asarray(frame.ego_pose, np.float64))
        numbers = dict(
            lidar2img=self.tensor(frame.lidar2img),
            intrinsics=self.tensor(frame.intrinsics),
            ego_pose=self.tensor(frame.ego_pose),
            ego_pose_inv=self.tensor(inverse),
            timestamp=torch.tensor(frame.timestamp_s, dtype=torch.float64, device=self.device),
        )
        return super().data(frame, is_first) | {key: [[value]] for key, value in numbers.items()}


# ---- dump of a frame


DUMP_SUFFIXES = {'out_': '_pth', 'post_mem_': '_pth', 'all_': '_pth'}
"""Prefix of a tensor's name -> suffix of the fork's file name."""
INPUTS = ('img', 'img2lidar', 'intrinsic', 'timestamp', 'ego_pose', 'ego_pose_inv', 'prev_exists')
CALIBRATION = ('lidar2img', 'intrinsics')
"""Matrices per camera, from which a frame is read back."""
MEMORY = ('embedding', 'timestamp', 'egopose', 'ref_point', 'velo')
DUMP_NAMES = (
    *INPUTS, *CALIBRATION, 'coords', 'query_pos', 'tgt', *(f'out_mem_{name}' for name in MEMORY),
    'out_outs_dec', *(f'post_mem_{name}' for name in MEMORY), 'all_cls_scores', 'all_bbox_preds',
)  # fmt: skip
"""Tensors that a dump has."""


def dump_tensors(model: nn.Module, taps: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return the dump of one frame: taps, and constants of the weights."""
    with torch.no_grad():
        tgt, query_pos, _ = steps_of(model.pts_bbox_head).learned_queries()
    tensors = dict(tgt=tgt, query_pos=query_pos) | dict(taps)
    missing = [name for name in DUMP_NAMES if name not in tensors]
    if missing:
        raise DataError(f'dump: the model returned no {", ".join(missing)}; dump with the PyTorch model')
    arrays = {name: tensors[name].detach().cpu().numpy() for name in DUMP_NAMES}
    # the fork's images have no batch axis, and its times in the memory are float64
    arrays['img'] = arrays['img'].reshape(arrays['img'].shape[-4:])
    for name in ('timestamp', 'out_mem_timestamp', 'post_mem_timestamp'):
        arrays[name] = arrays[name].astype(np.float64)
    return arrays


# ---- frames


class StreamPetrData(CameraData):
    needed = ('intrinsics', 'ego_pose', 'timestamp_s', 'scene_token')
    dump_suffixes, dump_names = DUMP_SUFFIXES, DUMP_NAMES

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        default = dict(type='CustomNuScenesDataset', collect_keys=[])  # these are collected to train a model
        return generated_dataset(folder, cfg, default, views=rule)

    def dump_tensors(self, model: nn.Module, taps: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return dump_tensors(model, taps)


# ---- family

TOLERANCES = {
    'embedding': ColumnGroup(rtol=0.0, atol=5e-4),
    'reference_point': ColumnGroup(unit='m', rtol=0.0, atol=2e-3),
    'timestamp': ColumnGroup(unit='s', rtol=0.0, atol=1e-5),
    'egopose': ColumnGroup(rtol=0.0, atol=2e-4),
    'velo': ColumnGroup(unit='m/s', rtol=0.0, atol=2e-4),
}
"""Absolute tolerances of a float32 memory.

Source: "Suggested tolerances" of StreamPETR's reference data; times 1e-5 s instead of 1e-6 s, because ages
are float32 here and a step of float32 at 10 s is 1e-6 s.
"""


class StreamPetrFamily(CameraFamily):
    name = 'streampetr'
    detectors = ('Petr3D', 'Petr3DPTH', 'Petr3DONNX')
    heads = ('StreamPETRHead', 'StreamPETRHeadPTH', 'StreamPETRHeadONNX')
    expects: ClassVar = {'aux_2d_only': (ABSENT, True)}  # without it the 2D head selects tokens at test time
    untraced = (
        *HEAD_METHODS[1:], 'pts_bbox_head.forward', '.forward', 'forward_test', 'simple_test',
        'simple_test_pts', 'prepare_location', 'forward_roi_head', 'decode', 'decode_single',
        'grid_mask.forward',
    )  # fmt: skip
    files = GRAPHS
    data = StreamPetrData()
    ignores_places = True  # its memory is in the last LiDAR frame
    ignored_prefixes = ('img_roi_head.', 'pts_bbox_head.code_weights', 'pts_bbox_head.match_costs')
    reference, graphs = staticmethod(StreamPetrReference), staticmethod(graphs)

    def check_further(self, cfg: Any) -> None:
        if section_of(cfg, 'pts_bbox_head.transformer.decoder').get('post_norm_cfg', dict()) is None:
            raise ConfigError(
                f'{cfg.filename}: model.pts_bbox_head.transformer.decoder.post_norm_cfg is None, so the '
                'branches would get outputs that are not normalised; expected a norm'
            )

    def check(self, cfg: Any, options: Options) -> None:
        super().check(cfg, options)
        stride, (height, width) = int(cfg.model.get('stride', 16)), self.preprocess_rule(cfg).input_size
        if height % stride or width % stride:
            raise ConfigError(
                f'{cfg.filename}: the test pipeline returns images of {height}x{width}, expected '
                f'multiples of the stride {stride}; set size_divisor in PadMultiViewImage'
            )

    def build(self, cfg: Any) -> nn.Module:
        model = super().build(cfg)
        check_parts(cfg.filename, model)
        model.rule = self.preprocess_rule(cfg)  # for contracts of other programs
        return model

    def facts(self, model: nn.Module) -> StreamPetrFacts:
        head = model.pts_bbox_head
        return StreamPetrFacts(
            **self.box_facts(model),
            memory_len=int(head.memory_len),
            topk_proposals=int(head.topk_proposals),
            num_propagated=int(head.num_propagated),
        )

    def memory_spec(self, facts: StreamPetrFacts) -> MemorySpec:
        return MemorySpec(
            tensors=TOLERANCES,
            outputs={name: f'post_memory_{name}' for name in TOLERANCES},
            needed=PREDICTIONS,
            per_query=(*PREDICTIONS, 'outs_dec'),
            scores='all_cls_scores',
            places=(('reference_point', 'all_bbox_preds', (0, 1, 2)), ('velo', 'all_bbox_preds', (8, 9))),
            topk=facts.topk_proposals,
            propagated=facts.num_propagated,
        )
