"""The graphs of two-stage detectors: their contracts, and the chain of modules that keeps them.

Glossary: B batch, H, W network input in pixels, n detections, L levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.exporting.postprocess.sizes import hw
from projects.mmdet_plugin.dense import parts
from projects.mmdet_plugin.dense.graphs import box_outputs, optional_inputs
from projects.mmdet_plugin.two_stage.boxes import Boxes
from projects.mmdet_plugin.two_stage.masks import Masks, side_of
from projects.mmdet_plugin.two_stage.proposals import Proposals
from projects.mmdet_plugin.two_stage.regions import part_of, stages_of

if TYPE_CHECKING:
    from mmdeploy_ext.contract.option import Options


def feature_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the feature maps that regions are pooled from."""
    if not model.with_roi_head:
        return ()
    roi_head = model.roi_head
    kinds = ('bbox', 'mask') if roi_head.with_mask else ('bbox',)
    pools = [
        part_of(roi_head, f'{kind}_roi_extractor', one)
        for kind in kinds
        for one in range(stages_of(roi_head))
    ]
    return tuple(f'features_{level}' for level in range(max(pool.num_inputs for pool in pools)))


def proposal_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the outputs of the head of proposals: by kind, then by level."""
    levels = range(len(model.rpn_head.prior_generator.strides))
    return tuple(f'rpn_{kind}_{level}' for kind in ('cls', 'reg') for level in levels)


class Network(nn.Module):
    """Backbone, neck and the head of proposals behind flat tensors."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the detector; its parameters keep their names below `model.`."""
        super().__init__()
        self.model = model
        self.names = (*feature_names(model), *proposal_names(model))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps that regions are pooled from, and the outputs of the head of proposals.

        Args:
            image: (B, 3, H, W) float32, normalised.
        """
        maps = self.model.extract_feat(image)
        heads = self.model.rpn_head(maps)
        found = [*maps[: len(feature_names(self.model))], *(one for kind in heads for one in kind)]
        return tuple(tap(name, tensor) for name, tensor in zip(self.names, found, strict=True))


class FullForm(nn.Module):
    """What the `full` form adds to the network: proposals, regions, results."""

    def __init__(self, model: nn.Module) -> None:
        """Keep the heads of regions, and the settings of all post-processing."""
        super().__init__()
        self.proposals = Proposals(model.rpn_head)
        self.boxes = Boxes(model.roi_head)
        self.masks = Masks(model.roi_head) if model.roi_head.with_mask else None
        self.features = len(feature_names(model))

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, scale_factor: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Find proposals and look at their regions.

        Args:
            image: (B, 3, H, W); only its size is used.
            img_shape: (B, 2) float32 h, w before padding; 0 means the input size.
            scale_factor: (B, 4) float32.
            maps: what `Network` gives.

        Returns:
            dets (B, n, 5), labels (B, n), and with mask heads masks (B, n, m, m).
        """
        clip_hw = torch.where(img_shape > 0, img_shape, hw(image).to(img_shape)[None])
        features, heads = maps[: self.features], maps[self.features :]
        proposals, levels = self.proposals(heads, clip_hw)
        dets, labels = self.boxes(features, proposals[..., :4], levels >= 0, clip_hw, scale_factor)
        found = [tap('dets', dets), tap('labels', labels)]
        if self.masks is not None:
            found.append(tap('masks', self.masks(features, dets, labels, scale_factor)))
        return tuple(found)


def full_names(model: nn.Module) -> tuple[str, ...]:
    """Return the outputs of the `full` form."""
    return ('dets', 'labels', 'masks') if model.roi_head.with_mask else ('dets', 'labels')


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of a form."""
    batch, height, width = (
        ('B', 'H', 'W') if options.dynamic else (options.batch, options.height, options.width)
    )
    image = TensorSpec(
        'input',
        'float32',
        (batch, 3, height, width),
        'normalised images, padded bottom and right',
        multiple=parts.multiple(model),
    )
    outputs = box_outputs(batch, 'n')
    if 'masks' in full_names(model):
        side = side_of(model.roi_head)
        meaning = 'probabilities of the own class, in the frame of the box; zero where dets is padding'
        outputs += (TensorSpec('masks', 'float32', (batch, 'n', side, side), meaning, compare='detections'),)
    return GraphSpec(f'two_stage/{options.form}', (image, *optional_inputs(batch, True)), outputs)


def stages(model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
    """Return the network, and what the form adds to it."""
    own = fuse(model) if fold else model
    network = Network(own)
    return [
        Stage('network', network, ('input',), network.names),
        Stage(
            'regions',
            FullForm(own),
            ('input', 'img_shape', 'scale_factor', *network.names),
            full_names(model),
        ),
    ]
