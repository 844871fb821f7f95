"""Heads of two-stage detectors that give some extreme boxes, see `ImageFamily.exaggerated`."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.families.parts import proposals, regions
from mmdeploy_ext.families.parts.exaggerated import QUADRANT, changed_outputs, exaggerated_cells
from mmdeploy_ext.families.parts.regions import has_masks, part_of, roi_head_of, stages_of
from mmdeploy_ext.families.two_stage import graphs

BUCKETS = 8.0
"""By how many of its 14 buckets the left and the right side of a box are moved inwards: more than half."""


def changed_proposals(head: nn.Module) -> Callable[[Any], Any]:
    """Return a function that changes the outputs of a head of proposals: the deltas in some cells.

    It takes the outputs and returns those in their place, see `changed_outputs`.
    """
    coder = proposals.facts_of(head)['coder']

    def change(outputs: Any) -> Any:
        scores, deltas, *rest = outputs
        return scores, [exaggerated_cells(level, coder) for level in deltas], *rest

    return change


def changed_regions(head: nn.Module) -> Callable[[Any], Any]:
    """Return a function that changes outputs of a head of boxes: deltas of some along x, of others along y.

    Place and width of a box change, or place and height. If each class has its own box, every third class
    changes along x and every third one along y. If all classes share one, the signs of its deltas choose,
    since regions may have another order in the graph.
    """
    box = torch.tensor(QUADRANT) / torch.tensor(head.bbox_coder.stds)

    def change(outputs: Any) -> Any:
        scores, deltas, *shared = outputs  # SCNet gives the features of its regions besides
        columns = torch.arange(deltas.shape[1], device=deltas.device)
        label, delta = torch.div(columns, 4, rounding_mode='floor') % 3, columns % 4
        if head.reg_class_agnostic:
            right, lower = deltas[:, :1] > 0, deltas[:, 1:2] > 0
            wide, high = right & lower, right & ~lower
        else:
            wide, high = label == 1, label == 2
        changed = (wide & (delta % 2 == 0) | high & (delta % 2 == 1)).expand_as(deltas)
        return scores, torch.where(changed, box.to(deltas).repeat(deltas.shape[1] // 4), deltas), *shared

    return change


def changed_buckets(outputs: Any) -> Any:
    """Return outputs of SABL's head of boxes in which some regions end before they begin, left to right.

    It takes the outputs of the head. The offset of each bucket is that to the left or above, in buckets; the
    sign of the first one chooses the regions.
    """
    scores, (classes, offsets) = outputs
    sides = offsets.unflatten(1, (4, -1))  # left, right, top, bottom
    shifts = torch.tensor([-BUCKETS, BUCKETS, 0.0, 0.0]).to(offsets)[:, None]
    return scores, (classes, torch.where(sides[:, :1, :1] > 0, sides + shifts, sides).flatten(1))


@contextlib.contextmanager
def exaggerated(model: nn.Module) -> Iterator[None]:
    """Inside the block heads of proposals and of regions give some extreme boxes.

    Outputs of layers are changed, for the reference and for a graph that is exported inside. Heads of
    regions that give neither deltas nor buckets stay as they are, and so does the head of proposals of a
    Cascade RPN. Of a cascade of regions whose classes share one box only the last stage changes: later stages
    would pool the boxes of earlier ones. If masks are pasted into boxes that the last head does not clip, no
    head does: mmdet cannot paste masks outside of the image.
    """
    roi_head = roi_head_of(model)
    count = 0 if roi_head is None else stages_of(roi_head)
    if has_masks(model) and not graphs.clips_results(roi_head):
        yield
        return
    with contextlib.ExitStack() as stack:
        if graphs.proposes(model):
            stack.enter_context(exaggerated_proposals(model))
        for stage in range(count):
            head = part_of(roi_head, 'bbox_head', stage)
            coder = regions.coder_of(head)['type'] if getattr(head, 'with_reg', True) else ''
            if coder == 'bucket' and stage + 1 == count:
                stack.enter_context(changed_outputs(head, changed_buckets))
            elif coder == 'delta' and (stage + 1 == count or not getattr(head, 'reg_class_agnostic', True)):
                stack.enter_context(changed_outputs(head, changed_regions(head)))
        yield


def exaggerated_proposals(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Return a context in which the head of proposals gives some extreme boxes; a Cascade RPN stays as it is.

    Its test path, and the graph, run its stages by themselves, where no hook on the head is called.
    """
    return changed_outputs(model.rpn_head, changed_proposals(model.rpn_head))
