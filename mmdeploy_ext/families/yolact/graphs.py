"""The graph of YOLACT: its contract, and the chain of modules that keeps it."""

import torch
from torch import nn

from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.parts import detector_parts
from mmdeploy_ext.families.parts.image_tensors import box_outputs, image_input, mask_inputs, optional_inputs
from mmdeploy_ext.families.yolact.postprocess import FULL, KINDS, FullForm, thresholds

WHOLE = '0 means those of the input'


class Network(nn.Module):
    """Backbone, neck, head and prototypes of mmdet's detector behind flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        levels = range(len(model.bbox_head.prior_generator.strides))
        self.names = ('prototypes', *(f'{kind}_{level}' for kind in KINDS for level in levels))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return prototypes and the outputs of the head, kind by kind, of (B, 3, H, W) float32."""
        maps = self.model.extract_feat(image)
        outputs = [one for kind in self.model.bbox_head(maps) for one in kind]
        found = self.model.mask_head.protonet(maps[0]), *outputs
        return tuple(tap(name, one) for name, one in zip(self.names, found, strict=True))


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of the graph."""
    image = image_input(options, 1, detector_parts.multiple(model))
    batch, rows = image.axes[0], int(thresholds(model.bbox_head.test_cfg)['max_per_img'])
    meaning = 'pixels of the instances at ori_shape'
    masks = TensorSpec('masks', 'bool', (batch, rows, 'h', 'w'), meaning, compare='detections')
    inputs = (image, *optional_inputs(batch, True), mask_inputs(batch, WHOLE)[1])
    return GraphSpec('yolact/full', inputs, (*box_outputs(batch, rows), masks))


def stages(model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
    """Return the network, and the post-processing after it."""
    network = Network(fuse(model) if fold else model)
    inputs = ('input', 'img_shape', 'scale_factor', 'ori_shape', *network.names)
    return [
        Stage('network', network, ('input',), network.names),
        Stage('postprocess', FullForm(model.bbox_head), inputs, FULL),
    ]
