"""SOLO, Decoupled SOLO and SOLOv2 as mmdet runs them, unpatched: the reference of proofs.

Source of the algorithm: mmdet 2.28.2 `models/dense_heads/{solo_head,solov2_head}.py` and
`core/post_processing/matrix_nms.py`.

Glossary: B batch, C classes, g grid of a level.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.families.parts.mmdet_reference import instances_of_classes, metas_of, tested
from mmdeploy_ext.families.solo.graphs import RAW_NAMES, fork_is_flat, fork_names, kind
from mmdeploy_ext.families.solo.networks import flat_cells, points_nms
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Instances, count_bounds

TIE = 1e-4
"""Scores of neighbouring cells whose ratio is this close to 1 are a tie: an engine's rounding decides.

It is the bar of raw tensors. Rounding changes low scores of full-size heads with seeded weights by up to
3.7e-4 of themselves (`tests/matrix/test_solo_matrix.py`), and a pair 1.3e-5 apart did change places.
"""
PIXEL_TIES = (1e-6, -1e-6, 1e-5, -1e-5)
"""How far the threshold of soft masks is moved: values that close to it may be on either side.

Engines' soft masks differ by some 1e-6. Measured: one pixel of SOLOv2 light with DCN changes two of 1400
scores by 1.4e-3, pixels of SOLOv2 R101 one mask of 1400 to IoU 0.9948; PyTorch's own results change in the
same places, the first with 1e-5 and not with 1e-6 (`tests/matrix/test_solo_matrix.py`).
"""
FEW_TIES = 4
FEW_TIES_SHARE = 0.01
"""Ties at scores above the threshold that are excused in one input: four, or 1 % of the scores that pass.

Of 310,000 seeded scores, some 2000 of them above the threshold, 1 to 3 are one side of a tie (SOLO R50, two
neighbours at 0.15271, 4.7e-7 apart). Many are no rounding: maps of a constant picture, or a model that died.
"""
SIGMOID_TIE = 3e-7
"""Scores that are this close are a tie, too: ONNX Runtime's sigmoid moves each of them by up to 1.5e-7.

Measured against float64 on the CPU (1.31.1): its steps are 3e-8 at every score, so that it is off by 3e-4 of
a score of 5e-4 and by 2.5e-3 of one of 6e-5. A pair 6.4e-9 apart at 5.6e-5 did change places.
"""


def tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, layout: str = 'batched', **_: Any
) -> dict[str, np.ndarray]:
    """Return the outputs of the form `raw` by name, of mmdet's own head, with points NMS of SOLOv2's scores.

    `feeds` hold `input`; `layout` is the option of the file, 'batched' or 'fork'; `form` and other
    options are not used.
    """
    head = model.mask_head
    with torch.no_grad():
        image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
        scores, *rest = _by_mmdet(head, model.extract_feat(image))
    named = arrange(head, scores, rest, layout)
    return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Instances]:
    """Return the results of the detector's own test path, at the original size whatever `rescale` is."""
    instances = []
    for result, image in zip(tested(model, images, metas_of(images), rescale), images, strict=True):
        of_image = instances_of_classes(*result, tuple(image.ori_shape))
        instances.append(Instances(of_image.masks.astype(bool), of_image.scores, of_image.labels))
    return instances


def interchangeable_zeros(
    model: nn.Module, feeds: Mapping[str, np.ndarray], layout: str = 'batched', **_: Any
) -> dict[str, np.ndarray]:
    """Return scores of cells in whose points NMS there is a tie; see `ImageFamily.interchangeable_zeros`.

    They are those before it, all others NaN. PyTorch and an engine may give such a cell its score or zero.
    Below the threshold no result depends on it; above it few ties are excused, see `FEW_TIES`, and the
    results are judged with `rounded_choices`.
    """
    head, ties, passing = model.mask_head, 0, 0
    logits: list[torch.Tensor] = []
    with torch.no_grad():
        image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
        with head.conv_cls.register_forward_hook(lambda *call: logits.append(call[2])):
            _by_mmdet(head, model.extract_feat(image))
        before = [level.sigmoid() for level in logits]  # per level (B, C, g, g), before points NMS
        levels = [torch.where(_tied(scores), scores, torch.full_like(scores, torch.nan)) for scores in before]
    over = [scores >= head.test_cfg.score_thr for scores in before]
    for scores, over_threshold in zip(before, over, strict=True):
        ties += int((over_threshold & _tied(scores)).sum())
        passing += int((over_threshold & (scores >= _rivals(scores))).sum())
    if ties > max(FEW_TIES, FEW_TIES_SHARE * passing):
        levels = [level.masked_fill(mask, torch.nan) for level, mask in zip(levels, over, strict=True)]
    if layout == 'fork' and fork_is_flat(head):
        of_images = flat_cells(levels).unbind(0)
        named = dict(zip(fork_names(head, len(of_images))[: len(of_images)], of_images, strict=True))
    elif layout == 'fork':
        named = {f'cate_pred_{index}': level.permute(0, 2, 3, 1) for index, level in enumerate(levels)}
    else:
        named = dict(cate_pred=flat_cells(levels))
    return {name: tensor.cpu().numpy() for name, tensor in named.items()}


