"""CenterPoint with pillars as Autoware's lidar_centerpoint loads it: two graphs, manifest, remapper.

The node decorates points and puts pillars on the map itself, so that the graphs begin and end elsewhere than
those of the deploy contract; boxes leave in the convention of mmdet3d 0.x.

Source: autoware_universe 656cdab8 and 5e12a711, autoware_lidar_centerpoint (names, shapes, formulas).

Glossary: V pillars, F values of a decorated point: those of the point, and its distances from the mean of the
pillar's points and from the pillar's centre.
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
    MODEL_PREFIX,
    REMAPPER,
    class_words,
    node_cells,
    parameter_text,
    remapper_text,
    value_differences,
)
from mmdeploy_ext.contract.spec import Graph, GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.parts.lidar_graphs import DenseHead, head_spec
from mmdeploy_ext.families.parts.lidar_parts import parts_of, prefix_of
from mmdeploy_ext.families.parts.pillars import SCATTER
from mmdeploy_ext.families.parts.voxel_grid import rule_of_layer

MEANINGS = dict(
    heatmap=('of each class', 'logit'),
    reg=('from the cell to the centre, x first', 'cell'),
    height=('of the centre', 'm'),
    dim=('width, length, height', 'log m'),
    rot=('sine, cosine of the yaw of mmdet3d 0.x', ''),
    vel=('x first', 'm/s'),
)
"""Output of the head -> its meaning and unit."""
EXAMPLE = 3
"""Pillars of the traced input."""


class PillarEncoder(nn.Module):
    """From decorated points, which the node makes, to features of pillars."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.pfn_layers = encoder.pfn_layers

    def forward(self, input_features: Tensor) -> Tensor:
        """Return the features (V, 1, 32) of pillars of 32 decorated points (V, 32, F)."""
        for layer in self.pfn_layers:
            input_features = layer(input_features)
        return input_features


def node_outputs(task_outputs: tuple[list[dict[str, Tensor]], ...]) -> tuple[Tensor, ...]:
    """Return the outputs of a `CenterHead` of one task in the node's order and convention.

    `task_outputs` is what `CenterHead.forward` returns: ([outputs by name],) for one task of one level.
    mmdet3d 1.0 has length, width, height and a yaw from x to y; 0.x, which the node takes, has width, length,
    height and yaw' = -yaw - pi / 2: sine' = -cosine, cosine' = -sine.
    """
    ((outputs,),) = task_outputs
    length_first, rot = outputs['dim'], outputs['rot']
    order = torch.tensor([1, 0, 2], device=length_first.device)
    swapped = dict(dim=length_first.index_select(1, order), rot=torch.cat([-rot[:, 1:], -rot[:, :1]], dim=1))
    return tuple((outputs | swapped)[name] for name in OUTPUTS)


def graphs(model: nn.Module) -> list[Graph]:
    """Return the two graphs: the encoder of pillars, and what follows their map (backbone, neck, head)."""
    parts = parts_of(model)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    decorated_values = int(parts.voxel_encoder.in_channels)
    example = torch.rand(EXAMPLE, node.POINTS, decorated_values, generator=generator).to(device)
    points = TensorSpec(
        'input_features', 'float32', ('V', node.POINTS, decorated_values), 'decorated points, then zeros'
    )
    pillars = TensorSpec(PILLARS, 'float32', ('V', 1, node.CHANNELS), 'of each pillar')
    encoder = Graph(
        node.ENCODER,
        PillarEncoder(parts.voxel_encoder).eval(),
        GraphSpec(f'centerpoint/{node.ENCODER}', (points,), (pillars,)),
        dict(input_features=example),
    )
    head = DenseHead(model, node_outputs).eval()
    shape = (1, node.CHANNELS, int(parts.middle_encoder.ny), int(parts.middle_encoder.nx))
    spatial = TensorSpec(SPATIAL, 'float32', shape, 'pillars on the map, zeros elsewhere')
    outputs = {name: MEANINGS[name] for name in OUTPUTS}
    spec = head_spec(f'centerpoint/{node.HEAD}', head, spatial, outputs)
    example = {SPATIAL: torch.rand(shape, generator=generator).to(device)}
    return [encoder, Graph(node.HEAD, head, spec, example)]


def runner_output_specs() -> tuple[TensorSpec, ...]:
    """Return the spec, with axes () for any, of the tensor that the node computes between the two files."""
    return (TensorSpec(SPATIAL, 'float32', (), 'pillars on the map'),)


def check(filename: str, model: Mapping[str, Any]) -> None:
    """Raise ConfigError, which lists the differences, for a config that does not fit the node.

    If the encoders are of other types, that alone is listed; names of classes are listed only if there is no
    other difference. `filename` is that of the config, for messages; `model` its entry `model`.
    """
    differences = _differences(model)
    if differences:
        raise ConfigError(
            f'{filename}: --contract autoware: lidar_centerpoint cannot take this model: '
            f'{"; ".join(differences)}; '
            f'projects/configs/Autoware/centerpoint_pillar032_nus.py is one that fits'
        )
    tasks = model[f'{prefix_of(model)}bbox_head']['tasks']
    class_words(tasks[0]['class_names'], node.CLASSES, f'{filename}: class_names of the task')


