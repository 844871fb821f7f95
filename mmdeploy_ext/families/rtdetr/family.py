"""RT-DETR's family: configs that it claims or refuses, and the facts that its files hold.

What the attributes and methods of `RtDetrFamily` without a docstring are for is documented where they are
defined first: `families/base.py` and `families/images.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmdet.models.builder import DETECTORS
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.postprocess.suppression import positive
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.building import names_of_class
from mmdeploy_ext.families.images import ImageFamily, ResultLimit
from mmdeploy_ext.families.limits import Kind, Limit
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.parts.image_tensors import PROPOSALS
from mmdeploy_ext.families.parts.mmdet_reference import boxes_of_classes
from mmdeploy_ext.families.rtdetr import graphs, reference, runtime
from mmdeploy_ext.models.rtdetr.decoder import RTDETRDecoder
from mmdeploy_ext.models.rtdetr.detector import MAX_PER_IMG, STRIDE
from mmdeploy_ext.preprocess.pictures import PreparedImage, PreprocessRule
from mmdeploy_ext.runtime.detections import Detections

PARTS = ('backbone', 'encoder', 'decoder', 'postprocess', 'extract_feat')
"""Attributes of a detector that the graph runs."""


class RtDetrFamily(ImageFamily):
    """The `RTDETR` detector of this plugin."""

    name = 'rtdetr'
    exports = 'RTDETR, queries without suppression (mmdeploy_ext/families/rtdetr/README.md)'
    similar_names = ('RTDETR', 'RTDetrV2', 'HybridEncoder')
    task = 'bbox2d'
    forms = ('full', 'raw')
    untraced = (*ImageFamily.untraced, '.detect')
    shares_network = True
    first = PROPOSALS
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(graphs.feeds)
    reference_tensors = staticmethod(reference.tensors)
    reference_detections = staticmethod(reference.detections)
    choose_as = staticmethod(reference.choose_as)

    def build(self, cfg: Any) -> nn.Module:
        """Build the detector; ConfigError: a class of the user's lacks a part that the graph runs."""
        model = super().build(cfg)
        if missing := [name for name in PARTS if not hasattr(model, name)]:
            raise ConfigError(
                f'{cfg.filename}: model.type={type(model).__name__}: has no {", ".join(missing)}, which the '
                f'graph of an RTDETR runs'
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

    def takes(self, model: nn.Module, options: Options, height: int, width: int) -> bool:
        if runtime.count_tokens(height, width) < int(model.decoder.num_queries):
            return False
        return super().takes(model, options, height, width)

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        return dict(
            max_per_img=model.postprocess.max_per_img,
            num_queries=int(model.decoder.num_queries),
            num_classes=int(model.decoder.num_classes),
            orig_target_sizes='width, height',
            position_layout=model.encoder.position.layout,
        )

    def preprocess_rule(self, cfg: Any) -> PreprocessRule:
        rule = super().preprocess_rule(cfg)
        # boxes would be relative to the padding, too
        if rule.keep_ratio or rule.pad_size or rule.size_divisor > 1:
            raise ConfigError(
                f'{cfg.filename}: the test pipeline keeps the ratio or pads; RT-DETR takes whole images: '
                f'Resize(keep_ratio=False) and no Pad'
            )
        return rule

    def num_classes(self, model: nn.Module) -> int:
        return int(model.decoder.num_classes)

    def sizes_choose_levels(self, model: nn.Module) -> bool:
        """Return True: a token starts from a box of the size of its level, near that of its objects."""
        return True

    def finds_always(self, model: nn.Module) -> bool:
        return True  # the best pairs of query and class have no threshold

    def result_limit(self, model: nn.Module) -> ResultLimit:
        pairs = int(model.decoder.num_queries) * int(model.decoder.num_classes)
        return ResultLimit(vars(model.postprocess), available=pairs)

    def limits(self, model: nn.Module) -> list[Limit]:
        """Return the number of queries, which are a list of their own, and the limit of results.

        The former is left out if the user's decoder chooses tokens in another way.
        """
        limits = super().limits(model)
        if type(model.decoder).select is not RTDETRDecoder.select:  # tokens are chosen in another way
            return limits
        queries = Limit(vars(model.decoder), 'num_queries', Kind.ROWS, list=PROPOSALS, of_list_alone=True)
        return [queries, *limits]

    def most_first_rows(self, model: nn.Module, options: Options) -> int:
        return runtime.count_tokens(options.height, options.width)

    def first_list(self, model: nn.Module, images: Sequence[PreparedImage]) -> Sequence[Detections]:
        return reference.chosen_tokens(model, images)

    def first_trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        return graphs.tokens_stage(model, options)

    def first_inputs(self, model: nn.Module, images: Sequence[PreparedImage]) -> dict[str, np.ndarray]:
        """Return the maps of the encoder; see `ImageFamily.first_inputs`."""
        maps = zip(graphs.MAPS, reference.maps_of(model, images), strict=True)
        return {name: tensor.cpu().numpy() for name, tensor in maps}

    def inner_lists(self, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Return `PROPOSALS` -> the tokens of the one image that become queries, a `Detections`.

        In `outputs` they are `PROPOSALS` (1, K, 5): xyxy and score; {} if the graph does not give them.
        """
        return {PROPOSALS: boxes_of_classes(outputs[PROPOSALS])} if PROPOSALS in outputs else {}
