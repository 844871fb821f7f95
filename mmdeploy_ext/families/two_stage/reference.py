"""Two-stage detectors as mmdet runs them, unpatched: what a proof compares the graphs with."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.families.parts.mmdet_reference import Given, batch_of, metas_of_images, tested
from mmdeploy_ext.families.parts.region_maps import feature_names
from mmdeploy_ext.families.parts.regions import flat, part_of
from mmdeploy_ext.families.two_stage.boxes import output_names
from mmdeploy_ext.families.two_stage.graphs import proposal_names
from mmdeploy_ext.families.two_stage.samples import stacked
from mmdeploy_ext.families.two_stage.split import PROPOSALS, REGIONS
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.detections import Detections
from mmdeploy_ext.runtime.panoptic import Segments


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
    """Return the segments of a panoptic detector's own test path, at the original size, image by image.

    For all images of a batch mmdet takes the sizes of the first one where it resizes its semantic map.
    """
    classes, found = int(model.panoptic_fusion_head.num_classes), []
    for image in images:
        (result,) = tested(model, [image], metas_of_images([image], True), True)
        found.append(Segments.of_map(result['pan_results'], classes))
    return found
