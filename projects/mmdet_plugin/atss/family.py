"""ATSS's family: which configs it claims, what it refuses, and what the other modules of the package give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdet.core.anchor import build_prior_generator
from torch import nn

from mmdeploy_ext.contract import options as choices
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.postprocess.bbox2d import NmsConfig, capped, nms_config
from mmdeploy_ext.families.base import Claim, register_family
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.runtime.atss import model as runtime
from projects.mmdet_plugin.atss import graphs, reference, samples

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.contract.option import Options

FIXED_SIZE_BACKBONES = ('SwinTransformer',)
"""Backbones of mmdet that decide in Python, by the size of the input (measured: 1.25 x as large is wrong)."""


class AtssFamily(ImageFamily):
    """mmdet's `ATSS` detector with `ATSSHead`."""

    name = 'atss'
    exports = 'one-stage detectors with bbox_head=ATSSHead (projects/mmdet_plugin/atss/README.md)'
    near = ('ATSS', 'GFL', 'Retina', 'FCOS', 'PAA', 'VFNet', 'Anchor', 'RPN', 'YOLO', 'SSD', 'RCNN', 'RTMDet')
    task = 'bbox2d'
    forms = ('full', 'decode', 'raw')
    own_options = (choices.MAX_CANDIDATES,)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(samples.feeds)
    reference_tensors = staticmethod(reference.tensors)
    reference_detections = staticmethod(reference.detections)
    candidate_bounds = staticmethod(reference.candidate_bounds)

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`."""
        return Claim.HEAD if (cfg.model.get('bbox_head') or {}).get('type') == 'ATSSHead' else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: sizes, coder, DCN and opset."""
        head = cfg.model.bbox_head
        coder = head.get('bbox_coder', {}).get('type', 'DeltaXYWHBBoxCoder')
        if coder != 'DeltaXYWHBBoxCoder' or head.get('bbox_coder', {}).get('add_ctr_clamp'):
            raise ConfigError(
                f'{cfg.filename}: model.bbox_head.bbox_coder is {coder}; ATSS exports with '
                f'DeltaXYWHBBoxCoder without add_ctr_clamp'
            )
        _check_head(cfg.filename, head)
        backbone = cfg.model.get('backbone', {}).get('type')
        if options.dynamic and backbone in FIXED_SIZE_BACKBONES:
            raise UsageError(
                f'--dynamic-export: {backbone} computes its window masks from the traced size, so that the '
                f'graph would be wrong at others; export a fixed --shape'
            )
        config = nms_config(cfg.model.get('test_cfg') or {})
        smallest = min(_strides(head))
        if min(options.height, options.width) < smallest:
            raise UsageError(
                f'--shape {options.height} {options.width}: each side has to be at least the smallest '
                f'stride of the model, {smallest} pixels'
            )
        if options.max_candidates:
            _check_candidates(head, options, config)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """See `Family.postprocess_facts`: what `runtime/atss/model.py` reads."""
        head = model.bbox_head
        coder = head.bbox_coder
        return dict(
            nms_config(head.test_cfg).to_json(),
            clip_border=bool(coder.clip_border),
            strides=[int(stride[0]) for stride in head.prior_generator.strides],
            base_anchors=[base.tolist() for base in head.prior_generator.base_anchors],
            coder=dict(means=list(coder.means), stds=list(coder.stds), wh_ratio_clip=graphs.WH_RATIO_CLIP),
            num_classes=int(head.cls_out_channels),
        )

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        """See `ImageFamily.results_left_out`."""
        if options.get('score_form') != 'product':
            return ''
        return (
            'score_form=product keeps no class scores, so detections are not compared: a threshold on the '
            'product is not the one that get_bboxes applies'
        )


def _check_head(filename: str, head: Mapping[str, Any]) -> None:
    """Refuse heads whose scores or anchors the graph would get wrong."""
    loss = head.get('loss_cls') or {}
    if loss and not loss.get('use_sigmoid', False):
        raise ConfigError(
            f'{filename}: model.bbox_head.loss_cls.use_sigmoid is False; ATSS exports with scores after a '
            f'sigmoid'
        )
    strides = (head.get('anchor_generator') or {}).get('strides', [])
    if any(isinstance(stride, list | tuple) and len(set(stride)) > 1 for stride in strides):
        raise ConfigError(
            f'{filename}: model.bbox_head.anchor_generator.strides={strides}; ATSS exports with strides that '
            f'are equal in x and y'
        )


def _check_candidates(head: Mapping[str, Any], options: Options, config: NmsConfig) -> None:
    """Refuse a number of candidates that the form or the size does not have."""
    given = f'--max-candidates {options.max_candidates}'
    if options.dynamic:
        raise UsageError(f'{given}: its shapes are constant; export it without --dynamic-export')
    shapes = runtime.level_shapes(options.height, options.width, _strides(head))
    priors = build_prior_generator(head.anchor_generator).num_base_priors
    pairs = [h * w * count * int(head.num_classes) for (h, w), count in zip(shapes, priors, strict=True)]
    there = sum(capped(count, config.nms_pre) for count in pairs)
    if options.max_candidates > there:
        raise UsageError(
            f'{given}: the model has only {there} candidates at {options.height} x {options.width}'
        )


def _strides(head_cfg: Mapping[str, Any]) -> list[int]:
    strides = (head_cfg.get('anchor_generator') or {}).get('strides', [8, 16, 32, 64, 128])
    return [int(stride[0]) if isinstance(stride, list | tuple) else int(stride) for stride in strides]


register_family(AtssFamily())
