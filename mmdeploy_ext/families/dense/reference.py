"""Dense heads as mmdet runs them, unpatched: what a proof compares the graphs with.

Glossary: B batch, N priors of all levels, C classes without the background, H, W network input in pixels.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.families.dense.graphs import flat_outputs, model_facts, raw_names
from mmdeploy_ext.families.dense.heads import decoded_outputs
from mmdeploy_ext.families.dense.runtime import DecodedPriors, num_candidates
from mmdeploy_ext.families.parts.dense_heads import kind_of
from mmdeploy_ext.families.parts.mmdet_reference import box_detections, given_to, metas_of
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.box_coders import Traced
from mmdeploy_ext.runtime.detections import Detections


def tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, score_form: str = 'separate', **_: Any
) -> dict[str, np.ndarray]:
    """Return the outputs by name of the form 'raw' or 'decode', by the user's head and its coder."""
    with torch.no_grad():
        image = torch.from_numpy(feeds['input']).to(next(model.parameters()).device)
        outputs = dict(zip(raw_names(model), flat_outputs(model, image), strict=True))
    if form == 'raw':
        return {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
    return decoded(model, outputs, score_form)


def decoded(
    model: nn.Module,
    raw: Mapping[str, torch.Tensor],
    score_form: str = 'separate',
    sizes: bool = False,
    **_: Any,
) -> dict[str, np.ndarray]:
    """Return the outputs of the form 'decode' of the maps of a head, see `tensors`.

    `sizes` keeps `level_sizes`, which files have if the sizes of maps do not follow from the strides.
    """
    facts, kind = model_facts(model), kind_of(model.bbox_head)
    own = facts
    if kind.own and not kind.own_clips:
        own = dataclasses.replace(facts, coder=Traced(code=kind.own))
    outputs = decoded_outputs(model.bbox_head, own, raw)
    factor = facts.head.factor
    if score_form == 'product' and factor:
        outputs['scores'] = outputs['scores'] * outputs.pop(factor)[..., None]
    if facts.head.maps_by_stride and not sizes:
        del outputs['level_sizes']
    return outputs


def own_results(
    model: nn.Module, outputs: Mapping[str, np.ndarray], images: Sequence[PreparedImage], rescale: bool
) -> list[Detections]:
    """Return the results of the head's own `get_bboxes` of the maps of a file."""
    head = model.bbox_head
    given = kind_of(head).unflatten(head, list(raw_maps(model, outputs).values()))
    with torch.no_grad():
        results = head.get_bboxes(*given, img_metas=metas_of(images), rescale=rescale)
    arrays = [(boxes.cpu().numpy(), labels.cpu().numpy()) for boxes, labels in results]
    return [Detections(boxes[:, :4], boxes[:, 4], labels) for boxes, labels in arrays]


def detections(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
    """Return the results of the detector's own test path, with `deploy_nms_pre`, if set, as `nms_pre`.

    There is one for each of the images; with `rescale` boxes are in pixels of the originals, else of the
    network input. Heads that are `bordered` subtract the padding above and left of the image in either case,
    so that their coordinates begin at its corner, not at that of the input.

    Rows that are no results are left out: boxes without an area if boxes vote, for which upstream divides
    zero by zero, and those of score 0, by which upstream fills up a list of peaks. The images are of one
    size.
    """
    test_cfg, description = model.bbox_head.test_cfg, model_facts(model).head
    deployed = contextlib.nullcontext()
    if (nms_pre := test_cfg.get('deploy_nms_pre')) is not None:
        deployed = replaced_entry(test_cfg, 'nms_pre', nms_pre if nms_pre > 0 else sys.maxsize)
    with deployed:
        image_detections = box_detections(model, images, rescale)
    if description.votes:
        return [
            of_image[~(np.isnan(of_image.bboxes_xyxy).any(1) | np.isnan(of_image.scores))]
            for of_image in image_detections
        ]
    if description.peaks:
        return [of_image[of_image.scores > 0] for of_image in image_detections]
    return image_detections


def candidate_bounds(
    model: nn.Module, feeds: Mapping[str, np.ndarray], slack: float, **_: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return 'candidates' -> least and largest number (B,) of (prior, class) pairs that pass the threshold.

    A score that differs from its threshold by no more than `slack`, or an objectness (YOLOv3) from its
    own, may pass or not. The best `nms_pre` priors are those of this run, also where ranks differ by
    rounding. `feeds` hold `input` as for `tensors`; limits of the file are not used.
    """
    facts, outputs = (
        model_facts(model),
        decoded(model, raw_maps(model, tensors(model, feeds, 'raw')), sizes=True),
    )
    arrays = outputs['boxes'], outputs['scores'], outputs.get(facts.head.factor)
    bounds = []
    for step in (slack, -slack):
        conf_thr = facts.head.conf_thr and facts.head.conf_thr + step
        head = dataclasses.replace(facts.head, conf_thr=conf_thr)
        moved = dataclasses.replace(facts, head=head, score_thr=facts.score_thr + step)
        counts = [
            num_candidates(DecodedPriors(*arrays)[image], outputs['level_sizes'], moved)
            for image in range(len(arrays[0]))
        ]
        bounds.append(np.asarray(counts))
    return dict(candidates=tuple(bounds))


def substitutes(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what the head's `forward` returns by the maps of a file; nothing else reads the features."""
    maps = raw_maps(model, tensors)
    if not maps:
        return {}
    outputs = kind_of(model.bbox_head).unflatten(model.bbox_head, list(maps.values()))
    return {'extract_feat': None, 'bbox_head.forward': outputs}


def counts(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return the most candidates of a level that `nms_pre` limits, see `ImageFamily.counts`."""
    facts, maps = model_facts(model), raw_maps(model, tensors)
    if not maps or facts.nms_pre <= 0 or facts.head.choose == 'best':
        return {}
    outputs = decoded(model, maps, sizes=True)
    if facts.head.choose != 'pairs':  # priors, whatever their scores
        return dict(nms_pre=int(max(outputs['level_sizes'])))
    unlimited = dataclasses.replace(facts, nms_pre=0)
    batch = DecodedPriors(outputs['boxes'], outputs['scores'], outputs.get(facts.head.factor))
    ends, found = np.cumsum(outputs['level_sizes']), 0
    for end, size in zip(ends, outputs['level_sizes'], strict=True):
        for image in range(len(outputs['boxes'])):
            level = batch[image][end - size : end]
            found = max(found, num_candidates(level, [size], unlimited))
    return dict(nms_pre=found)


def expected_tensors(
    model: nn.Module,
    feeds: Mapping[str, np.ndarray],
    tensors: Mapping[str, np.ndarray],
    form: str,
    **options: Any,
) -> dict[str, np.ndarray] | None:
    """Return the tensors of the form `decode` of the maps of the file."""
    maps = raw_maps(model, tensors)
    if form != 'decode' or not maps:
        return None
    return decoded(model, maps, **options)


def raw_maps(model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the maps of a head among the tensors of a file by name, in the order of `raw_names`; or {}."""
    return given_to(model, tensors, raw_names(model))
