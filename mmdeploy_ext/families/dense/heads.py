"""Facts of a dense head and of its `get_bboxes`, and its boxes in graphs.

Glossary: B batch, a priors of a cell, A priors of a level, C classes, h, w size of a level's maps.
"""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.errors import CodeError, ConfigError
from mmdeploy_ext.base.source_code import users_class
from mmdeploy_ext.base.user_modules import users_line
from mmdeploy_ext.exporting.postprocess.suppression import rows_of
from mmdeploy_ext.families.common import image_graphs
from mmdeploy_ext.families.common.dense_heads import (
    OWN,
    base_priors,
    kind_of,
    place_of_method,
    place_of_results,
)
from mmdeploy_ext.families.common.detector_parts import check_settings
from mmdeploy_ext.families.common.runtime.dense import decode_raw
from mmdeploy_ext.families.common.tried_selection import first_equal, trials, variants
from mmdeploy_ext.families.dense import runtime
from mmdeploy_ext.runtime.box_coders import Traced, peaks_of
from mmdeploy_ext.runtime.dense_facts import DenseFacts
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.facts import Mismatch
from mmdeploy_ext.spec.nms import NmsConfig

LIMITS = (('max_per_img',), ('nms_pre',), ('max_per_img', 'nms_pre'))
KEPT = 'mm2onnx_selection'


@dataclasses.dataclass(frozen=True)
class Selection:
    """Facts of a head, found by trying, and the reason why it does not export, or ''.

    A head and its copies keep it by class in the attribute `KEPT`; it holds for `test_cfg`, whatever the
    weights.
    """

    test_cfg: Any
    facts: DenseFacts
    problem: str


def thresholds(head: nn.Module) -> NmsConfig:
    kind, place = kind_of(head), place_of_results(head)
    reader = place if place.startswith('your ') else type(head).__name__
    check_settings(head.test_cfg, 'model.test_cfg', kind.needed, reader)
    return kind.thresholds(head.test_cfg)


def facts_of(head: nn.Module) -> DenseFacts:
    return _selection_of(head).facts


def _selection_of(head: nn.Module) -> Selection:
    kept = vars(head).setdefault(KEPT, {})
    selection = kept.get(type(head))
    if selection is None or selection.test_cfg != head.test_cfg:
        facts, problem = _tried_facts(head, _facts_of_kind(head))
        if facts.head.is_uncut:
            facts = dataclasses.replace(facts, nms_pre=-1)
        selection = kept[type(head)] = Selection(copy.deepcopy(head.test_cfg), facts, problem)
    return selection


def _facts_of_kind(head: nn.Module) -> DenseFacts:
    kind, limits = kind_of(head), thresholds(head)
    try:
        generator, coder, description = kind.generator(head), kind.coder(head), kind.describe(head)
        return DenseFacts(
            **dataclasses.asdict(limits),
            clip_border=kind.clips(head),
            strides=[int(stride[0]) for stride in generator.strides],
            base_anchors=base_priors(generator),
            coder=coder or Traced(code=place_of_method(head, kind.own)),
            head=dataclasses.replace(description, inverted=coder is None or coder.inverts),
            num_classes=int(head.num_classes),
        )
    except Mismatch as error:
        raise ConfigError(f'{type(head).__name__}: {error}') from error


def problem_of(head: nn.Module) -> str:
    return _selection_of(head).problem


def check_results(head: nn.Module, form: str) -> None:
    problem = problem_of(head)
    if problem and (form != 'raw' or not isinstance(facts_of(head).coder, Traced)):
        kind = ConfigError if problem.startswith('model.test_cfg') else CodeError
        raise kind(problem)


def _tried_facts(head: nn.Module, facts: DenseFacts) -> tuple[DenseFacts, str]:
    kind, place = kind_of(head), place_of_results(head)
    code = place_of_method(head, kind.own) if kind.own else ''
    traced = f', also with {code} traced' if code.startswith('your ') else ''
    generator = users_class(type(getattr(head, 'prior_generator', None)))
    priors = f', on priors of your {generator}' if generator else ''
    problem = (
        f'{place} selects boxes in a way that mm2onnx does not know{traced}{priors}: use --postprocess '
        f'raw, {OWN}'
    )
    decodings = [facts]
    if kind.own and not isinstance(facts.coder, Traced):
        described = dataclasses.replace(facts.head, inverted=True)
        decodings.append(dataclasses.replace(facts, coder=Traced(code=code), head=described))
    try:
        for names in ((), *LIMITS):
            if any(getattr(facts, name) >= 0 for name in names):
                continue
            candidates = itertools.chain.from_iterable(map(variants, decodings))
            tried = trials(head, kind, facts, lifted=names)
            if found := first_equal(candidates, tried, functools.partial(_results, head)):
                return found, _left_out(head, names)
    except Exception as error:
        raised = f'{type(error).__name__}: {error}{users_line(error)}'
        problem = f'{place} raises on generated outputs: {raised}; use --postprocess raw, {OWN}'
    return dataclasses.replace(facts, coder=Traced(code=place)), problem


