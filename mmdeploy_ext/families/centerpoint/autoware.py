"""CenterPoint with pillars as Autoware's lidar_centerpoint loads it: two graphs, manifest, remapper.

The node decorates points and puts pillars on the map itself, so that the graphs begin and end elsewhere than
those of the deploy contract; boxes leave in the convention of mmdet3d 0.x.

Source: autoware_universe 656cdab8 and 5e12a711, autoware_lidar_centerpoint (names, shapes, formulas).

Glossary: V pillars, F values of a decorated point, K classes, H, W map.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdeploy_ext.consumers.autoware import centerpoint_rules as node
from mmdeploy_ext.consumers.autoware.boxes import OUTPUTS
from mmdeploy_ext.consumers.autoware.centerpoint import PILLARS, SPATIAL
from mmdeploy_ext.consumers.autoware.manifest import (
    REMAPPER,
    class_words,
    node_cells,
    parameter_text,
    remapper_text,
)
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.parts.lidar_graphs import DenseHead, head_spec
from mmdeploy_ext.families.parts.parts import parts_of, prefix_of
from mmdeploy_ext.families.parts.pillars import SCATTER

MEANINGS = dict(
    heatmap=('of each class', 'logit'),
    reg=('from the cell to the centre, x first', 'cell'),
    height=('of the centre', 'm'),
    dim=('width, length, height', 'log m'),
    rot=('sine, cosine of the yaw of mmdet3d 0.x', ''),
    vel=('x first', 'm/s'),
)
EXAMPLE = 3
"""Pillars of the traced input."""


class Encoder(nn.Module):
    """Features of pillars whose points the node has decorated."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.pfn_layers = encoder.pfn_layers

    def forward(self, input_features: Tensor) -> Tensor:
        """Return (V, 1, 32) of (V, 32, F); rows of zeros give what nobody reads."""
        for layer in self.pfn_layers:
            input_features = layer(input_features)
        return input_features


def node_outputs(task_outputs: tuple[list[dict[str, Tensor]], ...]) -> tuple[Tensor, ...]:
    """Return what a `CenterHead` of one task gives in the node's order and convention.

    mmdet3d 1.0 has length, width, height and a yaw from x to y; 0.x, which the node takes, has width, length,
    height and yaw' = -yaw - pi / 2: sine' = -cosine, cosine' = -sine.
    """
    ((found,),) = task_outputs
    length_first, rot = found['dim'], found['rot']
    order = torch.tensor([1, 0, 2], device=length_first.device)
    swapped = dict(dim=length_first.index_select(1, order), rot=torch.cat([-rot[:, 1:], -rot[:, :1]], dim=1))
    return tuple((found | swapped)[name] for name in OUTPUTS)


def graphs(model: nn.Module) -> list[Graph]:
    """Return the two graphs, in the order of `names`."""
    parts = parts_of(model)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    width = int(parts.voxel_encoder.in_channels)
    example = torch.rand(EXAMPLE, node.POINTS, width, generator=generator).to(device)
    taken = TensorSpec('input_features', 'float32', ('V', node.POINTS, width), 'decorated points, then zeros')
    given = TensorSpec(PILLARS, 'float32', ('V', 1, node.CHANNELS), 'of each pillar')
    encoder = Graph(
        node.ENCODER,
        Encoder(parts.voxel_encoder).eval(),
        GraphSpec(f'centerpoint/{node.ENCODER}', (taken,), (given,)),
        dict(input_features=example),
    )
    head = DenseHead(fuse(model), node_outputs).eval()
    shape = (1, node.CHANNELS, int(parts.middle_encoder.ny), int(parts.middle_encoder.nx))
    spatial = TensorSpec(SPATIAL, 'float32', shape, 'pillars on the map, zeros elsewhere')
    facts = [MEANINGS[name] for name in OUTPUTS]
    spec = head_spec(f'centerpoint/{node.HEAD}', head, spatial, OUTPUTS, facts)
    example = {SPATIAL: torch.rand(shape, generator=generator).to(device)}
    return [encoder, Graph(node.HEAD, head, spec, example)]


def between() -> tuple[TensorSpec, ...]:
    """Return what the node computes between the files."""
    return (TensorSpec(SPATIAL, 'float32', (), 'pillars on the map'),)


def check(filename: str, model: Mapping[str, Any]) -> None:
    """Raise ConfigError, which lists all that differs, for a config that does not fit the node."""
    found = list(_differs(model))
    if found:
        raise ConfigError(
            f'{filename}: --contract autoware: lidar_centerpoint cannot take this model: {"; ".join(found)}; '
            f'projects/configs/Autoware/centerpoint_pillar032_nus.py is one that fits'
        )
    tasks = model[f'{prefix_of(model)}bbox_head']['tasks']
    class_words(tasks[0]['class_names'], node.CLASSES, f'{filename}: class_names of the task')


