"""The graphs of RT-DETR: contracts, inputs, modules.

Source of the contract: lyuwenyu/RT-DETR 068dfde, rtdetr_pytorch/tools/export_onnx.py.
Glossary: B batch, C classes, Q queries, H, W network input in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.families.rtdetr.runtime import SIZES, target_sizes
from mmdeploy_ext.graphs.passes.grid_sample import replace_grid_sample
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, Stage, TensorSpec
from mmdeploy_ext.upstream.models.rtdetr.detector import STRIDE
from mmdeploy_ext.upstream.models.rtdetr.encoder import RepVggBlock

RAW_NAMES = ('logits', 'boxes', 'tokens')
FULL_NAMES = ('labels', 'boxes', 'scores')
HEADS = ('pred_logits', 'pred_boxes')


class RtDetrNetwork(nn.Module):
    """Backbone, encoder and decoder; parameters keep their names below `model.`."""

    def __init__(self, model: nn.Module, with_tokens: bool) -> None:
        super().__init__()
        self.model = model
        self.with_tokens = with_tokens

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return class logits (B, Q, C) and relative boxes cxcywh (B, Q, 4) of float32 RGB / 255.

        `with_tokens` adds the tokens (B, Q) int64.
        """
        outputs = self.model.decoder(self.model.extract_feat(images))
        return outputs if self.with_tokens else outputs[:2]


def separate_branches(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, RepVggBlock):
            module.conv = None


def spec(model: nn.Module, options: Options) -> GraphSpec:
    batch = 'B' if options.dynamic or options.dynamic_batch else options.batch
    height, width = ('H', 'W') if options.dynamic else (options.height, options.width)
    meaning, shape = 'RGB / 255, resized without keeping the aspect ratio', (batch, 3, height, width)
    images = TensorSpec('images', 'float32', shape, meaning, smallest=STRIDE, multiple=STRIDE)
    if options.form == 'raw':
        return GraphSpec('rtdetr/raw', (images,), _raw_outputs(model.decoder, batch))
    meaning = 'width and height of the original image'
    sizes = TensorSpec(SIZES, 'int64', (batch, 2), meaning, 'pixel', positive=True)
    rows = (batch, model.postprocess.max_per_img)
    columns = (
        ('labels', 'int64', rows, 'class indices'),
        ('boxes', 'float32', (*rows, 4), 'x1 y1 x2 y2, not clipped', 'pixel'),
        ('scores', 'float32', rows, '0..1, descending'),
    )
    outputs = tuple(TensorSpec(*column, compare='detections') for column in columns)
    return GraphSpec('rtdetr/full', (images, sizes), outputs)


def _raw_outputs(decoder: nn.Module, batch: int | str) -> tuple[TensorSpec, ...]:
    queries, classes = int(decoder.num_queries), int(decoder.num_classes)
    boxes = 'cx cy w h relative to the input, 0..1'
    groups = (ColumnGroup('cxcy', (0, 1)), ColumnGroup('wh', (2, 3)))
    tokens = 'encoder token of each query, by descending score; maps from fine to coarse, row by row'
    return (
        TensorSpec('logits', 'float32', (batch, queries, classes), 'class logits per query', 'logit'),
        TensorSpec('boxes', 'float32', (batch, queries, 4), boxes, groups=groups),
        TensorSpec('tokens', 'int64', (batch, queries), tokens, groups=(ColumnGroup(rtol=0.0),)),
    )


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return `images` (B, 3, H, W) float32 and `orig_target_sizes` (B, 2) int64 of pictures of one size.

    Boxes are in pixels of this width and height: the original's with `rescale`, else the input's. Raises
    ShapeError if `rescale` meets a padded image.
    """
    sizes = [image.ori_shape if rescale else image.tensor.shape[1:] for image in images]
    for image in images:
        if rescale and tuple(image.img_shape) != image.tensor.shape[1:]:
            raise ShapeError(
                f'images: got an image of {image.img_shape[0]}x{image.img_shape[1]} padded to '
                f'{image.tensor.shape[1]}x{image.tensor.shape[2]}; RT-DETR does not support padding: '
                'resize to the size of the graph (Resize img_scale)'
            )
    return {'images': np.stack([image.tensor for image in images]), SIZES: target_sizes(sizes)}


def stages(model: nn.Module, options: Options) -> list[Stage]:
    if not options.fuse:
        separate_branches(model)
    passes = (replace_grid_sample,) if options.grid_sample == 'gather' else ()
    if options.form == 'raw':
        return [
            Stage('network', RtDetrNetwork(model, with_tokens=True), ('images',), RAW_NAMES, passes=passes)
        ]
    return [
        Stage('network', RtDetrNetwork(model, with_tokens=False), ('images',), HEADS, passes=passes),
        Stage('postprocess', model.postprocess, (*HEADS, SIZES), FULL_NAMES),
    ]
