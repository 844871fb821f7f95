"""A detector in two graphs, for those who schedule them apart: pictures to proposals, regions to results.

An output of the first graph is an input of the second by its name. Both also give what their results were
made from, so that a proof compares tensors: the first the outputs of its head of proposals, the second, given
PyTorch's own proposals, the features of regions and the outputs of its heads. Glossary: B batch, K proposals,
n detections, H, W network input in pixels.
"""

import dataclasses
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmdeploy_ext.contract.option import Options
from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Stage
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.core.taps import tap
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.parts import image_tensors, region_maps
from mmdeploy_ext.families.parts.region_maps import grid_of
from mmdeploy_ext.families.parts.regions import context_names
from mmdeploy_ext.families.two_stage import graphs
from mmdeploy_ext.families.two_stage.proposals import Proposals, is_guided, is_staged, smallest_side

PROPOSALS, REGIONS = FORMS = ('proposals', 'regions')
"""The two graphs."""
MEANINGS = dict(
    features='features that regions are pooled from',
    rpn_cls='logits of proposals',
    rpn_reg='deltas of proposals',
    regions='x1 y1 x2 y2 of the regions of a later stage',
    region_features='features of regions, as the head of boxes looks at them',
    cls_score='class logits of regions, the background last',
    bbox_pred='box deltas of regions',
    bbox_cls='bucket logits of the sides of regions',
    bbox_reg='offsets in the buckets of the sides of regions',
)
"""Kind of a tensor -> what it is."""
UNITS = dict(rpn_cls='logit', cls_score='logit', bbox_cls='logit', regions='pixel')
SEED = 0


def check(heads: Mapping[str, nn.Module], options: Options) -> None:
    """Refuse two graphs of a detector that is one of them, and half precision of the second graph.

    ConfigError: proposals without an area, which the second graph would take for none.
    """
    if options.form not in FORMS:
        return
    if missing := {'rpn_head', 'roi_head'} - heads.keys():
        raise UsageError(
            f'--postprocess {options.form}: the model has no {missing.pop()}; it is one graph, export full'
        )
    if options.form == REGIONS and options.precision != 'fp32':
        raise UsageError(
            f'--precision {options.precision}: the graph of regions stays float32; export it without'
        )
    roi_head = heads['roi_head']
    if context_names(roi_head) or grid_of(roi_head) is not None:
        raise UsageError(
            f'--postprocess {options.form}: {type(roi_head).__name__}: results are made of more than regions '
            f'of these levels, or scaled twice; it is one graph, export full'
        )
    if is_guided(heads['rpn_head']) or is_staged(heads['rpn_head']):
        raise UsageError(
            f'--postprocess {options.form}: {type(heads["rpn_head"]).__name__} is one graph, export full'
        )
    if smallest_side(heads['rpn_head']) < 0:
        raise ConfigError(
            f'test_cfg.rpn.min_bbox_size={smallest_side(heads["rpn_head"]):g}: expected 0 or more for '
            f'--postprocess {options.form}, where a proposal without an area is none'
        )


class ProposalsForm(nn.Module):
    """What the first graph adds to the network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.proposals = Proposals(model.rpn_head)

    def forward(
        self, image: torch.Tensor, img_shape: torch.Tensor, *maps: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """Return proposals (B, K, 4) of the head's outputs; rows that an image does not have are zero."""
        dets, *_ = self.proposals(maps, image_tensors.clip_size(image, img_shape))
        return (tap('proposals', dets[..., :4]),)


