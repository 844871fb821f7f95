"""RT-DETR: supported configs, facts of files, its own test path.

Glossary: B batch, Q queries, N tokens of the encoder, D embedding, h, w map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.postprocess.suppression import positive
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.families.rtdetr import graphs, runtime
from mmdeploy_ext.families.rtdetr.facts import RtDetrFacts
from mmdeploy_ext.families.rtdetr.graphs import HEADS, RAW_NAMES
from mmdeploy_ext.families.rtdetr.runtime import check_tokens, count_tokens
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import PreprocessRule
from mmdeploy_ext.spec.tensors import TensorSpec
from mmdeploy_ext.upstream.models.building import names_of_class
from mmdeploy_ext.upstream.models.rtdetr.detector import MAX_PER_IMG, STRIDE


class RtDetrReference(ImageReference):
    def tensors(
        self, feeds: Mapping[str, np.ndarray], form: str, tokens: torch.Tensor | None = None, **_: Any
    ) -> dict[str, np.ndarray]:
        with torch.no_grad():
            images = _to_model(self.model, feeds['images'])
            outputs = self.model.decoder(self.model.extract_feat(images), tokens)
        return {name: tensor.cpu().numpy() for name, tensor in zip(RAW_NAMES, outputs, strict=True)}

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
        graphs.feeds(images, rescale)  # refuses pictures that were padded
        check_tokens((len(images), *images[0].tensor.shape), int(self.model.decoder.num_queries))
        return super().results(images, rescale)

    def takes(self, picture: TensorSpec, height: int, width: int) -> bool:
        if count_tokens(height, width) < int(self.model.decoder.num_queries):
            return False
        return super().takes(picture, height, width)

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        for names in (HEADS, RAW_NAMES[:2]):
            if all(name in tensors for name in names):
                logits, boxes = (_to_model(self.model, tensors[name]) for name in names)
                return {'extract_feat': None, 'decoder.forward': (logits, boxes, None)}
        return {}

    def in_order(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        tokens = outputs.get('tokens')
        if tokens is None:
            return dict(outputs)
        rows = np.argsort(tokens, 1)
        return {
            name: np.take_along_axis(array, rows.reshape(*rows.shape, *[1] * (array.ndim - 2)), 1)
            for name, array in outputs.items()
        }


def maps_of(model: nn.Module, images: Sequence[PreparedImage]) -> list[torch.Tensor]:
    """Return the encoder's maps (B, D, h, w), the finest first."""
    with torch.no_grad():
        return list(model.extract_feat(_to_model(model, np.stack([image.tensor for image in images]))))


def _to_model(model: nn.Module, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements='W')).to(next(model.parameters()).device)


PARTS = ('backbone', 'encoder', 'decoder', 'postprocess', 'extract_feat')


class RtDetrFamily(ImageFamily):
    name = 'rtdetr'
    task = 'bbox2d'
    forms = ('full', 'raw')
    reference = RtDetrReference
    untraced = (*ImageFamily.untraced, '.detect')
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(graphs.feeds)

    def build(self, cfg: Any) -> nn.Module:
        model = super().build(cfg)
        if missing := [name for name in PARTS if not hasattr(model, name)]:
            raise ConfigError(
                f'{cfg.filename}: model.type={type(model).__name__}: has no {", ".join(missing)}, which '
                'the graph of RT-DETR needs'
            )
        return model

    def claims(self, cfg: Any) -> Claim:
        is_rtdetr = 'RTDETR' in names_of_class(DETECTORS, cfg.model.get('type'))
        return Claim.DETECTOR if is_rtdetr else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        detector_parts.check_grid_sample('RT-DETR', options)
        if options.height % STRIDE or options.width % STRIDE:
            raise UsageError(
                f'--shape {options.height} {options.width}: expected multiples of {STRIDE} pixels'
            )
        decoder = cfg.model.decoder
        queries = decoder.get('num_queries', 300)
        if type(queries) is not int or queries < 1:
            raise ConfigError(
                f'{cfg.filename}: model.decoder.num_queries={queries!r}, expected a positive number'
            )
        tokens = runtime.count_tokens(options.height, options.width)
        detector_parts.check_tokens(tokens, options, 'num_queries', queries)
        pairs = queries * decoder.num_classes
        with refused_by_name(cfg):
            test_cfg = cfg.model.get('test_cfg') or {}
            max_per_img = positive('max_per_img', test_cfg.get('max_per_img', MAX_PER_IMG))
        if max_per_img > pairs:
            raise ConfigError(
                f'{cfg.filename}: model.test_cfg.max_per_img={max_per_img}, more than {pairs} pairs of query '
                f'and class'
            )

    def facts(self, model: nn.Module) -> RtDetrFacts:
        return RtDetrFacts(
            max_per_img=model.postprocess.max_per_img,
            num_queries=int(model.decoder.num_queries),
            num_classes=int(model.decoder.num_classes),
            position_layout=model.encoder.position.layout,
        )

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        rule = super().preprocess_rule(cfg)
        # boxes would be relative to the padding, too
        if rule.keep_ratio or rule.pad_size or rule.size_divisor > 1:
            raise ConfigError(
                f'{cfg.filename}: the test pipeline keeps the aspect ratio or pads; RT-DETR needs '
                'Resize(keep_ratio=False) and no Pad'
            )
        return rule

    def num_classes(self, model: nn.Module) -> int:
        return int(model.decoder.num_classes)
