"""SOLO, Decoupled SOLO and SOLOv2: the contract of their graphs and the chain of modules they are made of.

Source of the algorithm: mmdet 2.28.2 `models/dense_heads/{solo_head,solov2_head}.py` and
`core/post_processing/matrix_nms.py`; the fork layout: zhangjinsong3/SOLOv2.tensorRT 790835b.

Glossary: B batch, C classes, S grid cells of all levels, G grid lines of all levels, E channels of a dynamic
kernel, H, W network input in pixels, H4, W4 a quarter of it, n instances, h, w original image.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.contract import options as choices
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.config import test_pipeline
from mmdeploy_ext.core.errors import ShapeError
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.exporting.postprocess.mask import mask_config
from mmdeploy_ext.families.base import Claim, ImageFamily, register_family
from mmdeploy_ext.inputs.pipeline_rule import rule_from_pipeline
from mmdeploy_ext.runtime.detections import Instances, count_bounds
from mmdeploy_ext.runtime.solo import model as runtime
from projects.mmdet_plugin.solo import contract
from projects.mmdet_plugin.solo.grids import check_grids
from projects.mmdet_plugin.solo.postprocess import POSTPROCESS
from projects.mmdet_plugin.solo.wrapper import (
    LEVELS,
    BatchedNetwork,
    ForkNetwork,
    SoloFeatures,
    SoloLevels,
    points_nms,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.inputs.pictures import PreparedImage, PreprocessRule
    from mmdeploy_ext.weights.checkpoint import Checkpoint

TIE = 1e-4
"""Scores of neighbouring cells whose ratio is this close to 1 are a tie: an engine's rounding decides.

It is the bar of raw tensors. Rounding changes low scores of full-size heads with seeded weights by up to
3.7e-4 of themselves (`tests/matrix/test_solo_matrix.py`), and a pair 1.3e-5 apart did change places.
"""
SIGMOID_TIE = 3e-7
"""Scores that are this close are a tie, too: ONNX Runtime's sigmoid moves each of them by up to 1.5e-7.

