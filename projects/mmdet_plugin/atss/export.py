"""ATSS: the contract of its graphs and the chain of modules that they are made of.

The network is mmdet's own detector, used as it is. Source of the algorithm: mmdet 2.28.2
`models/dense_heads/{atss_head,base_dense_head}.py`.

Glossary: B batch, L levels, A anchors of all levels, C classes, H, W network input in pixels, n detections.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmdet.core.anchor import build_prior_generator
from torch import nn

from mmdeploy_ext.contract import options as choices
from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.config import test_pipeline
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.exporting.ops.deform_conv import spell_out_leading_offsets
from mmdeploy_ext.exporting.postprocess.bbox2d import NmsConfig, capped, nms_config
from mmdeploy_ext.families.base import Claim, ImageFamily, register_family
from mmdeploy_ext.inputs.pictures import PreparedImage, PreprocessRule
from mmdeploy_ext.inputs.pipeline_rule import rule_from_pipeline
from mmdeploy_ext.runtime.atss import model as runtime
from mmdeploy_ext.runtime.detections import Detections, count_bounds, sigmoid
from projects.mmdet_plugin.atss.wrapper import (
    FULL_NAMES,
    WH_RATIO_CLIP,
    DecodeForm,
    FullForm,
    RawNetwork,
    raw_names,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options

FIXED_SIZE_BACKBONES = ('SwinTransformer',)
"""Backbones of mmdet that decide in Python, by the size of the input (measured: 1.25 x as large is wrong)."""
PIXELS = ColumnGroup(name='xyxy', unit='pixel')


class AtssFamily(ImageFamily):
    """mmdet's `ATSS` detector with `ATSSHead`."""

    name = 'atss'
    exports = 'one-stage detectors with bbox_head=ATSSHead (projects/mmdet_plugin/atss/README.md)'
    near = ('ATSS', 'GFL', 'Retina', 'FCOS', 'PAA', 'VFNet', 'Anchor', 'RPN', 'YOLO', 'SSD', 'RCNN', 'RTMDet')
    task = 'bbox2d'
    forms = ('full', 'decode', 'raw')
    own_options = (choices.MAX_CANDIDATES,)

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

    def spec(self, model: nn.Module, options: Options) -> GraphSpec:
        """See `ImageFamily.spec`."""
        batch, height, width = (
            ('B', 'H', 'W') if options.dynamic else (options.batch, options.height, options.width)
        )
        image = TensorSpec(
            'input', 'float32', (batch, 3, height, width), 'normalised images, padded bottom and right'
        )
        outputs = getattr(self, f'_{options.form}_outputs')(model, options)
        inputs = (image, *self._optional_inputs(batch)) if options.form == 'full' else (image,)
        return GraphSpec(f'atss/{options.form}', inputs, outputs)

    @staticmethod
    def _optional_inputs(batch: int | str) -> tuple[TensorSpec, ...]:
        return (
            TensorSpec(
                'img_shape',
                'float32',
                (batch, 2),
                'height and width before padding, which boxes are clipped to; 0 means the input size',
                'pixel',
                default=0.0,
            ),
            TensorSpec(
                'scale_factor',
                'float32',
                (batch, 4),
                'w h w h ratios, input / original; boxes are divided by it',
                default=1.0,
            ),
        )

    @staticmethod
    def _full_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        batch, cap = 'B' if options.dynamic else options.batch, options.max_candidates
        rows = capped(cap, nms_config(model.bbox_head.test_cfg).max_per_img) if cap else 'n'
        outputs = (
            TensorSpec(
                'dets',
                'float32',
                (batch, rows, 5),
                'x1 y1 x2 y2 score in descending score order; pixels of '
                'the network input, of the original image when scale_factor is fed; padded with zeros',
                compare='detections',
            ),
            TensorSpec(
                'labels',
                'int64',
                (batch, rows),
                'class indices; -1 where dets is padding',
                compare='detections',
            ),
        )
        if not cap:
            return outputs
        meaning = f'(anchor, class) pairs over the score threshold; more than {cap}: the rest was cut off'
        return (*outputs, TensorSpec('candidates', 'int64', (batch,), meaning, compare='detections'))

    @staticmethod
    def _decode_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        head = model.bbox_head
        batch, anchors = (
            ('B', 'A')
            if options.dynamic
            else (
                options.batch,
                sum(
                    h * w * len(base)
                    for (h, w), base in zip(
                        _feature_shapes(head, options), head.prior_generator.base_anchors, strict=True
                    )
                ),
            )
        )
        boxes = TensorSpec(
            'boxes',
            'float32',
            (batch, anchors, 4),
            'x1 y1 x2 y2 per anchor, level by level, not clipped',
            'pixel',
            (PIXELS,),
        )
        if options.score_form == 'product':
            return boxes, TensorSpec(
                'scores', 'float32', (batch, anchors, head.cls_out_channels), 'class score times centerness'
            )
        return (
            boxes,
            TensorSpec('scores', 'float32', (batch, anchors, head.cls_out_channels), 'class scores, 0..1'),
            TensorSpec('centerness', 'float32', (batch, anchors), 'centerness, 0..1'),
        )

    @staticmethod
    def _raw_outputs(model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        head = model.bbox_head
        shapes = _feature_shapes(head, options)
        per_cell = [len(base) for base in head.prior_generator.base_anchors]
        units = dict(
            cls_score=('class logits', 'logit', head.cls_out_channels),
            bbox_pred=('box deltas dx dy dw dh', '', 4),
            centerness=('centerness logits', 'logit', 1),
        )
        batch = 'B' if options.dynamic else options.batch
        outputs = []
        for kind, (meaning, unit, channels) in units.items():
            for level, (height, width) in enumerate(shapes):
                size = (f'h{level}', f'w{level}') if options.dynamic else (height, width)
                outputs.append(
                    TensorSpec(
                        f'{kind}_{level}',
                        'float32',
                        (batch, channels * per_cell[level], *size),
                        f'{meaning}, level {level}',
                        unit,
                    )
                )
        return tuple(outputs)

    def stages(self, model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
        """See `ImageFamily.stages`: the network, and what the form adds to it."""
        raw = raw_names(len(model.bbox_head.prior_generator.strides))
        network = spell_out_leading_offsets(fuse(model)) if fold else model
        chain = [Stage('network', RawNetwork(network), ('input',), raw)]
        if options.form == 'decode':
            product = options.score_form == 'product'
            outputs = ('boxes', 'scores') if product else ('boxes', 'scores', 'centerness')
            chain.append(Stage('decode', DecodeForm(model.bbox_head, product), raw, outputs, 'torchscript'))
        elif options.form == 'full':
            chain.append(
                Stage(
                    'postprocess',
                    FullForm(model.bbox_head, options.max_candidates),
                    ('input', 'img_shape', 'scale_factor', *raw),
                    FULL_NAMES if options.max_candidates else FULL_NAMES[:2],
                    'torchscript',
                )
            )
        return chain

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """See `Family.postprocess_facts`: what `runtime/atss/model.py` reads."""
        head = model.bbox_head
        coder = head.bbox_coder
        return dict(
            nms_config(head.test_cfg).to_json(),
            clip_border=bool(coder.clip_border),
            strides=[int(stride[0]) for stride in head.prior_generator.strides],
            base_anchors=[base.tolist() for base in head.prior_generator.base_anchors],
            coder=dict(means=list(coder.means), stds=list(coder.stds), wh_ratio_clip=WH_RATIO_CLIP),
            num_classes=int(head.cls_out_channels),
        )

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        """See `Family.preprocess_rule`."""
        return rule_from_pipeline(test_pipeline(cfg))

    def num_classes(self, model: nn.Module) -> int:
        """See `Family.num_classes`."""
        return int(model.bbox_head.num_classes)

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        """See `ImageFamily.feeds`."""
        feeds = dict(
            input=np.stack([image.tensor for image in images]),
            img_shape=np.asarray([image.img_shape for image in images], np.float32),
        )
        if rescale:
            feeds['scale_factor'] = np.stack([image.scale_factor for image in images]).astype(np.float32)
        return feeds

    def reference_tensors(
        self,
        model: nn.Module,
        feeds: Mapping[str, np.ndarray],
        form: str,
        score_form: str = 'separate',
        **_: Any,
    ) -> dict[str, np.ndarray]:
        """See `ImageFamily.reference_tensors`: mmdet's own head, anchor generator and box coder."""
        with torch.no_grad():
            image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
            outputs = model.bbox_head(model.extract_feat(image))
            if form == 'raw':
                flat = [tensor for kind in outputs for tensor in kind]
                named = dict(zip(raw_names(len(outputs[0])), flat, strict=True))
            else:
                named = _decode_by_mmdet(model.bbox_head, *outputs)
                if score_form == 'product':
                    named['scores'] = named['scores'] * named.pop('centerness')[..., None]
        return {name: tensor.cpu().numpy() for name, tensor in named.items()}

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        """See `ImageFamily.results_left_out`."""
        if options.get('score_form') != 'product':
            return ''
        return (
            'score_form=product keeps no class scores, so detections are not compared: a threshold on the '
            'product is not the one that get_bboxes applies'
        )

    def reference_detections(
        self, model: nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> list[Detections]:
        """See `ImageFamily.reference_detections`: mmdet's `get_bboxes`."""
        metas = [
            dict(
                img_shape=(*image.img_shape, 3),
                scale_factor=image.scale_factor,
                ori_shape=(*image.ori_shape, 3),
                pad_shape=(*image.tensor.shape[1:], 3),
            )
            for image in images
        ]
        with torch.no_grad():
            batch = torch.from_numpy(np.stack([image.tensor for image in images]))
            batch = batch.to(next(model.parameters()).device)
            outputs = model.bbox_head(model.extract_feat(batch))
            results = model.bbox_head.get_bboxes(
                *outputs, img_metas=metas, cfg=_deployed_test_cfg(model.bbox_head), rescale=rescale
            )
        return [
            Detections(dets[:, :4].cpu().numpy(), dets[:, 4].cpu().numpy(), labels.cpu().numpy())
            for dets, labels in results
        ]

    def candidate_bounds(
        self, model: nn.Module, feeds: Mapping[str, np.ndarray], slack: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `ImageFamily.candidate_bounds`: (anchor, class) pairs of the best of every level."""
        config = nms_config(model.bbox_head.test_cfg)
        tensors = self.reference_tensors(model, feeds, 'raw')
        levels = [
            count_bounds(sigmoid(logits), config.score_thr, slack)
            for name, logits in tensors.items()
            if name.startswith('cls_score_')
        ]
        most = config.nms_pre if config.nms_pre > 0 else np.iinfo(np.int64).max
        least, largest = (sum(np.minimum(level[side], most) for level in levels) for side in (0, 1))
        return least, largest

    def detections(
        self, metadata: Metadata, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
    ) -> list[Detections]:
        """See `ImageFamily.detections`."""
        return runtime.detections(metadata, outputs, feeds)


def _deployed_test_cfg(head: nn.Module) -> Any:
    """Return mmdet's test_cfg with what `deploy_nms_pre` asks for; -1 is more than there are candidates."""
    wanted = head.test_cfg.get('deploy_nms_pre')
    if wanted is None:
        return head.test_cfg
    cfg = head.test_cfg.copy()
    cfg['nms_pre'] = wanted if wanted > 0 else sys.maxsize
    return cfg


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


def _feature_shapes(head: nn.Module, options: Options) -> list[tuple[int, int]]:
    strides = [int(stride[0]) for stride in head.prior_generator.strides]
    return runtime.level_shapes(options.height, options.width, strides)


def _decode_by_mmdet(
    head: nn.Module,
    cls_scores: Sequence[torch.Tensor],
    bbox_preds: Sequence[torch.Tensor],
    centernesses: Sequence[torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Decode with mmdet's own functions, image by image."""
    priors = head.prior_generator.grid_priors(
        [tensor.shape[-2:] for tensor in bbox_preds], device=bbox_preds[0].device
    )
    boxes = [
        torch.stack(
            [head.bbox_coder.decode(prior, deltas.permute(1, 2, 0).reshape(-1, 4)) for deltas in level]
        )
        for prior, level in zip(priors, bbox_preds, strict=True)
    ]
    rows = [
        [level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, columns).sigmoid() for level in levels]
        for levels, columns in ((cls_scores, head.cls_out_channels), (centernesses, 1))
    ]
    return dict(
        boxes=torch.cat(boxes, 1), scores=torch.cat(rows[0], 1), centerness=torch.cat(rows[1], 1)[..., 0]
    )


register_family(AtssFamily())
