"""Two-stage detectors as mmdet runs them, unpatched.

Glossary: B batch, K proposals, h, w size of a level's maps.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.source_code import is_in_library
from mmdeploy_ext.exporting.postprocess.suppression import nms_arguments
from mmdeploy_ext.exporting.substitution import PerCall, substituted
from mmdeploy_ext.families.common import mmdet_reference
from mmdeploy_ext.families.common.dense_heads import clips
from mmdeploy_ext.families.common.image_graphs import PROPOSALS as PROPOSAL_ROWS
from mmdeploy_ext.families.common.mask_heads import heads_of
from mmdeploy_ext.families.common.mmdet_reference import (
    RegionInputs,
    boxes_of_classes,
    given_to,
    metas_of_images,
    tested,
)
from mmdeploy_ext.families.common.proposals import output_kinds, settings_of, suppression_entries
from mmdeploy_ext.families.common.regions import feature_names, flat, part_of, roi_head_of, stages_of
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.families.two_stage.boxes import is_padding, output_names, padded_rows
from mmdeploy_ext.families.two_stage.file_tensors import (
    SAMPLED_BOXES,
    SAMPLED_MASKS,
    as_tensor,
    given_to_heads,
    mask_rows,
    outputs_of_stage,
    present_rows,
    run_head,
    spread_rows,
)
from mmdeploy_ext.families.two_stage.graphs import proposal_names, proposes
from mmdeploy_ext.families.two_stage.panoptic import SEMANTIC
from mmdeploy_ext.families.two_stage.split_graphs import PROPOSALS, REGIONS
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.panoptic import Segments
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.metadata import Metadata

EDGE = 1e-4
"""Overlaps and sides (pixels) this close to a threshold are a tie."""


class TwoStageReference(ImageReference):
    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Detections]:
        return mmdet_reference.detections(self.model, images, rescale)

    def file_results(
        self,
        metadata: Metadata,
        outputs: Mapping[str, np.ndarray],
        feeds: Mapping[str, np.ndarray],
        images: Sequence[PreparedImage],
        rescale: bool,
    ) -> list[Detections] | None:
        if metadata.form != PROPOSALS:
            return None
        regions = outputs_of_first(self.model, outputs)
        return mmdet_reference.detections(self.model, images, rescale, regions)

    def tensors(
        self,
        feeds: Mapping[str, np.ndarray],
        form: str,
        given: Mapping[str, np.ndarray] = {},
        **_: Any,
    ) -> dict[str, np.ndarray]:
        if form != PROPOSALS:
            later = {name: array for name, array in given.items() if name.startswith('regions_')}
            shape = feeds['proposals'].shape[1], 4
            fits = all(array.ndim == 3 and array.shape[1:] == shape for array in later.values())
            return _region_tensors(self.model, feeds, later if fits else {})
        with torch.no_grad():
            maps = maps_of(self.model, feeds)
            outputs = [tensor for levels in self.model.rpn_head(maps) for tensor in levels]
        features = maps[: len(feature_names(self.model))]
        names = (*feature_names(self.model), *proposal_names(self.model))
        return {name: tensor.cpu().numpy() for name, tensor in zip(names, (*features, *outputs), strict=True)}

    def inner_inputs(self, feeds: Mapping[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
        if form != REGIONS:
            return {}
        with torch.no_grad():
            maps = maps_of(self.model, feeds)
            proposals = self.model.rpn_head.simple_test_rpn(maps, metas_of(feeds))
        features = {
            name: level.cpu().numpy() for name, level in zip(feature_names(self.model), maps, strict=False)
        }
        rows = stacked([boxes[:, :4].cpu().numpy() for boxes in proposals])
        rows = np.pad(rows, ((0, 0), (0, 1), (0, 0)))  # a row of padding, which must not give a result
        return dict(features, proposals=rows, img_shape=sizes_of(feeds).astype(np.float32))

    def candidate_bounds(
        self,
        feeds: Mapping[str, np.ndarray],
        slack: float,
        max_proposals: int = 0,
        max_candidates: int = 0,
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        bounds = {}
        with torch.no_grad():
            maps, metas = maps_of(self.model, feeds), metas_of(feeds)
            if max_proposals:
                bounds['proposal_candidates'] = _needed_proposals(
                    self.model.rpn_head, maps, metas, max_proposals, slack
                )
            if max_candidates:
                roi_head = self.model.roi_head
                proposals = self.model.rpn_head.simple_test_rpn(maps, metas)
                counts = []
                for step in (slack, -slack):
                    score_thr = roi_head.test_cfg.score_thr + step
                    with all_boxes(roi_head, score_thr=score_thr, nms=dict(type='nms', iou_threshold=1.0)):
                        results = roi_head.simple_test(maps, proposals, metas, rescale=True)
                    counts.append(np.asarray([sum(map(len, of_classes)) for of_classes in results]))
                bounds['candidates'] = tuple(counts)
        return bounds

    def borders(self) -> dict[str, Any]:
        def features(calls: list[Any]) -> dict[str, torch.Tensor]:
            # maps of whole images, behind the levels, are not the neck's
            names = [name for name in feature_names(self.model) if name.startswith('features_')]
            return {name: torch.cat(levels) for name, *levels in zip(names, *calls, strict=False)}

        def proposed(calls: list[Any]) -> dict[str, torch.Tensor]:
            flat_calls = [[level for levels in call for level in levels] for call in calls]
            return {
                name: torch.cat(levels)
                for name, *levels in zip(proposal_names(self.model), *flat_calls, strict=False)
            }

        named = {'extract_feat': features}
        if proposes(self.model) and output_kinds(self.model.rpn_head) == ('cls', 'reg'):
            named['rpn_head.forward'] = proposed
        return named

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return given_to_heads(self.model, tensors)

    def unjudged(self) -> str:
        if not proposes(self.model) or output_kinds(self.model.rpn_head) == ('cls', 'reg'):
            return ''
        kind = type(self.model.rpn_head).__name__
        return f'the proposals of {kind} were compared only through their results'

    def counts(self, tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
        prefix = 'rpn.' if roi_head_of(self.model) else ''
        found = {}
        if proposes(self.model) and output_kinds(self.model.rpn_head) == ('cls', 'reg'):
            deltas = [
                tensors[name] for name in proposal_names(self.model) if name in tensors and '_reg_' in name
            ]
            if deltas:
                found[f'{prefix}nms_pre'] = max(level[0].size // 4 for level in deltas)
        if prefix and PROPOSAL_ROWS in tensors and tensors[PROPOSAL_ROWS].shape[2] == 5:
            found[f'{prefix}max_per_img'] = int(present_rows(tensors[PROPOSAL_ROWS]).sum(1).max())
        return found

    def inner_tensors(
        self, tensors: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        given = given_to_heads(self.model, tensors)
        expected: dict[str, np.ndarray] = {}
        actual: dict[str, np.ndarray] = {}
        if 'roi_head._bbox_forward' in given:
            stages, present = stages_of(self.model.roi_head), present_rows(tensors[PROPOSAL_ROWS])
            if stages == 1 and (padding := padded_rows(self.model.roi_head)):
                # whose outputs the user's code, as the file, replaces behind this border
                regions = torch.from_numpy(tensors[PROPOSAL_ROWS][..., :4])
                present &= ~is_padding(regions, padding)[..., 0].numpy()
            rows = spread_rows(present, SAMPLED_BOXES)
            for stage in range(stages if present.any() else 0):
                regions = tensors[f'regions_{stage}'] if stage else tensors[PROPOSAL_ROWS][..., :4]
                result = run_head(self.model, '_bbox_forward', stage, given['extract_feat'], regions, rows)
                outputs = flat((result['cls_score'], result['bbox_pred']))
                for name, output in zip(outputs_of_stage(self.model.roi_head, stage), outputs, strict=True):
                    expected[name], actual[name] = output.numpy(force=True), tensors[name][rows]
        if 'roi_head._mask_forward' in given and (tensors['labels'] >= 0).any():
            rows = spread_rows(tensors['labels'] >= 0, SAMPLED_MASKS)
            for stage, head in enumerate(heads_of(self.model.roi_head)):
                regions, name = tensors['mask_regions'], f'mask_logits_{stage}'
                result = run_head(self.model, '_mask_forward', stage, given['extract_feat'], regions, rows)
                masks = result['mask_pred'].numpy(force=True)
                own_classes = 0 if head.class_agnostic else tensors['labels'][rows]
                expected[name] = masks[np.arange(len(masks)), own_classes]
                actual[name] = mask_rows(tensors, stage)[rows]
        return expected, actual

    def inner_results(
        self, tensors: Mapping[str, np.ndarray], images: Sequence[PreparedImage]
    ) -> list[tuple[Detections, Detections]]:
        rows = tensors.get(PROPOSAL_ROWS)
        if roi_head_of(self.model) is None or rows is None or rows.shape[2] != 5:
            return []
        if not proposes(self.model) or output_kinds(self.model.rpn_head) != ('cls', 'reg'):
            return []
        maps = [*given_to(self.model, tensors, proposal_names(self.model)).values()]
        if not maps:
            return []
        levels = len(maps) // 2
        with torch.no_grad(), substituted(self.model, {'rpn_head.forward': (maps[:levels], maps[levels:])}):
            proposals = self.model.rpn_head.simple_test_rpn(None, metas_of_images(images, rescale=True))
        sides = [
            ([boxes.cpu().numpy()], [of_image[present_rows(of_image)]])
            for boxes, of_image in zip(proposals, rows, strict=True)
        ]
        return [(boxes_of_classes(reference), boxes_of_classes(own)) for reference, own in sides]


def stacked(boxes: Sequence[np.ndarray]) -> np.ndarray:
    """Return boxes of each image as (B, K, 4), K at least 1, padded with zeros."""
    rows = max(1, *map(len, boxes))
    return np.stack([np.pad(of_image, ((0, rows - len(of_image)), (0, 0))) for of_image in boxes])


def _region_tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], later: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    roi_head, recorded_tensors = model.roi_head, {}
    watched = functools.partial(_recording_forward, roi_head._bbox_forward, roi_head, later, recorded_tensors)
    maps, _ = outputs_of_first(model, feeds)
    proposals = [torch.from_numpy(boxes).to(maps[0]) for boxes in feeds['proposals']]
    with torch.no_grad(), all_boxes(roi_head), replaced_entry(vars(roi_head), '_bbox_forward', watched):
        roi_head.simple_test(maps, proposals, metas_of(feeds), rescale=True)
    rows = feeds['proposals'].shape[:2]
    return {
        name: tensor.reshape(*rows, *(tensor.shape[1:] if tensor.dim() == 4 else (-1,))).cpu().numpy()
        for name, tensor in recorded_tensors.items()
    }


def _recording_forward(
    forward: Callable[..., dict[str, Any]],
    roi_head: nn.Module,
    later: Mapping[str, np.ndarray],
    recorded_tensors: dict[str, torch.Tensor],
    *args: Any,
    **kwargs: Any,
) -> dict[str, Any]:
    *stage, maps, rois = args
    stage_index = stage[0] if stage else 0
    if stage_index:
        name = f'regions_{stage_index}'
        recorded_tensors[name] = regions = rois[:, 1:]
        regions = torch.from_numpy(later.get(name, regions.cpu().numpy()))
        rois = torch.cat([rois[:, :1], regions.reshape(-1, 4).to(rois)], dim=1)
    head = part_of(roi_head, 'bbox_head', stage_index)

    def record_features(_: nn.Module, features: Sequence[torch.Tensor]) -> None:
        recorded_tensors[f'region_features_{stage_index}'] = features[0]

    with head.register_forward_pre_hook(record_features):
        result = forward(*stage, maps, rois, **kwargs)
    names = [f'{name}_{stage_index}' for name in output_names(head)]
    outputs = flat((result['cls_score'], result['bbox_pred']))
    recorded_tensors.update(zip(names, outputs, strict=True))
    return result


def outputs_of_first(model: nn.Module, outputs: Mapping[str, np.ndarray]) -> RegionInputs:
    """Return the first graph's features, and each image's proposals with an area, for mmdet."""
    like = next(model.parameters())
    maps = [torch.from_numpy(outputs[name]).to(like) for name in feature_names(model)]
    proposals = [torch.from_numpy(boxes).to(like) for boxes in outputs['proposals']]
    return maps, [boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)] for boxes in proposals]


def _needed_proposals(
    head: nn.Module, maps: Sequence[torch.Tensor], metas: Sequence[dict[str, Any]], cap: int, slack: float
) -> tuple[np.ndarray, np.ndarray]:
    outputs, settings, least = head(maps), settings_of(head), head.test_cfg.get('min_bbox_size', -1)
    iou_threshold, max_per_img = nms_arguments(settings['nms'])['iou_threshold'], settings['max_per_img']
    sure, tied, places = zip(
        *(_at_the_cut(head, level, settings.get('nms_pre', -1), slack) for level in outputs[0]), strict=True
    )
    needed_counts = []
    for step in (-EDGE, EDGE):
        fewest = _count_large(head, outputs, metas, sure, step)
        most = fewest.copy()
        for level, (rows, free) in enumerate(zip(tied, places, strict=True)):
            if rows.any():
                alone = [of_level & (index == level) for index, of_level in enumerate(tied)]
                count = _count_large(head, outputs, metas, alone, step)
                fewest += np.maximum(free - (rows.sum(1).cpu().numpy() - count), 0)
                most += np.minimum(free, count)
        smallest = least + step if least > 0 else least
        for edge in (-EDGE, 0.0, EDGE):
            entries = suppression_entries(head, iou_threshold + edge, max_per_img)
            cfg = _changed(head.test_cfg, min_bbox_size=smallest, **entries)
            boxes = head.get_bboxes(*outputs, img_metas=metas, cfg=cfg)
            is_full = np.array([len(of_image) for of_image in boxes]) == max_per_img
            for candidates in (fewest, most):
                capped = np.minimum(candidates, cap) if max_per_img <= cap else candidates
                needed_counts.append(np.where(is_full, capped, candidates))
    return np.min(needed_counts, 0), np.max(needed_counts, 0)


def _changed(test_cfg: Any, **changed: Any) -> Any:
    cfg = copy.deepcopy(test_cfg)
    cfg.update(changed)
    return cfg


def _count_large(
    head: nn.Module,
    outputs: Sequence[Sequence[torch.Tensor]],
    metas: Sequence[dict[str, Any]],
    chosen: Sequence[torch.Tensor],
    step: float,
) -> np.ndarray:
    """Count the anchors `chosen` (B, A) of each level whose boxes are large enough."""
    settings = suppression_entries(head, 1.0, sum(rows.shape[1] for rows in chosen))
    if 'nms' in settings and is_in_library(type(head)):
        settings['nms'] = None  # as with an IoU of 1, without comparing all pairs
    settings['nms_pre'] = max(1, *(int(rows.sum(1).max()) for rows in chosen))
    least = head.test_cfg.get('min_bbox_size', -1)
    in_image = least == 0 and clips(head)
    settings['min_bbox_size'] = -1 if in_image else least + step * (least > 0)
    given = [dict(meta, img_shape=None) for meta in metas] if in_image else metas
    logits = [_only(*of_level) for of_level in zip(outputs[0], chosen, strict=True)]
    cfg, counts = _changed(head.test_cfg, **settings), []
    for boxes, meta in zip(
        head.get_bboxes(logits, *outputs[1:], img_metas=given, cfg=cfg), metas, strict=True
    ):
        large = boxes[:, 4] > 0
        if in_image:  # clipping makes sides of 0, where rounding decides; these are relative to the box's
            low, high = boxes[:, :2], boxes[:, 2:4]
            inside = torch.minimum(high, low.new_tensor(meta['img_shape'][1::-1])) - low.clamp(min=0)
            large &= (inside > step * (high - low).clamp(min=1)).all(dim=1)
        counts.append(int(large.sum()))
    return np.array(counts)


def _at_the_cut(
    head: nn.Module, level: torch.Tensor, nms_pre: int, slack: float
) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Return anchors (B, A) of the best `nms_pre` of a level, those that may be, places for them (B,)."""
    rows = level.permute(0, 2, 3, 1).reshape(len(level), -1, int(head.cls_out_channels))
    scores = (rows.sigmoid() if head.use_sigmoid_cls else rows.softmax(-1))[..., 0]
    if not 0 < nms_pre < scores.shape[1]:
        return scores > -1, scores < -1, np.zeros(len(rows), np.int64)
    last, following = scores.topk(nms_pre + 1, dim=1).values[:, -2:, None].unbind(1)
    sure = scores > following + slack
    return sure, ~sure & (scores >= last - slack), nms_pre - sure.sum(1).cpu().numpy()


