"""StreamPETR: supported configs and models."""

from typing import Any

from torch import nn

from mm2onnx_driving.common.camera_models import CameraFamily, CameraModels
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.streampetr.data import StreamPetrData
from mm2onnx_driving.streampetr.facts import StreamPetrFacts
from mm2onnx_driving.streampetr.graphs import graphs
from mm2onnx_driving.streampetr.model.live import HEAD_METHODS, check_parts
from mm2onnx_driving.streampetr.reference import StreamPetrReference
from mm2onnx_driving.streampetr.runtime import GRAPHS, StreamPetrOnnx
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.spec.memory import MemorySpec
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup

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


def check_test_path(cfg: Any) -> None:
    if not cfg.model.get('aux_2d_only', True):
        raise ConfigError(
            f'{cfg.filename}: model.aux_2d_only=False selects tokens with the 2D head at test time, which '
            'is not supported; expected True'
        )
    head = part_cfg(cfg.model, 'pts_bbox_head')
    decoder = (head.get('transformer') or {}).get('decoder') or {}
    if decoder.get('post_norm_cfg', dict(type='LN')) is None:
        raise ConfigError(
            f'{cfg.filename}: model.pts_bbox_head.transformer.decoder.post_norm_cfg is None, so the '
            'branches would get outputs that are not normalised; expected a norm'
        )


class StreamPetrFamily(CameraFamily, SequenceFamily):
    name = 'streampetr'
    models = CameraModels(
        detectors=('Petr3D', 'Petr3DPTH', 'Petr3DONNX'),
        heads=('StreamPETRHead', 'StreamPETRHeadPTH', 'StreamPETRHeadONNX'),
        check_further=check_test_path,
    )
    untraced = (
        *HEAD_METHODS[1:], 'pts_bbox_head.forward', '.forward', 'forward_test', 'simple_test',
        'simple_test_pts', 'prepare_location', 'forward_roi_head', 'decode', 'decode_single',
        'grid_mask.forward',
    )  # fmt: skip
    files = GRAPHS
    opens = StreamPetrOnnx
    data = StreamPetrData()
    ignores_places = True  # its memory is in the last LiDAR frame
    ignored_prefixes = ('img_roi_head.', 'pts_bbox_head.code_weights', 'pts_bbox_head.match_costs')
    reference, graphs = staticmethod(StreamPetrReference), staticmethod(graphs)

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
