"""The family of dense heads: which configs it claims, what it refuses, and what the other modules give."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

from mmdet.models.builder import DETECTORS, HEADS
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors.single_stage import SingleStageDetector
from torch import nn

from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.contract.spec import TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.config import refused_by_name
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.exporting.postprocess.suppression import capped
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.dense import graphs, reference, samples
from mmdeploy_ext.families.dense.kinds import (
    FOLLOWED,
    KINDS,
    QUERIES,
    check_library_head,
    described,
    facts_of,
    generator_of,
    kind_of,
    plain,
    replaced_methods,
    thresholds,
)
from mmdeploy_ext.families.dense.runtime import model as runtime
from mmdeploy_ext.families.images import ImageFamily, ResultLimit
from mmdeploy_ext.families.limits import Limit
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.parts.exaggerated import (
    changed_forward,
    exaggerated_cells,
    raised_corners,
    replaced,
)

BOXES = ('bbox_pred', 'bbox_reg', 'shape_pred', 'wh', 'offset')
"""Outputs of heads that say where boxes are, and nothing else."""

LOGITS = ('cls_score', 'centerness', 'objectness', 'iou_pred')
"""Outputs of heads that become scores by a sigmoid, and nothing else."""


class DenseFamily(ImageFamily):
    """mmdet's one-stage detectors whose heads follow `BaseDenseHead`."""

    name = 'dense'
    exports = 'one-stage detectors with a dense bbox_head (mmdeploy_ext/families/dense/README.md)'
    near = (*('ATSS', 'GFL', 'Retina', 'FCOS', 'PAA', 'VFNet', 'Anchor', 'YOLO', 'SSD', 'RTMDet'),)
    task = 'bbox2d'
    forms = ('full', 'decode', 'raw')
    ignored_prefixes = ('teacher_model.',)
    spec, stages = staticmethod(graphs.spec), staticmethod(graphs.stages)
    feeds = staticmethod(samples.feeds)
    reference_tensors = staticmethod(reference.tensors)
    reference_detections = staticmethod(reference.detections)
    candidate_bounds = staticmethod(reference.candidate_bounds)
    followed, replaced = FOLLOWED, staticmethod(replaced_methods)
    interchangeable_zeros = staticmethod(reference.interchangeable_zeros)

    def claims(self, cfg: Any) -> Claim:
        """See `Family.claims`: any dense head; those of no kind are refused by `check`, with the reason."""
        head = HEADS.get(detector_parts.part_cfg(cfg.model, 'bbox_head').get('type') or '')
        detector = DETECTORS.get(cfg.model.get('type') or '')
        if head is None or issubclass(head, QUERIES):
            return Claim.NO
        if detector is not None and not issubclass(detector, SingleStageDetector):
            return Claim.NO  # one that is not registered is named when the model is built
        if any(one.__name__ in KINDS for one in head.__mro__):
            return Claim.HEAD
        return Claim.PART if issubclass(head, BaseDenseHead) else Claim.NO

    def check(self, cfg: Any, options: Options) -> None:
        """See `ImageFamily.check`: kind, sizes, thresholds, parts."""
        with refused_by_name(cfg):
            head = self.head(cfg)
            check_library_head(head)
            thresholds(head)
            facts = facts_of(head)
            _check_strides(head)
        detector_parts.check(cfg.model, options)
        detector_parts.check_smallest(facts['strides'], options)
        if facts['head']['visible']:
            detector_parts.check_one_image(head, options)
        if options.max_candidates:
            _check_candidates(head, facts, options)

    def head(self, cfg: Any) -> nn.Module:
        """Return the head of a config without the rest of the detector; ConfigError: it cannot be built."""
        return detector_parts.tested_head(cfg, 'bbox_head', detector_parts.test_cfg_of(cfg))

    def build(self, cfg: Any) -> nn.Module:
        """See `Family.build`: of a detector that is taught, the student."""
        if (student := detector_parts.without_teacher(cfg.model)) is not cfg.model:
            cfg = copy.deepcopy(cfg)  # a shallow copy shares its content
            cfg.model = student
        return super().build(cfg)

    def takes(self, model: nn.Module, options: Options, height: int, width: int) -> bool:
        """See `ImageFamily.takes`: smaller than a stride, too, but where maps shrink by more than strides."""
        if graphs.described(model).maps_by_stride:
            return super().takes(model, options, height, width)
        return min(height, width) >= max(int(stride[0]) for stride in generator_of(model.bbox_head).strides)

    def result_limit(self, model: nn.Module) -> ResultLimit:
        return ResultLimit(model.bbox_head.test_cfg, kind_of(model.bbox_head).limit)

    def limits(self, model: nn.Module) -> list[Limit]:
        """Return the limits that the head reads; of peaks nothing but their number is limited."""
        kind, limits = kind_of(model.bbox_head), super().limits(model)
        if kind.limit == 'topk':
            return [limit for limit in limits if limit.key == kind.limit]
        return [limit for limit in limits if limit.key not in kind.fixed]

    def trial(self, model: nn.Module, options: Options) -> tuple[list[Stage], tuple[TensorSpec, ...]]:
        """See `ImageFamily.trial`: none of the layers is used, so that none is folded."""
        return graphs.stages(model, options, fold=False)[1:], graphs.spec(model, options).outputs

    @contextlib.contextmanager
    def exaggerated(self, model: nn.Module) -> Iterator[None]:
        head, facts = model.bbox_head, described(model.bbox_head)
        names, levels = facts.names, len(generator_of(head).strides)
        coder, scored = kind_of(head).coder(head), facts.activation == 'sigmoid'

        def change(outputs: Any) -> Any:
            flat = kind_of(head).flat(outputs)
            kinds = [name for name in names for _ in range(levels)]
            changes = {}
            for name, maps in zip(kinds, flat, strict=True):
                if name in BOXES:
                    changes[id(maps)] = exaggerated_cells(maps, coder)
                elif name in LOGITS and scored:
                    changes[id(maps)] = raised_corners(maps)
            return replaced(outputs, changes)

        with changed_forward(head, change):
            yield

    def finds_always(self, model: nn.Module) -> bool:
        """See `ImageFamily.finds_always`: the best peaks have no threshold."""
        return kind_of(model.bbox_head).limit == 'topk'

    def postprocess_facts(self, model: nn.Module) -> dict[str, Any]:
        """See `Family.postprocess_facts`: what `families/dense/runtime/model.py` reads."""
        head = dict(head=plain(graphs.described(model).to_json()))
        return dict(thresholds(model.bbox_head).to_json(), **facts_of(model.bbox_head) | head)

    def results_left_out(self, options: Mapping[str, Any]) -> str:
        if options.get('score_form') != 'product':
            return ''
        return (
            'score_form=product keeps no class scores, so detections are not compared: a threshold on the '
            'product is not the one that get_bboxes applies'
        )