def _only(logits: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Return logits of a level with a score of 0 for all anchors but `chosen` (B, A)."""
    batch, channels, *size = logits.shape
    rows = logits.new_zeros(*chosen.shape, channels * size[0] * size[1] // chosen.shape[1])
    rows[..., 0].masked_fill_(~chosen, -torch.inf)
    return rows.reshape(batch, *size, channels).permute(0, 3, 1, 2)


@contextlib.contextmanager
def all_boxes(roi_head: nn.Module, **test_cfg: Any) -> Iterator[None]:
    changed = copy.deepcopy(roi_head.test_cfg)
    changed.update(max_per_img=10**9, **test_cfg)
    without_masks = replaced_entry(roi_head._modules, 'mask_head', None)
    with without_masks, replaced_entry(vars(roi_head), 'test_cfg', changed):
        yield


def maps_of(model: nn.Module, feeds: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    image = torch.from_numpy(feeds['input']).contiguous().to(next(model.parameters()).device)
    return model.extract_feat(image)


def metas_of(feeds: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    batch, _, *size = feeds['input'].shape
    shapes = [(*map(int, shape), 3) for shape in sizes_of(feeds)]
    scales = feeds.get('scale_factor', np.ones((batch, 4), np.float32))
    return [
        dict(img_shape=shape, ori_shape=shape, scale_factor=scale, pad_shape=(*size, 3), flip=False)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def sizes_of(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return `img_shape` (B, 2), or the size of the input."""
    batch, _, *size = feeds['input'].shape
    return feeds.get('img_shape', np.full((batch, 2), size))


class TwoStagePanopticReference(TwoStageReference):
    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[Segments]:
        classes, results = int(self.model.panoptic_fusion_head.num_classes), []
        for image in images:
            (result,) = tested(self.model, [image], metas_of_images([image], rescale=True), rescale=True)
            results.append(Segments.of_map(result['pan_results'], classes))
        return results

    def substitutes(self, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        given, stuff = given_to_heads(self.model, tensors), tensors.get(SEMANTIC)
        if not given or stuff is None:
            return {}
        maps, count = given['extract_feat'], len(stuff)
        logits = as_tensor(self.model, stuff)
        return {
            'extract_feat': PerCall([level[index : index + 1] for level in maps] for index in range(count)),
            'rpn_head.simple_test_rpn': PerCall([rows] for rows in given['rpn_head.simple_test_rpn']),
            'semantic_head.forward': PerCall(
                dict(seg_preds=logits[index : index + 1]) for index in range(count)
            ),
        }
