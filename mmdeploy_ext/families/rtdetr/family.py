"""RT-DETR: supported configs, facts of files."""

from typing import Any

from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.base.config import refused_by_name
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.postprocess.suppression import positive
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common import detector_parts
from mmdeploy_ext.families.images import ImageFamily
from mmdeploy_ext.families.rtdetr import graphs, runtime
from mmdeploy_ext.families.rtdetr.facts import RtDetrFacts
from mmdeploy_ext.families.rtdetr.reference import RtDetrReference
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import PreprocessRule
from mmdeploy_ext.upstream.models.building import names_of_class
from mmdeploy_ext.upstream.models.rtdetr.detector import MAX_PER_IMG, STRIDE

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
