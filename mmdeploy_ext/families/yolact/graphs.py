"""The graph of YOLACT: its contract, and the chain of modules that keeps it."""

import torch
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.parts.image_tensors import box_outputs, image_input, mask_inputs, optional_inputs
from mmdeploy_ext.families.yolact.postprocess import FULL_NAMES, HEAD_OUTPUTS, FullForm, thresholds


class Network(nn.Module):
    """Backbone, neck, head and prototypes of mmdet's detector behind flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        levels = range(len(model.bbox_head.prior_generator.strides))
        self.names = ('prototypes', *(f'{name}_{level}' for name in HEAD_OUTPUTS for level in levels))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return prototypes and the outputs of the head, output by output, of (B, 3, H, W) float32."""
        maps = self.model.extract_feat(image)
        head_maps = [level for levels in self.model.bbox_head(maps) for level in levels]
        outputs = self.model.mask_head.protonet(maps[0]), *head_maps
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, outputs, strict=True))


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of the graph."""
    image = image_input(options, 1, detector_parts.multiple(model))
    batch, rows = image.axes[0], int(thresholds(model.bbox_head.test_cfg)['max_per_img'])
    meaning = 'pixels of the instances at ori_shape'
    masks = TensorSpec('masks', 'bool', (batch, rows, 'h', 'w'), meaning, compare='detections')
    _, ori_shape = mask_inputs(batch, '0 means those of the input')
    inputs = (image, *optional_inputs(batch, True), ori_shape)
    return GraphSpec('yolact/full', inputs, (*box_outputs(batch, rows), masks))


def stages(model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
    """Return the network, and the post-processing after it."""
    network = Network(fuse(model) if fold else model)
    inputs = ('input', 'img_shape', 'scale_factor', 'ori_shape', *network.names)
    return [
        Stage('network', network, ('input',), network.names),
        Stage('postprocess', FullForm(model.bbox_head), inputs, FULL_NAMES),
    ]