def _left_out(head: nn.Module, names: tuple[str, ...]) -> str:
    settings = ', '.join(f'model.test_cfg.{name}=-1' for name in names)
    level = ' of each level' if 'nms_pre' in names else ''
    expected = f'{type(head).__name__} drops the last result{level}; expected a positive number'
    return f'{settings}: {expected}' if names else ''


def _results(
    head: nn.Module, facts: DenseFacts, maps: Mapping[str, torch.Tensor], image: PreparedImage
) -> Detections:
    feeds = image_graphs.feeds([image], rescale=True)
    facts = dataclasses.replace(facts, head=dataclasses.replace(facts.head, maps_by_stride=False))
    if isinstance(facts.coder, Traced):
        outputs = decoded_outputs(head, facts, maps)
    else:
        arrays = {name: tensor.numpy() for name, tensor in maps.items()}
        outputs = decode_raw(arrays, *feeds['input'].shape[2:], facts)
    return runtime.decoded_detections(facts, outputs, feeds)[0]


def decoded_outputs(
    head: nn.Module, facts: DenseFacts, maps: Mapping[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    like = next(head.parameters())
    with torch.no_grad():
        boxes, scores, factors = Decode(head, facts)(*(tensor.to(like) for tensor in maps.values()))
    outputs = dict(boxes=boxes, scores=scores)
    if facts.head.factor:
        outputs[facts.head.factor] = factors
    arrays = {name: torch.cat(levels, 1).cpu().numpy() for name, levels in outputs.items()}
    return dict(arrays, level_sizes=np.asarray([level.shape[1] for level in boxes]))


class Decode(nn.Module):
    """Priors, box decoding and scores for all levels; a `Traced` coder runs the user's own code."""

    def __init__(self, head: nn.Module, facts: DenseFacts) -> None:
        super().__init__()
        self.priors, self.facts = kind_of(head).generator(head), facts
        self.own = functools.partial(kind_of(head).decode, head)

    def forward(
        self, *raw: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor | None]]:
        """Return per level boxes (B, A, 4), class scores (B, A, C) and score factors (B, A) or None.

        Boxes are xyxy in pixels, not clipped. `raw` are maps (B, a*columns, h, w), by output, then by level.
        """
        head, coder = self.facts.head, self.facts.coder
        count = len(raw) // len(head.outputs)
        levels, boxes = [], []
        for level in range(count):
            maps = raw[level::count]
            if head.peaks:  # scores outside of peaks become zero
                maps = [
                    peaks_of(torch, tensor, head.peaks) if name == head.scores else tensor
                    for name, tensor in zip(head.names, maps, strict=True)
                ]
            outputs = zip(head.outputs, maps, strict=True)
            levels.append({name: rows_of(tensor, columns) for (name, columns), tensor in outputs})
        for level, rows in enumerate(levels):
            like = raw[level::count][1 if len(head.outputs) > 1 else 0]
            priors = self.priors.single_level_grid_priors(
                like.shape[-2:], level, dtype=like.dtype, device=like.device
            )
            if isinstance(coder, Traced):
                boxes.append(self._own_boxes(level, rows, priors))
            else:
                boxes.append(coder.boxes(torch, priors, rows, level))
        scores = [head.class_scores(torch, rows) for rows in levels]
        return boxes, scores, [head.score_factors(torch, rows, coder) for rows in levels]

    def _own_boxes(self, level: int, rows: Mapping[str, torch.Tensor], priors: torch.Tensor) -> torch.Tensor:
        batch = rows[self.facts.head.scores].shape[0]
        of_all = {name: tensor.flatten(0, 1) for name, tensor in rows.items()}
        priors = priors[None].expand(batch, -1, -1).flatten(0, 1)
        return self.own(level, of_all, priors).reshape(batch, -1, 4)
