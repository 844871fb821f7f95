"""The layers of one-stage detectors of rotated boxes, from images to the outputs of their last head.

R3Det and S2A-Net have several heads: the boxes of a head, one per cell, show the next one where to look at
the features, and are its priors. mmrotate makes these boxes image by image, here all at once.

`model` is mmrotate's detector, `head` one of its heads.

Glossary: B batch, C channels, a priors of a cell, A priors of a level, H, W network input in pixels, h, w
size of a level's maps, k taps of a kernel. Source: mmrotate 0.3.4 `models/detectors/{r3det,s2anet,utils}.py`.
"""

import copy
import functools

import torch
from mmrotate.models.utils import ORConv2d
from torch import nn

from mm2onnx_mmrotate.dense.kinds import kind_of
from mm2onnx_mmrotate.dense.settings import generator_of
from mm2onnx_mmrotate.sampling import bilinear_rows
from mmdeploy_ext.exporting.postprocess.suppression import rows_of
from mmdeploy_ext.families.images import ConfigError

Maps = list[torch.Tensor]
"""A tensor (B, columns, h, w) of each level."""


def last_head(model: nn.Module) -> nn.Module:
    """Return the head that gives the results of a detector."""
    if hasattr(model, 'odm_head'):
        return model.odm_head
    return model.refine_head[-1] if hasattr(model, 'refine_head') else model.bbox_head


def num_levels(model: nn.Module) -> int:
    """Return the number of feature maps that the head takes."""
    return len(generator_of(last_head(model)).strides)


def raw_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the raw outputs: output by output, then level by level."""
    head, levels = last_head(model), range(num_levels(model))
    names = kind_of(head).describe(head).names
    return tuple(f'{name}_{level}' for name in names for level in levels)


def flat_outputs(model: nn.Module, image: torch.Tensor) -> Maps:
    """Return the outputs (B, a*columns, h, w) of normalised images (B, 3, H, W), named by `raw_names`.

    ConfigError: there are more or fewer.
    """
    outputs = head_outputs(model, list(model.extract_feat(image)))
    names = raw_names(model)
    if len(outputs) != len(names):
        head = type(last_head(model)).__name__
        raise ConfigError(f'{head}: returns {len(outputs)} tensors, expected {", ".join(names)}')
    return outputs


def head_outputs(model: nn.Module, features: Maps) -> Maps:
    """Return what `flat_outputs` does from the features of each level."""
    if hasattr(model, 'odm_head'):
        return aligned_outputs(model, features)
    if hasattr(model, 'refine_head'):
        return refined_outputs(model, features)
    return kind_of(model.bbox_head).flatten(model.bbox_head(features))


def aligned_outputs(model: nn.Module, features: Maps) -> Maps:
    """Return the outputs of S2A-Net: a deformable convolution aligns to the boxes of the first head.

    They are class logits, deltas and these boxes (B, 5, h, w), each level by level; `features` has a map of
    each level.
    """
    rois = boxes_of_head(model.fam_head, model.fam_head(features))
    aligned = [
        align.relu(align.deform_conv(maps, align_offsets(boxes, align.kernel_size, align.stride)))
        for maps, boxes, align in zip(features, rois, model.align_conv.ac, strict=True)
    ]
    scores, deltas = model.odm_head(aligned)
    return [*scores, *deltas, *rois]


def refined_outputs(model: nn.Module, features: Maps) -> Maps:
    """Return the outputs of R3Det: each stage adds features from the centres of the boxes before it.

    They are the last stage's class logits, deltas and the boxes before it (B, 5, h, w), each level by level.
    """
    rois = best_boxes_of_head(model.bbox_head, model.bbox_head(features))
    for stage, (align, head) in enumerate(zip(model.feat_refine_module, model.refine_head, strict=True)):
        if stage:
            rois = boxes_of_head(model.refine_head[stage - 1], (scores, deltas), rois)  # noqa: F821
        scores, deltas = head(refined_features(align, features, rois))
    return [*scores, *deltas, *rois]


def decoded(
    head: nn.Module, outputs: tuple[Maps, Maps], level: int, rois: Maps | None = None
) -> torch.Tensor:
    """Return the boxes (B, A, 5) of one level of an inner head.

    `outputs` are class logits and deltas of all levels; `rois` (B, 5, h, w) the priors of a refined head,
    None for a head whose priors are anchors.
    """
    deltas, coder = outputs[1][level], kind_of(head).coder(head)
    rows = dict(bbox_pred=rows_of(deltas, 5))
    if rois is not None:
        rows['rois'] = rows_of(rois[level], 5)
        return coder.boxes(torch, None, rows, level)
    priors = generator_of(head).single_level_grid_priors(
        deltas.shape[-2:], level, dtype=deltas.dtype, device=deltas.device
    )
    return coder.boxes(torch, priors, rows, level)


def boxes_of_head(head: nn.Module, outputs: tuple[Maps, Maps], rois: Maps | None = None) -> Maps:
    """Return the box (B, 5, h, w) of each cell, level by level, by a head with one prior per cell.

    The arguments are those of `decoded`.
    """
    levels = range(len(outputs[1]))
    return [as_map(decoded(head, outputs, level, rois), outputs[1][level]) for level in levels]


def best_boxes_of_head(head: nn.Module, outputs: tuple[Maps, Maps]) -> Maps:
    """Return the box (B, 5, h, w) of each cell, level by level: of its priors that with the best class score.

    The arguments are those of `decoded`.
    """
    best, count = [], head.num_anchors
    for level, scores in enumerate(outputs[0]):
        logits = rows_of(scores, count * head.cls_out_channels)
        logits = logits.reshape(*logits.shape[:2], count, head.cls_out_channels).amax(-1)
        boxes = decoded(head, outputs, level).reshape(*logits.shape, 5)
        best_priors = logits.argmax(-1)[..., None, None].expand(-1, -1, -1, 5)
        best.append(as_map(boxes.gather(2, best_priors)[:, :, 0], scores))
    return best


def as_map(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return rows (B, h * w, columns) as a map (B, columns, h, w); `like` (B, ..., h, w) has its size."""
    return rows.transpose(1, 2).reshape(like.shape[0], rows.shape[2], like.shape[2], like.shape[3])