def _differs(model: Mapping[str, Any]) -> list[str]:
    """Return what of a config's model the node has otherwise: constants, and parts that it computes."""
    prefix = prefix_of(model)
    layer, encoder, head = (
        model[f'{prefix}{name}'] for name in ('voxel_layer', 'voxel_encoder', 'bbox_head')
    )
    kinds = model[f'{prefix}middle_encoder']['type'], encoder['type']
    if kinds != (SCATTER, 'PillarFeatureNet'):
        return [
            f'{prefix}middle_encoder and {prefix}voxel_encoder are {" and ".join(kinds)}, expected {SCATTER} '
            f'and PillarFeatureNet'
        ]
    width, coder = encoder.get('in_channels', 4), head['bbox_coder']
    heads = {name: one[0] for name, one in head['common_heads'].items()}
    rows = [
        ('max_num_points of the voxel layer', layer['max_num_points'], node.POINTS),
        ('channels of a pillar', list(encoder.get('feat_channels', (64,)))[-1], node.CHANNELS),
        ('tasks of the head', len(head['tasks']), 1),
        ('legacy of the encoder', bool(encoder.get('legacy', True)), False),
        ('mode of the encoder', encoder.get('mode', 'max'), 'max'),
        ('with_distance of the encoder', bool(encoder.get('with_distance', False)), False),
        ('with_cluster_center of the encoder', bool(encoder.get('with_cluster_center', True)), True),
        ('with_voxel_center of the encoder', bool(encoder.get('with_voxel_center', True)), True),
        ('norm_bbox of the head', bool(head.get('norm_bbox', True)), True),
        ('common_heads', heads, dict(reg=2, height=1, dim=3, rot=2, vel=2)),
        ('pc_range of the coder', list(coder['pc_range'][:2]), list(layer['point_cloud_range'][:2])),
    ]
    said = [f'{what} {got}, expected {wanted}' for what, got, wanted in rows if got != wanted]
    if width not in (4, 5):
        said.append(
            f'in_channels of the encoder {width}, expected 4 (x, y, z, time lag) or 5 (with intensity)'
        )
    return [*said, *_grid(layer, model[f'{prefix}middle_encoder'])]


def _grid(layer: Mapping[str, Any], scatter: Mapping[str, Any]) -> list[str]:
    """Return axes on which the node counts other cells, and a voxel that is no pillar."""
    cloud, size = layer['point_cloud_range'], layer['voxel_size']
    said = []
    for axis, place in ((0, 1), (1, 0)):
        cells = node_cells(cloud[axis], cloud[axis + 3], size[axis])
        if cells != scatter['output_shape'][place]:
            said.append(
                f'{scatter["output_shape"][place]} cells along {"xy"[axis]}, and {cells} by the float32 '
                f'quotient of the node: change point_cloud_range or voxel_size'
            )
    if abs(size[2] - (cloud[5] - cloud[2])) > 1e-4:
        said.append(f'voxels {size[2]} m high, expected {cloud[5] - cloud[2]:g} m, the height of the range')
    return said


def parameters(model: nn.Module, classes: Sequence[str]) -> dict[str, Any]:
    """Return the manifest of a model that `check` has nothing against; `classes` are names by label.

    A class that the node does not know raises ConfigError.
    """
    parts = parts_of(model)
    layer, head = parts.voxel_layer, parts.head
    cloud = [float(value) for value in layer.point_cloud_range]
    names = class_words(classes, node.CLASSES, 'CLASSES of the checkpoint or config')
    furthest = math.hypot(*(max(abs(cloud[axis]), abs(cloud[axis + 3])) for axis in (0, 1)))
    least = float(head.bbox_coder.score_threshold or 0.0)
    most = layer.max_voxels[1] if isinstance(layer.max_voxels, list | tuple) else layer.max_voxels
    width = int(parts.voxel_encoder.in_channels)
    return dict(
        version='4.1',
        encoder_onnx_path=f'{node.ENCODER}.onnx',
        encoder_engine_path=f'{node.ENCODER}.engine',
        head_onnx_path=f'{node.HEAD}.onnx',
        head_engine_path=f'{node.HEAD}.engine',
        class_remapper_param_path=REMAPPER,
        trt_precision='fp32',
        model_params=dict(
            class_names=names,
            has_twist=True,
            point_feature_size=node.POINT_WIDTH[width],
            has_variance=False,
            max_voxel_size=int(most),
            point_cloud_range=cloud,
            voxel_size=[float(value) for value in layer.voxel_size],
            downsample_factor=int(head.bbox_coder.out_size_factor),
            encoder_in_feature_size=width,
            yaw_norm_thresholds=[0.0] * len(names),
            detection_score_thresholds=dict(
                distance_bin_upper_limits=[float(math.ceil(furthest) + 1)],
                min_confidence_scores={name: [least] for name in names},
            ),
        ),
    )


def companions(model: nn.Module, classes: Sequence[str]) -> dict[str, str]:
    """Return name -> text of the files beside the graphs."""
    return {node.MANIFEST: parameter_text(parameters(model, classes)), REMAPPER: remapper_text()}


def manifest_differences(folder: Path, model: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a manifest says otherwise than a config's model that no result of a proof shows."""
    import yaml

    (node_parameters,) = yaml.safe_load((folder / node.MANIFEST).read_text()).values()
    written = node_parameters['ros__parameters']
    prefix = prefix_of(model)
    voxels = model[f'{prefix}voxel_layer']['max_voxels']
    tasks = model[f'{prefix}bbox_head']['tasks']
    names = [str(name).upper() for task in tasks for name in task['class_names']]
    own = written['model_params']
    for key, got, expected in (
        ('trt_precision', written['trt_precision'], 'fp32'),
        ('max_voxel_size', own['max_voxel_size'], voxels[-1] if isinstance(voxels, list | tuple) else voxels),
        ('class_names', [name.replace('MOTORBIKE', 'MOTORCYCLE') for name in own['class_names']], names),
    ):
        if got != expected:
            yield f'{node.MANIFEST}: {key} is {got}, the config has {expected}'
