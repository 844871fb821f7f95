"""Families that keep their bird's-eye view: supported configs, and the models."""

from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from torch import nn

from mm2onnx_driving.common.bev_graphs import BEV
from mm2onnx_driving.common.camera_data import BevData
from mm2onnx_driving.common.camera_models import CameraFamily
from mm2onnx_driving.common.runtime.bev_frames import RECORDED
from mm2onnx_driving.layers.bev_view.head import BevHead
from mm2onnx_driving.layers.bev_view.transformer import BEVFormerLayer
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import users_method
from mmdeploy_ext.families.common.box_conventions import (
    CODER,
    check_coder,
    note_convention,
    state_convention,
    stated,
)
from mmdeploy_ext.families.common.options import CONVENTIONS
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.spec.tensors import ColumnGroup
from mmdeploy_ext.upstream.weights.checkpoint import Checkpoint

MEMORY = dict(
    bev_embed=BEV,
    position=ColumnGroup(unit='m', rtol=0.0, atol=1e-6),
    heading=ColumnGroup(unit='degree', rtol=0.0, atol=1e-6),
)
SETTINGS = dict(as_two_stage=False, with_box_refine=True)
"""Setting of the head -> the supported value, also the default."""
LOOPED = (
    ('', ('forward', 'get_bev_features')),
    ('encoder', ('forward', 'get_reference_points', 'point_sampling')),
    ('encoder.layers.?', ('forward',)),
    ('decoder', ('forward',)),
)
"""Parts of the transformer -> methods that our head replaces by its own loop."""


def check_parts(filename: str, model: nn.Module) -> None:
    if not isinstance(model.pts_bbox_head, BevHead):
        return
    for path, part in model.pts_bbox_head.transformer.named_modules():
        for place, methods in LOOPED:
            for found in (users_method(type(part), method) for method in methods if fnmatch(path, place)):
                if found:
                    head = type(model.pts_bbox_head).__name__
                    raise ConfigError(
                        f"{filename}: {found} would never be called, since mm2onnx's {head} loops over the "
                        'layers of encoder and decoder itself; use your own head with custom_imports'
                    )


def check_encoder(filename: str, transformer: Mapping[str, Any]) -> None:
    layers = transformer['encoder']['transformerlayers']
    for layer in layers if isinstance(layers, list | tuple) else [layers]:
        differs = dict(
            act_cfg=(layer.get('act_cfg') or dict(type='ReLU'))['type'] != 'ReLU',  # upstream ignores it
            ffn_cfgs=bool(layer.get('ffn_cfgs')),
            operation_order=layer['operation_order'][0] == 'norm',
        )
        if wrong := [f'{key}={layer[key]}' for key, is_other in differs.items() if is_other]:
            raise ConfigError(
                f'{filename}: model.pts_bbox_head.transformer.encoder.transformerlayers: '
                f'{", ".join(wrong)}; expected the values of the published configs, or your own layers '
                'with custom_imports'
            )


def check_memory(cfg: Any) -> None:
    if not cfg.model.get('video_test_mode', True):
        raise ConfigError(
            f'{cfg.filename}: model.video_test_mode=False makes the model forget the last view before '
            'every frame; expected True'
        )


class BevFamily(CameraFamily, SequenceFamily):
    """`coder` is the only supported type of the box coder."""

    coder = CODER
    data = BevData()

    def build(self, cfg: Any) -> nn.Module:
        model = super().build(cfg)
        check_coder(model, cfg, self.coder)
        state_convention(model, cfg, CONVENTIONS[0])
        if not getattr(model, 'video_test_mode', True):  # the default of BEVFormer's class
            raise ConfigError(
                f'{cfg.filename}: model.video_test_mode is missing, and its default False makes the model '
                'forget the last view before every frame; expected True'
            )
        check_parts(cfg.filename, model)
        if isinstance(model.pts_bbox_head.transformer.encoder.layers[0], BEVFormerLayer):
            check_encoder(cfg.filename, self.models.head_of(cfg)['transformer'])
        model.rule = self.preprocess_rule(cfg)  # for contracts of other programs
        model.can_bus_orientation = stated(cfg, 'can_bus_orientation', RECORDED) or RECORDED[0]
        return model

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        super().load_weights(model, checkpoint)
        note_convention(model, checkpoint)

    def view_facts(self, model: nn.Module) -> dict[str, Any]:
        """Return the fields of `BevFacts`."""
        head, transformer = model.pts_bbox_head, model.pts_bbox_head.transformer
        low, high = head.pc_range[:2], head.pc_range[3:5]
        return dict(
            self.box_facts(model),
            bev_h=int(head.bev_h),
            bev_w=int(head.bev_w),
            extent=tuple(float(end) - float(start) for start, end in zip(low, high, strict=True)),
            rotate_center=tuple(float(value) for value in transformer.rotate_center),
            rotate_prev_bev=bool(transformer.rotate_prev_bev),
            use_shift=bool(transformer.use_shift),
            can_bus_orientation=model.can_bus_orientation,
        )