def _check_strides(head: nn.Module) -> None:
    """Refuse strides that differ in x and y."""
    strides = generator_of(head).strides
    if any(len(set(stride)) > 1 for stride in strides):
        raise ConfigError(
            f'model.bbox_head.anchor_generator.strides={strides}; dense heads export with '
            f'strides that are equal in x and y'
        )


def _check_candidates(head: nn.Module, facts: Mapping[str, Any], options: Options) -> None:
    """Refuse a number of candidates that the form or the size does not have."""
    given = f'--max-candidates {options.max_candidates}'
    if options.dynamic:
        raise UsageError(f'{given}: its shapes are constant; export it without --dynamic-export')
    there = candidates_there(head, facts, options)
    if facts['head']['maps_by_stride'] and options.max_candidates > there:
        raise UsageError(
            f'{given}: the model has only {there} candidates at {options.height} x {options.width}'
        )


def candidates_there(head: nn.Module, facts: Mapping[str, Any], options: Options) -> int:
    """Return how many candidates a head can have at the size of an export."""
    classes, most = facts['num_classes'], thresholds(head).nms_pre
    priors = [
        height * width * len(base)
        for (height, width), base in zip(
            runtime.level_shapes(options.height, options.width, facts['strides']),
            facts['base_anchors'],
            strict=True,
        )
    ]
    count = dict(
        pairs=lambda size: capped(size * classes, most),
        priors=lambda size: capped(size, most) * classes,
        best=lambda size: size,
        all=lambda size: size * classes,
    )[facts['head']['choose']]
    return sum(map(count, priors))
