"""Two-stage detectors as mmdet runs them, unpatched: what a proof compares the graphs with."""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.families.dense.reference import batch_of
from mmdeploy_ext.families.dense.reference import metas_of as images_metas
from mmdeploy_ext.families.two_stage.boxes import output_names
from mmdeploy_ext.families.two_stage.graphs import feature_names, proposal_names
from mmdeploy_ext.families.two_stage.regions import flat, part_of
from mmdeploy_ext.families.two_stage.samples import pasted_size, proposals_of, stacked
from mmdeploy_ext.families.two_stage.split import PROPOSALS, REGIONS
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import BoxedInstances, Detections, ScoredMasks
from mmdeploy_ext.runtime.panoptic import Segments

Given = tuple['list[torch.Tensor]', 'list[torch.Tensor]']
"""Maps of all levels that regions are pooled from, and proposals (K, 4) of every image."""


def tensors(model: nn.Module, feeds: Mapping[str, np.ndarray], form: str, **_: Any) -> dict[str, np.ndarray]:
    """Return what one of two graphs compares by value; of regions see `_region_tensors`."""
    if form != PROPOSALS:
        return _region_tensors(model, feeds, {})
    with torch.no_grad():
        maps = maps_of(model, feeds)
        found = [*maps[: len(feature_names(model))], *(one for kind in model.rpn_head(maps) for one in kind)]
    names = (*feature_names(model), *proposal_names(model))
    return {name: one.cpu().numpy() for name, one in zip(names, found, strict=True)}


def inner_inputs(model: nn.Module, feeds: Mapping[str, np.ndarray], form: str) -> dict[str, np.ndarray]:
    """Return the features and the proposals that a graph of regions is given; see `ImageFamily`."""
    if form != REGIONS:
        return {}
    with torch.no_grad():
        maps = maps_of(model, feeds)
        every = model.rpn_head.simple_test_rpn(maps, metas_of(feeds))
    found = {name: one.cpu().numpy() for name, one in zip(feature_names(model), maps, strict=False)}
    proposals = stacked([one[:, :4].cpu().numpy() for one in every])
    return dict(found, proposals=proposals, img_shape=sizes_of(feeds).astype(np.float32))


def choose_as(
    model: nn.Module,
    feeds: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    ties_rtol: float = 0.0,
) -> dict[str, np.ndarray]:
    """Return the reference with the heads of later stages given the engine's regions; see `ImageFamily`.

    Regions that differ by rounding may be pooled from other levels, and with other numbers of samples.
    """
    later = {name: array for name, array in outputs.items() if name.startswith('regions_')}
    fitting = later and all(array.shape == reference[name].shape for name, array in later.items())
    return _region_tensors(model, feeds, later) if fitting else dict(reference)


