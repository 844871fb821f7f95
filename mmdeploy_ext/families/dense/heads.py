"""Facts of a dense head and of its `get_bboxes`, and its boxes in graphs.

Glossary: B batch, a priors of a cell, A priors of a level, C classes, h, w size of a level's maps.
"""

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Mapping
from types import CodeType

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import users_class
from mmdeploy_ext.exporting.postprocess.suppression import rows_of
from mmdeploy_ext.families.common.dense_heads import (
    OWN,
    base_priors,
    kind_of,
    place_of_method,
)
from mmdeploy_ext.families.common.detector_parts import check_settings
from mmdeploy_ext.runtime.box_coders import Traced, peaks_of
from mmdeploy_ext.runtime.dense_facts import DenseFacts
from mmdeploy_ext.spec.facts import Mismatch, NmsConfig


def thresholds(head: nn.Module) -> NmsConfig:
    kind = kind_of(head)
    check_settings(head.test_cfg, 'model.test_cfg', kind.needed, own_selection(head) or type(head).__name__)
    return kind.thresholds(head.test_cfg)


def facts_of(head: nn.Module) -> DenseFacts:
    """Return the facts of a head; the coder is `Traced` where the user's code decodes or selects boxes."""
    kind, limits = kind_of(head), thresholds(head)
    code = place_of_method(head, kind.own) if kind.own else ''
    own = own_selection(head) or (code if code.startswith('your ') else '')
    try:
        generator, description = kind.generator(head), kind.describe(head)
        coder = Traced(code=own) if own else kind.coder(head)
        if coder is None:
            raise ConfigError(f'model.bbox_head.bbox_coder: {code} is no decoding of {type(head).__name__}')
        facts = DenseFacts(
            **dataclasses.asdict(limits),
            clip_border=kind.clips(head),
            strides=[int(stride[0]) for stride in generator.strides],
            base_anchors=base_priors(generator),
            coder=coder,
            head=dataclasses.replace(description, inverted=isinstance(coder, Traced) or coder.inverts),
            num_classes=int(head.num_classes),
        )
    except Mismatch as error:
        raise ConfigError(f'{type(head).__name__}: {error}') from error
    return dataclasses.replace(facts, nms_pre=-1) if facts.head.is_uncut else facts


def own_selection(head: nn.Module) -> str:
    """Return the place of the user's code that selects boxes or makes priors, or ''."""
    decoding = kind_of(head).own.rpartition('.')[2]
    todo, seen = ['get_bboxes'], {decoding}
    while todo:
        name = todo.pop()
        code = getattr(inspect.unwrap(getattr(type(head), name, None) or str), '__code__', None)
        if code is None or name in seen:
            continue
        seen.add(name)
        if (place := place_of_method(head, name)).startswith('your '):
            return place
        todo += names_in(code)
    generator = users_class(type(getattr(head, 'prior_generator', None)))
    return f'your {generator}' if generator else ''


def names_in(code: CodeType) -> list[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return [*code.co_names, *itertools.chain.from_iterable(map(names_in, inner))]


def check_results(head: nn.Module, form: str) -> None:
    """Refuse a head whose results no graph of ours gives; the form `raw` leaves them to the user's code."""
    if own := own_selection(head):
        if form != 'raw':
            raise ConfigError(f'{own} selects boxes: use --whole traced, --postprocess raw, {OWN}')
        return
    facts = facts_of(head)
    names = [name for name in ('max_per_img', 'nms_pre') if getattr(facts, name) < 0]
    if names and facts.head.choose == 'pairs' and facts.head.suppresses:
        settings = ', '.join(f'model.test_cfg.{name}=-1' for name in names)
        level = ' of each level' if 'nms_pre' in names else ''
        raise ConfigError(
            f'{settings}: {type(head).__name__} drops the last result{level}; expected a positive number'
        )


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