def rounded_choices(model: nn.Module) -> Iterator[contextlib.AbstractContextManager[None]]:
    """Yield contexts in which ties are decided otherwise; see `ImageFamily.rounded_choices`.

    Points NMS with ties kept and with ties dropped; and the threshold of soft masks moved by
    rounding: a pixel more or less changes a small mask's IoU with another, and with it the decay of matrix
    NMS.
    """
    head = model.mask_head
    for keep in (True, False):
        yield _ties_decided(head, keep)
    for move in PIXEL_TIES:
        yield replaced_entry(head.test_cfg, 'mask_thr', head.test_cfg.mask_thr + move)


def candidate_bounds(
    model: nn.Module, feeds: Mapping[str, np.ndarray], slack: float, **_: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return 'candidates' -> bounds of how many (cell, class) pairs pass the threshold after points NMS.

    These are the least and the largest number, (B,) each; a score that differs from the threshold by no more
    than `slack` may pass or not. For the arguments see `ImageFamily.candidate_bounds`.
    """
    scores = tensors(model, feeds, 'raw')['cate_pred']
    return dict(candidates=count_bounds(scores, float(model.mask_head.test_cfg.score_thr), slack))


def arrange(
    head: nn.Module, scores: Sequence[torch.Tensor], rest: Sequence[Any], layout: str
) -> dict[str, torch.Tensor]:
    """Name the outputs of mmdet's head as a `raw` graph has them, in the layout 'batched' or 'fork'.

    `scores` are per level (B, C, g, g) after points NMS; `rest` are the other outputs: lists of masks or
    kernels per level, and of SOLOv2 then the mask features, one tensor.
    """
    if layout == 'fork':
        last = [level.permute(0, 2, 3, 1) for level in scores]
        if fork_is_flat(head):
            outputs = [*flat_cells(scores).unbind(0), *flat_cells(rest[0]).unbind(0), rest[1]]
        elif kind(head) == 'SOLOV2Head':
            outputs = [*last, *rest[0], rest[1]]
        else:
            outputs = [*(level for levels in rest for level in levels), *last]
        return dict(zip(fork_names(head, len(scores[0])), outputs, strict=True))
    if kind(head) == 'SOLOV2Head':
        flat = [flat_cells(rest[0]), rest[1]]
    else:
        flat = [torch.cat(list(levels), dim=1) for levels in rest]
    return dict(zip(RAW_NAMES[kind(head)], [flat_cells(scores), *flat], strict=True))


def _by_mmdet(head: nn.Module, pyramid: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """Return mmdet's head outputs with the scores first: scores, then masks, kernels, features."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        outputs = head(pyramid)
    if kind(head) == 'SOLOV2Head':
        kernels, logits, features = outputs
        return [points_nms(level) for level in logits], kernels, features
    return outputs[-1], *outputs[:-1]


def _rivals(cells: torch.Tensor) -> torch.Tensor:
    """Return (B, C, g, g): the largest neighbour above, left or above left; -inf in the first corner."""
    padded = torch.nn.functional.pad(cells, (1, 0, 1, 0), value=-torch.inf)
    above, left, corner = padded[:, :, :-1, 1:], padded[:, :, 1:, :-1], padded[:, :, :-1, :-1]
    return torch.maximum(torch.maximum(above, left), corner)


def _tied(scores: torch.Tensor) -> torch.Tensor:
    """Return (B, C, g, g) bool: scores that equal their rival to rounding."""
    return (scores - _rivals(scores)).abs() <= TIE * scores + SIGMOID_TIE


@contextlib.contextmanager
def _ties_decided(head: nn.Module, keep: bool) -> Iterator[None]:
    """Inside the block logits of ties equal their rival, which keeps them, or fall just below it.

    Of a chain of ties, in which a rival is a tie itself, the second one is kept and the third may not be.
    """

    def decide(module: nn.Module, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        rivals = _rivals(logits)
        moved = torch.maximum(logits, rivals) if keep else rivals - TIE * rivals.abs().clamp(min=1)
        return torch.where(_tied(logits.sigmoid()), moved, logits)

    with head.conv_cls.register_forward_hook(decide):
        yield