Measured against float64 on the CPU (1.31.1): its steps are 3e-8 at every score, so that it is off by 3e-4 of
a score of 5e-4 and by 2.5e-3 of one of 6e-5. A pair 6.4e-9 apart at 5.6e-5 did change places.
"""


class SoloFamily(ImageFamily):
    """mmdet's `SOLO`, `DecoupledSOLO` and `SOLOv2` detectors with any of the four heads."""

    name = 'solo'
    exports = 'SOLO, Decoupled SOLO and SOLOv2 with their mask_head (projects/mmdet_plugin/solo/README.md)'
    near = (
        'SOLO',
        'MaskRCNN',
        'MaskHead',
        'CondInst',
        'YOLACT',
        'PointRend',
        'Panoptic',
        'MaskFormerHead',
        'Mask2FormerHead',
        'QueryInst',
    )
    task = 'mask'
    forms = ('full', 'raw')
    own_options = (choices.LAYOUT, choices.MAX_CANDIDATES)

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`."""
        return Claim.HEAD if (cfg.model.get('mask_head') or {}).get('type') in LEVELS else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: layout, sizes, thresholds."""
        contract.check_layout(options)
        contract.check_head(cfg.filename, cfg.model.mask_head, options)
        mask_config(cfg.model.get('test_cfg') or cfg.get('test_cfg') or {})

    def build(self, cfg: Any) -> nn.Module:
        """See `Family.build`."""
        contract.check_levels(cfg.filename, cfg.model.mask_head)
        return super().build(cfg)

    def load_weights(self, model: nn.Module, checkpoint: Checkpoint) -> None:
        """See `Family.load_weights`; grids of another training are refused."""
        check_grids(model.mask_head, checkpoint)
        super().load_weights(model, checkpoint)

    def spec(self, model: nn.Module, options: Options) -> GraphSpec:
        """See `ImageFamily.spec`."""
        return contract.graph_spec(model.mask_head, options)

    def stages(self, model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
        """See `ImageFamily.stages`: the network, and for `full` the post-processing after it."""
        head = model.mask_head
        levels = LEVELS[type(head).__name__](fuse(model) if fold else model)
        if options.form == 'raw' and options.layout == 'fork':
            names = contract.fork_names(head, options.batch)
            return [Stage('network', ForkNetwork(levels, contract.fork_is_flat(head)), ('input',), names)]
        if options.form == 'full' and isinstance(levels, SoloLevels):
            parts = contract.feature_names(head)
            chain = [Stage('network', SoloFeatures(levels), ('input',), parts)]
        else:
            parts = contract.raw_names(head)
            chain = [Stage('network', BatchedNetwork(levels, parts), ('input',), parts)]
        if options.form == 'full':
            kind = POSTPROCESS[type(head).__name__]
            module = kind(levels.head, options.max_candidates)
            inputs = ('img_shape', 'ori_shape', *parts)
            chain.append(Stage('postprocess', module, inputs, contract.full_names(options), 'torchscript'))
        return chain

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """See `Family.postprocess_facts`: what `runtime/solo/model.py` reads."""
        head = model.mask_head
        return dict(
            mask_config(head.test_cfg).to_json(),
            head=type(head).__name__,
            num_classes=int(head.cls_out_channels),
            num_grids=[int(grid) for grid in head.num_grids],
            strides=[int(stride) for stride in head.strides],
            mask_stride=contract.mask_stride(head),
            cells='level after level, each row by row; cell (i, j) of level l is i * num_grids[l] + j',
        )

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        """See `Family.preprocess_rule`."""
        return rule_from_pipeline(test_pipeline(cfg))

    def num_classes(self, model: nn.Module) -> int:
        """See `Family.num_classes`."""
        return int(model.mask_head.num_classes)

    def batches(self, images: Sequence[PreparedImage]) -> list[list[int]]:
        """See `ImageFamily.batches`: masks of one batch have one size."""
        groups: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            groups.setdefault(tuple(image.ori_shape), []).append(index)
        return list(groups.values())

    def whole(self, image: PreparedImage) -> tuple[int, int]:
        """See `ImageFamily.whole`: up to a multiple of 8, which soft masks have."""
        return tuple(-(-side // 8) * 8 for side in image.tensor.shape[1:])

    def feeds(self, images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
        """See `ImageFamily.feeds`; masks are of the original size whatever `rescale` says, as mmdet's are."""
        sizes = {tuple(image.ori_shape) for image in images}
        if len(sizes) > 1:
            raise ShapeError(
                f'ori_shape: the images of a batch have the original sizes {sorted(sizes)}; masks of one '
                f'batch have one size: run them one by one (samples_per_gpu=1)'
            )
        return dict(
            input=np.stack([image.tensor for image in images]),
            img_shape=np.asarray([image.img_shape for image in images], np.float32),
            ori_shape=np.asarray(sizes.pop(), np.int64),
        )

    def reference_tensors(
        self,
        model: nn.Module,
        feeds: Mapping[str, np.ndarray],
        form: str,
        layout: str = 'batched',
        **_: Any,
    ) -> dict[str, np.ndarray]:
        """See `ImageFamily.reference_tensors`: mmdet's own head, SOLOv2's points NMS as in `get_results`."""
        head = model.mask_head
        with torch.no_grad():
            image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
            scores, *rest = _by_mmdet(head, model.extract_feat(image))
        named = contract.arrange(head, scores, rest, layout)
        return {name: tensor.cpu().numpy() for name, tensor in named.items()}

    def reference_detections(
        self, model: nn.Module, images: Sequence[PreparedImage], rescale: bool
    ) -> list[Instances]:
        """See `ImageFamily.reference_detections`: mmdet's `get_results`."""
        metas = [dict(img_shape=(*image.img_shape, 3), ori_shape=(*image.ori_shape, 3)) for image in images]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            batch = torch.from_numpy(np.stack([image.tensor for image in images]))
            batch = batch.to(next(model.parameters()).device)
            results = model.mask_head.simple_test(model.extract_feat(batch), metas)
        return [
            Instances(
                found.masks.cpu().numpy().astype(bool),
                found.scores.cpu().numpy(),
                found.labels.cpu().numpy().astype(np.int64),
            )
            for found in results
        ]

    def harmless(
        self, model: nn.Module, feeds: Mapping[str, np.ndarray], layout: str = 'batched', **_: Any
    ) -> dict[str, np.ndarray]:
        """See `ImageFamily.harmless`: scores of points-NMS ties below the threshold.

        Both engines may give such a cell its score or zero; no result depends on it.
        """
        head = model.mask_head
        with torch.no_grad():
            image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
            levels = [_ties(scores, head.test_cfg.score_thr) for scores in _scores_before_nms(model, image)]
        named = contract.arrange_scores(head, levels, layout)
        return {name: tensor.cpu().numpy() for name, tensor in named.items()}

    def candidate_bounds(
        self, model: nn.Module, feeds: Mapping[str, np.ndarray], slack: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `ImageFamily.candidate_bounds`: (cell, class) pairs after points NMS."""
        scores = self.reference_tensors(model, feeds, 'raw')['cate_pred']
        return count_bounds(scores, float(model.mask_head.test_cfg.score_thr), slack)

    def detections(
        self, metadata: Metadata, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
    ) -> list[Instances]:
        """See `ImageFamily.detections`."""
        return runtime.detections(metadata, outputs, feeds)


def _by_mmdet(head: nn.Module, pyramid: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """Return mmdet's head outputs with the scores first: scores, then masks, kernels, features."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        outputs = head(pyramid)
    if type(head).__name__ == 'SOLOV2Head':
        kernels, logits, features = outputs
        return [points_nms(level) for level in logits], kernels, features
    return outputs[-1], *outputs[:-1]


def _scores_before_nms(model: nn.Module, image: torch.Tensor) -> list[torch.Tensor]:
    """Return per level (B, C, g, g) scores of the unpatched model before points NMS."""
    logits: list[torch.Tensor] = []
    handle = model.mask_head.conv_cls.register_forward_hook(lambda *call: logits.append(call[2]))
    try:
        _by_mmdet(model.mask_head, model.extract_feat(image))
    finally:
        handle.remove()
    return [level.sigmoid() for level in logits]


def _ties(scores: torch.Tensor, score_thr: float) -> torch.Tensor:
    """Return (B, C, g, g): scores below the threshold that equal the largest neighbour up or left, or NaN."""
    padded = torch.nn.functional.pad(scores, (1, 0, 1, 0))
    above, left, corner = padded[:, :, :-1, 1:], padded[:, :, 1:, :-1], padded[:, :, :-1, :-1]
    rival = torch.maximum(torch.maximum(above, left), corner)
    tied = ((scores - rival).abs() <= TIE * scores + SIGMOID_TIE) & (scores < score_thr)
    return torch.where(tied, scores, torch.full_like(scores, torch.nan))


register_family(SoloFamily())