class RegionsForm(graphs.FullForm):
    """The second graph: regions to results, with what these were made from."""

    def forward(
        self,
        img_shape: torch.Tensor,
        scale_factor: torch.Tensor,
        proposals: torch.Tensor,
        *features: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return what `full` gives, and what `inner_names` names, a row per region.

        Boxes are clipped to `img_shape` (B, 2) h, w; `proposals` (B, K, 4) without an area are none;
        `features` are of all levels.
        """
        results, inner = self.look(features, proposals, img_shape, scale_factor)
        return *results, *inner.values()

    def look(
        self, features: Sequence[torch.Tensor], proposals: torch.Tensor, *sizes: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
        """Return what `full` gives, and name -> what heads look at and give (B, K, ...)."""
        seen: list[dict[str, torch.Tensor]] = []
        present, rows = graphs.with_area(proposals), proposals.shape[:2]
        results = self._results(features, proposals, present, *sizes, seen=seen)
        inner = {name: one for stage in seen for name, one in stage.items()}
        return results, {
            name: one.reshape(*rows, *one.shape[-3 if one.dim() == 4 else -1 :])
            for name, one in inner.items()
        }


_SHAPES: weakref.WeakKeyDictionary[nn.Module, dict[Any, dict[str, tuple[int, ...]]]] = (
    weakref.WeakKeyDictionary()
)
"""Model -> input (H, W) -> name of a tensor -> its shape, of one image with `PROBED` regions."""
PROBED = 3


def shapes(model: nn.Module, options: Options) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors between the graphs, and of what the heads give, of one image.

    UsageError: the model does not take images of that size.
    """
    known = _SHAPES.setdefault(model, {})
    size = options.height, options.width
    if size not in known:
        network, form = graphs.Network(model), RegionsForm(model).eval()
        like = next(model.parameters())
        try:
            with torch.no_grad():
                found = dict(zip(network.names, network(like.new_zeros((1, 3, *size))), strict=True))
        except RuntimeError as error:
            raise UsageError(f'--shape {size[0]} {size[1]}: the model does not take it: {error}') from error
        features = [found[name] for name in region_maps.feature_names(model)]
        boxes = like.new_tensor([[[0.0, 0.0, 8.0, 8.0]] * PROBED])
        with torch.no_grad():
            found |= form.look(features, boxes, like.new_tensor([size]), like.new_ones((1, 4)))[1]
        known[size] = {name: tuple(tensor.shape) for name, tensor in found.items()}
    return known[size]


def inner_names(model: nn.Module, options: Options) -> tuple[str, ...]:
    """Return the names of what heads of regions give, and are given, stage by stage."""
    outside = (*region_maps.feature_names(model), *graphs.proposal_names(model))
    return tuple(name for name in shapes(model, options) if name not in outside)


def _tensor(name: str, shape: Sequence[int], options: Options, regions: bool) -> TensorSpec:
    """Return the spec of a map of a level, or of rows of regions."""
    kind, place = name.rsplit('_', 1)
    batch = 'B' if options.dynamic else options.batch
    axes = (batch, 'K', *shape[2:]) if regions else (batch, *shape[1:])
    if options.dynamic and not regions:
        axes = (*axes[:2], f'h{place}', f'w{place}')
    meaning = f'{MEANINGS[kind]}, {"stage" if regions else "level"} {place}'
    groups = (ColumnGroup(name='xyxy', unit='pixel'),) if UNITS.get(kind) == 'pixel' else ()
    return TensorSpec(name, 'float32', axes, meaning, UNITS.get(kind, ''), groups)


def spec(model: nn.Module, options: Options) -> GraphSpec:
    """Return the contract of one of the two graphs."""
    full, known = graphs.spec(model, options), shapes(model, options)
    image, img_shape, scale_factor = full.inputs
    features = tuple(_tensor(name, known[name], options, False) for name in region_maps.feature_names(model))
    meaning = 'x1 y1 x2 y2 of regions to look at, pixels of the network input; without an area: none'
    proposals = TensorSpec('proposals', 'float32', (image.axes[0], 'K', 4), meaning, 'pixel')
    if options.form == PROPOSALS:
        heads = tuple(_tensor(name, known[name], options, False) for name in graphs.proposal_names(model))
        inputs = image, dataclasses.replace(img_shape, unused=not graphs.clips_proposals(model))
        outputs = *features, dataclasses.replace(proposals, compare='detections'), *heads
    else:
        meaning = 'height and width before padding, which boxes are clipped to'
        size = dataclasses.replace(
            img_shape, meaning=meaning, default=None, positive=True, unused=not graphs.clips_regions(model)
        )
        inputs = *features, proposals, size, scale_factor
        inner = (_tensor(name, known[name], options, True) for name in inner_names(model, options))
        outputs = *full.outputs, *inner
    return GraphSpec(f'two_stage/{options.form}', inputs, tuple(outputs))


def stages(model: nn.Module, options: Options, fold: bool = True) -> list[Stage]:
    """Return the chain of modules of one of the two graphs."""
    own, features = fuse(model) if fold else model, region_maps.feature_names(model)
    if options.form == REGIONS:
        names = (*graphs.full_names(model, options), *inner_names(model, options))
        inputs = ('img_shape', 'scale_factor', 'proposals', *features)
        return [Stage('regions', RegionsForm(own), inputs, names)]
    network, heads = graphs.Network(own), graphs.proposal_names(model)
    return [
        Stage('network', network, ('input',), network.names),
        Stage('proposals', ProposalsForm(own), ('input', 'img_shape', *heads), ('proposals',)),
    ]


def example(model: nn.Module, options: Options) -> dict[str, torch.Tensor]:
    """Return what the second graph is traced with: seeded features, and windows of several sizes."""
    known, numbers = shapes(model, options), torch.Generator().manual_seed(SEED)
    found = {
        name: torch.randn((options.batch, *known[name][1:]), generator=numbers)
        for name in region_maps.feature_names(model)
    }
    size = torch.tensor([[options.height, options.width]] * options.batch, dtype=torch.float32)
    low = torch.rand((options.batch, 40, 2), generator=numbers) * 0.75
    boxes = torch.cat([low, low + 0.05 + 0.2 * torch.rand(low.shape, generator=numbers)], dim=2)
    boxes = boxes * size.flip(1).repeat(1, 2)[:, None]
    return dict(found, proposals=boxes, img_shape=size, scale_factor=torch.ones(options.batch, 4))