def _region_tensors(
    model: nn.Module, feeds: Mapping[str, np.ndarray], later: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return what mmdet's heads look at and give, stage by stage, of the proposals in `inner_inputs`.

    The unpatched model's `_bbox_forward` is watched; for `later` see `_Watcher`.
    """
    maps, _ = outputs_of_first(model, feeds)
    every = [torch.from_numpy(one).to(maps[0]) for one in feeds['proposals']]
    watcher = _Watcher(model.roi_head, later)
    watched = replaced_entry(vars(model.roi_head), '_bbox_forward', watcher)
    with torch.no_grad(), boxes_alone(model.roi_head), watched:
        model.roi_head.simple_test(maps, every, metas_of(feeds), rescale=True)
    batch, rows = feeds['proposals'].shape[:2]
    return {
        name: one.reshape(batch, rows, *(one.shape[1:] if one.dim() == 4 else (-1,))).cpu().numpy()
        for name, one in watcher.found.items()
    }


class _Watcher:
    """A `_bbox_forward` of mmdet that keeps what it is given and gives: `found`, a row per region."""

    def __init__(self, roi_head: nn.Module, later: Mapping[str, np.ndarray]) -> None:
        """Keep the head; `later` are regions of later stages, given to it in place of its own."""
        self.roi_head, self.forward, self.later = roi_head, roi_head._bbox_forward, later
        self.found: dict[str, torch.Tensor] = {}

    def __call__(self, *args: Any, **more: Any) -> dict[str, Any]:
        *stage, maps, rois = args
        place = stage[0] if stage else 0
        if place:
            self.found[f'regions_{place}'] = own = rois[:, 1:]
            given = torch.from_numpy(self.later.get(f'regions_{place}', own.cpu().numpy()))
            rois = torch.cat([rois[:, :1], given.reshape(-1, 4).to(rois)], dim=1)
        head = part_of(self.roi_head, 'bbox_head', place)
        with head.register_forward_pre_hook(
            lambda _, features: self.found.update({f'region_features_{place}': features[0]})
        ):
            result = self.forward(*stage, maps, rois, **more)
        outputs = flat((result['cls_score'], result['bbox_pred']))
        self.found.update(zip([f'{name}_{place}' for name in output_names(head)], outputs, strict=True))
        return result


def outputs_of_first(model: nn.Module, outputs: Mapping[str, np.ndarray]) -> Given:
    """Return features and proposals that a file gives as mmdet takes them; rows of padding are left out."""
    like = next(model.parameters())
    maps = [torch.from_numpy(outputs[name]).to(like) for name in feature_names(model)]
    rows = [torch.from_numpy(one).to(like) for one in outputs['proposals']]
    return maps, [one[(one[:, 2:] > one[:, :2]).all(dim=1)] for one in rows]


def detections(
    model: nn.Module, images: Sequence[PreparedImage], rescale: bool, given: Given | None = None
) -> list[Detections]:
    """Return the results of mmdet's `simple_test`, or of that of its head of regions alone.

    Boxes are in pixels of the originals with `rescale`. `given` is what regions are pooled from, and
    proposals, in place of the model's own.
    """
    metas = metas_of_images(images, rescale)
    with torch.no_grad():
        batch, own = batch_of(model, images).contiguous(), {}  # see `roi_align`
        if getattr(model, 'rpn_head', None) is None:
            own['proposals'] = [torch.from_numpy(proposals_of(image)).to(batch) for image in images]
        if given is None:
            results = model.simple_test(batch, metas, rescale=rescale, **own)
        else:
            results = model.roi_head.simple_test(*given, metas, rescale=rescale)
    roi_head = getattr(model, 'roi_head', None)
    if roi_head is not None and roi_head.with_mask:
        sizes = [pasted_size(image, rescale) for image in images]
        return [instances_of_classes(*one, size) for one, size in zip(results, sizes, strict=True)]
    return [boxes_of_classes([one] if roi_head is None else one) for one in results]


def metas_of_images(images: Sequence[PreparedImage], rescale: bool) -> list[dict[str, Any]]:
    """Return what mmdet wants to know about every image; see `detections`."""
    sizes = [pasted_size(image, True) if rescale else image.ori_shape for image in images]
    every = zip(images_metas(images), sizes, strict=True)
    return [meta | dict(ori_shape=(*size, 3), flip=False) for meta, size in every]


@contextlib.contextmanager
def without_masks(roi_head: nn.Module | None) -> Iterator[None]:
    """Inside the block a head of regions gives boxes alone."""
    masks = getattr(roi_head, 'mask_head', None)
    if masks is None:
        yield
        return
    roi_head.mask_head = None
    try:
        yield
    finally:
        roi_head.mask_head = masks


@contextlib.contextmanager
def recorded(owner: Any, name: str, keep: Callable[..., None]) -> Iterator[None]:
    """Inside the block a method of upstream also gives its result and its arguments to `keep`."""
    method = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        keep(result, *args)
        return result

    with replaced_entry(vars(owner), name, watched):
        yield


def rows_of_proposals(proposals: Sequence[torch.Tensor]) -> list[Detections]:
    """Return proposals with scores (K, 5) of every image as boxes of one class."""
    every = (one.cpu().numpy() for one in proposals)
    return [Detections(one[:, :4], one[:, 4], np.zeros(len(one), np.int64)) for one in every]


def proposals_alone(model: nn.Module, images: Sequence[PreparedImage]) -> list[Detections]:
    """Return the proposals of mmdet's head of proposals."""
    with torch.no_grad():
        maps = model.extract_feat(batch_of(model, images).contiguous())
        return rows_of_proposals(model.rpn_head.simple_test_rpn(maps, metas_of_images(images, True)))


def maps_of(model: nn.Module, feeds: Mapping[str, np.ndarray]) -> tuple[torch.Tensor, ...]:
    """Return the maps of all levels that the unpatched model gives."""
    image = torch.from_numpy(feeds['input']).contiguous().to(next(model.parameters()).device)
    return model.extract_feat(image)


def metas_of(feeds: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return what mmdet wants to know about every image, by what a graph is fed."""
    batch, _, *size = feeds['input'].shape
    shapes = [(*map(int, shape), 3) for shape in sizes_of(feeds)]
    scales = feeds.get('scale_factor', np.ones((batch, 4), np.float32))
    return [
        dict(img_shape=shape, ori_shape=shape, scale_factor=scale, pad_shape=(*size, 3), flip=False)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def sizes_of(feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return height and width (B, 2) of the contents of images; where they are not fed, of the input."""
    batch, _, *size = feeds['input'].shape
    return feeds.get('img_shape', np.full((batch, 2), size))


@contextlib.contextmanager
def boxes_alone(roi_head: nn.Module, **test_cfg: Any) -> Iterator[None]:
    """Inside the block a head of regions gives no masks, all boxes, and has other entries of `test_cfg`."""
    masks, own = getattr(roi_head, 'mask_head', None), roi_head.test_cfg
    roi_head.mask_head, roi_head.test_cfg = None, copy.deepcopy(own)
    roi_head.test_cfg.update(max_per_img=10**9, **test_cfg)
    try:
        yield
    finally:
        roi_head.mask_head, roi_head.test_cfg = masks, own


def segments(model: nn.Module, images: Sequence[PreparedImage], rescale: bool) -> list[Segments]:
    """Return the segments of a panoptic detector's `simple_test`, at the original size, image by image.

    For all images of a batch mmdet takes the sizes of the first one where it resizes its semantic map.
    """
    classes, found = int(model.panoptic_fusion_head.num_classes), []
    for image in images:
        batch, metas = batch_of(model, [image]).contiguous(), metas_of_images([image], True)
        with torch.no_grad():
            (result,) = model.simple_test(batch, metas, rescale=True)
        found.append(Segments.of_map(result['pan_results'], classes))
    return found


def boxes_of_classes(result: Sequence[np.ndarray]) -> Detections:
    """Return the boxes of an image of all classes, (n, 5) each, in descending score order."""
    rows, labels, order = _in_order(result)
    return Detections(rows[order, :4], rows[order, 4], labels[order])


def instances_of_classes(
    boxes: Sequence[np.ndarray], masks: Sequence[Sequence[np.ndarray]], size: tuple[int, int]
) -> BoxedInstances:
    """Return the instances of an image of all classes, masks of `size`, in descending score order.

    With heads that judge masks, `masks` is a pair: masks and their scores, of all classes.
    """
    masks, scores = masks if isinstance(masks, tuple) else (masks, None)
    rows, labels, order = _in_order(boxes)
    every = [mask for one in masks for mask in one]
    whole = np.stack([every[row] for row in order]) if every else np.zeros((0, *size), bool)
    found = BoxedInstances(whole, rows[order, 4], labels[order], rows[order, :4])
    if scores is None:
        return found
    judged = np.asarray([score for one in scores for score in one], np.float32)
    return ScoredMasks(*(getattr(found, field.name) for field in dataclasses.fields(found)), judged[order])


def _in_order(result: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes with scores (n, 5) and labels (n,) of all classes, and their order by score."""
    rows = np.concatenate([np.asarray(one, np.float32).reshape(-1, 5) for one in result])
    labels = np.repeat(np.arange(len(result), dtype=np.int64), [len(one) for one in result])
    return rows, labels, np.argsort(-rows[:, 4], kind='stable')