def _differences(model: Mapping[str, Any]) -> list[str]:
    """Return how a config's model differs from the constants and computations of the node."""
    prefix = prefix_of(model)
    layer, encoder, head = (
        model[f'{prefix}{name}'] for name in ('voxel_layer', 'voxel_encoder', 'bbox_head')
    )
    scatter = model[f'{prefix}middle_encoder']
    types = scatter['type'], encoder['type']
    if types != (SCATTER, 'PillarFeatureNet'):
        return [
            f'{prefix}middle_encoder and {prefix}voxel_encoder are {" and ".join(types)}, expected {SCATTER} '
            f'and PillarFeatureNet'
        ]
    point_values, coder = encoder.get('in_channels', 4), head['bbox_coder']
    channels_of_heads = {name: layers[0] for name, layers in head['common_heads'].items()}
    settings = [
        ('max_num_points of the voxel layer', layer['max_num_points'], node.POINTS),
        ('channels of a pillar', list(encoder.get('feat_channels', (64,)))[-1], node.CHANNELS),
        ('tasks of the head', len(head['tasks']), 1),
        ('legacy of the encoder', bool(encoder.get('legacy', True)), False),
        ('mode of the encoder', encoder.get('mode', 'max'), 'max'),
        ('with_distance of the encoder', bool(encoder.get('with_distance', False)), False),
        ('with_cluster_center of the encoder', bool(encoder.get('with_cluster_center', True)), True),
        ('with_voxel_center of the encoder', bool(encoder.get('with_voxel_center', True)), True),
        ('norm_bbox of the head', bool(head.get('norm_bbox', True)), True),
        ('common_heads', channels_of_heads, dict(reg=2, height=1, dim=3, rot=2, vel=2)),
        ('pc_range of the coder', list(coder['pc_range'][:2]), list(layer['point_cloud_range'][:2])),
    ]
    differences = [
        f'{name} {value}, expected {expected}' for name, value, expected in settings if value != expected
    ]
    if point_values not in (4, 5):
        differences.append(
            f'in_channels of the encoder {point_values}, expected 4 (x, y, z, time lag) or 5 (with intensity)'
        )
    point_range, voxel_size = layer['point_cloud_range'], layer['voxel_size']
    for axis, name, columns in ((0, 'x', scatter['output_shape'][1]), (1, 'y', scatter['output_shape'][0])):
        cells = node_cells(point_range[axis], point_range[axis + 3], voxel_size[axis])
        if cells != columns:
            differences.append(
                f'{columns} cells along {name}, and {cells} by the float32 quotient of the node: change '
                f'point_cloud_range or voxel_size'
            )
    height = point_range[5] - point_range[2]
    if abs(voxel_size[2] - height) > 1e-4:
        differences.append(f'voxels {voxel_size[2]} m high, expected {height:g} m, the height of the range')
    return differences


def parameters(model: nn.Module, classes: Sequence[str]) -> dict[str, Any]:
    """Return name -> value of the parameters in the node's manifest, for a model that `check` accepts.

    The parameters are the version, the file names of graphs, engines and remapper, `trt_precision`, and
    `model_params` with classes, ranges, voxels and thresholds. `classes` are the names of the classes, in the
    order of the labels. A class that the node does not know raises ConfigError.
    """
    parts = parts_of(model)
    layer, head = parts.voxel_layer, parts.head
    point_range = [float(value) for value in layer.point_cloud_range]
    names = class_words(classes, node.CLASSES, 'CLASSES of the checkpoint or config')
    furthest = math.hypot(*(max(abs(point_range[axis]), abs(point_range[axis + 3])) for axis in (0, 1)))
    threshold = float(head.bbox_coder.score_threshold or 0.0)
    max_voxels = layer.max_voxels[1] if isinstance(layer.max_voxels, list | tuple) else layer.max_voxels
    decorated_values = int(parts.voxel_encoder.in_channels)
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
            point_feature_size=node.POINT_WIDTH[decorated_values],
            has_variance=False,
            max_voxel_size=int(max_voxels),
            point_cloud_range=point_range,
            voxel_size=[float(value) for value in layer.voxel_size],
            downsample_factor=int(head.bbox_coder.out_size_factor),
            encoder_in_feature_size=decorated_values,
            yaw_norm_thresholds=[0.0] * len(names),
            detection_score_thresholds=dict(
                distance_bin_upper_limits=[float(math.ceil(furthest) + 1)],
                min_confidence_scores={name: [threshold] for name in names},
            ),
        ),
    )


def companions(model: nn.Module, classes: Sequence[str]) -> dict[str, str]:
    """Return file name -> text of the files beside the graphs; `classes` as in `parameters`."""
    return {node.MANIFEST: parameter_text(parameters(model, classes)), REMAPPER: remapper_text()}


def manifest_differences(folder: Path, model: Mapping[str, Any]) -> Iterator[str]:
    """Yield how the manifest in a folder differs from a config's model in what no result of a proof shows.

    These are `trt_precision`, `max_voxel_size` and `class_names`; of a manifest that cannot be read all three
    differ.
    """
    prefix = prefix_of(model)
    layer = rule_of_layer(model[f'{prefix}voxel_layer'], 0, 'zyx')
    tasks = model[f'{prefix}bbox_head']['tasks']
    names = [str(name).upper() for task in tasks for name in task['class_names']]
    expected = {
        'trt_precision': 'fp32',
        f'{MODEL_PREFIX}max_voxel_size': layer.max_voxels,
        f'{MODEL_PREFIX}class_names': [dict(MOTORCYCLE='MOTORBIKE').get(name, name) for name in names],
    }
    yield from value_differences(folder / node.MANIFEST, expected)