def refined_features(align: nn.Module, features: Maps, rois: Maps) -> Maps:
    """Return what `FeatureRefineModule` gives: the features plus `local`, plus `local` at the boxes' centres.

    `local` (B, C, h, w) is what the convolutions of the module `align` make of the features of a level;
    `rois` are the boxes (B, 5, h, w) of each.
    """
    refined = []
    for maps, boxes, stride in zip(features, rois, align.featmap_strides, strict=True):
        local = align.conv_5_1(align.conv_1_5(maps)) + align.conv_1_1(maps)
        refined.append(maps + local + features_at_centres(local, boxes, 1 / stride))
    return refined


def features_at_centres(maps: torch.Tensor, boxes: torch.Tensor, scale: float) -> torch.Tensor:
    """Return the features (B, C, h, w) at the centres of boxes (B, 5, h, w), which are in pixels.

    `scale` is the length of a pixel in cells. mmcv's `rotated_feature_align` takes the x of a centre for the
    row, and y for the column.
    """
    centres = (boxes[:, :2] * scale).flatten(2)
    rows = bilinear_rows(maps, centres[:, 0], centres[:, 1])
    return as_map(rows, maps)


def align_offsets(boxes: torch.Tensor, kernel_size: int, stride: int) -> torch.Tensor:
    """Return the offsets (B, 2k, h, w), y before x, by which the taps of a kernel lie in boxes (B, 5, h, w).

    The kernel covers the box: between its taps there is a `kernel_size`th of the width and of the height,
    turned. Boxes are in pixels, of which a cell is `stride` long, and offsets in cells.
    """
    pad, (height, width) = (kernel_size - 1) // 2, boxes.shape[2:]
    steps = range(-pad, pad + 1)
    tap_y = boxes.new_tensor([step for step in steps for _ in steps])[:, None, None]
    tap_x = boxes.new_tensor([*steps] * kernel_size)[:, None, None]
    column, row = (torch.arange(size, dtype=boxes.dtype, device=boxes.device) for size in (width, height))
    x, y, box_width, box_height = ((boxes[:, index] / stride)[:, None] for index in range(4))
    cos, sin = boxes[:, 4].cos()[:, None], boxes[:, 4].sin()[:, None]
    along, across = box_width / kernel_size * tap_x, box_height / kernel_size * tap_y
    offset_x = (cos * along - sin * across + x) - (column[None, None, None] + tap_x)
    offset_y = (sin * along + cos * across + y) - (row[None, None, :, None] + tap_y)
    return torch.stack([offset_y, offset_x], 2).flatten(1, 2)


def with_turned_filters(model: nn.Module) -> nn.Module:
    """Return a copy of a detector with `ORConv2d`, of layers that hold their turned filters.

    They depend on weights alone, and mmcv's operator that turns them is not exported. Other detectors are
    returned as they are.
    """
    if not any(isinstance(module, ORConv2d) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, ORConv2d):
            with torch.no_grad():
                module.rotate_arf = functools.partial(torch.Tensor.detach, module.rotate_arf())
    return model
