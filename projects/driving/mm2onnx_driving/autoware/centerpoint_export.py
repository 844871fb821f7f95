"""CenterPoint with pillars as Autoware's lidar_centerpoint loads it: two graphs, manifest, remapper.

Source: autoware_universe 656cdab8 and 5e12a711, autoware_lidar_centerpoint (names, shapes, formulas).

Glossary: V pillars, F values of a decorated point: the point, and its distances from the pillar's mean and
centre.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox.coders.centerpoint_bbox_coders import CenterPointBBoxCoder
from torch import Tensor, nn

from mm2onnx_driving.autoware.boxes import OUTPUTS, suppressed
from mm2onnx_driving.autoware.centerpoint import ENCODER, HEAD, PILLARS, SPATIAL
from mm2onnx_driving.autoware.contract import AutowareContract, companion_texts, in_words_of
from mm2onnx_driving.autoware.nodes import CENTERPOINT, CHANNELS, POINT_WIDTH, POINTS, REMAPPER
from mm2onnx_driving.folder_rules import node_cells
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.centerpoint.family import CenterPointReference
from mmdeploy_ext.families.common.lidar_graphs import DenseHead, head_spec
from mmdeploy_ext.families.common.lidar_parts import collected, parts_of, prefix_of
from mmdeploy_ext.families.common.pillars import SCATTER
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import StepResult, Sweep
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec

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
FAR_M = 1e6
"""Limit of a range that no box reaches, metres."""


class PillarEncoder(nn.Module):
    """From points, decorated by the node, to features of pillars."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.pfn_layers = encoder.pfn_layers

    def forward(self, input_features: Tensor) -> Tensor:
        for layer in self.pfn_layers:
            input_features = layer(input_features)
        return input_features


def node_outputs(task_outputs: tuple[list[dict[str, Tensor]], ...]) -> tuple[Tensor, ...]:
    """Return the outputs of a `CenterHead` of one task in the node's order and convention."""
    ((outputs,),) = task_outputs
    length_first, rot = outputs['dim'], outputs['rot']
    order = torch.tensor([1, 0, 2], device=length_first.device)
    swapped = dict(dim=length_first.index_select(1, order), rot=torch.cat([-rot[:, 1:], -rot[:, :1]], dim=1))
    return tuple((outputs | swapped)[name] for name in OUTPUTS)


def graphs(model: nn.Module) -> list[Graph]:
    """Return the encoder of pillars, and the graph behind their map (backbone, neck, head)."""
    parts = parts_of(model)
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    decorated_values = int(parts.voxel_encoder.in_channels)
    example = torch.rand(EXAMPLE, POINTS, decorated_values, generator=generator).to(device)
    points = TensorSpec(
        'input_features', 'float32', ('V', POINTS, decorated_values), 'decorated points, then zeros'
    )
    pillars = TensorSpec(PILLARS, 'float32', ('V', 1, CHANNELS), 'of each pillar')
    encoder = Graph(
        ENCODER,
        PillarEncoder(parts.voxel_encoder).eval(),
        GraphSpec(f'centerpoint/{ENCODER}', (points,), (pillars,)),
        dict(input_features=example),
    )
    head = DenseHead(model, node_outputs).eval()
    shape = (1, CHANNELS, int(parts.middle_encoder.ny), int(parts.middle_encoder.nx))
    spatial = TensorSpec(SPATIAL, 'float32', shape, 'pillars on the map, zeros elsewhere')
    outputs = {name: MEANINGS[name] for name in OUTPUTS}
    spec = head_spec(f'centerpoint/{HEAD}', head, spatial, outputs)
    example = {SPATIAL: torch.rand(shape, generator=generator).to(device)}
    return [encoder, Graph(HEAD, head, spec, example)]


class NodeReference(CenterPointReference):
    """The unpatched detector of one task, with the boxes that the node selects."""

    def step(self, sweep: Sweep) -> StepResult:
        """Run one sweep; raises the errors of `LidarReference.step`.

        Outputs: `PILLARS`, features (P, 1, C) by ascending y, then x; `SPATIAL`, the map (1, C, H, W); and
        `CenterHead`'s `OUTPUTS` in the node's convention, with log width before log length and mmdet3d 0.x's
        yaw.
        """

        def pillar_features(inputs: tuple[torch.Tensor, ...], rows: torch.Tensor) -> dict[str, np.ndarray]:
            cells = inputs[2].cpu().numpy()  # sample, z, y, x
            return {PILLARS: rows.cpu().numpy()[np.lexsort((cells[:, 3], cells[:, 2])), None]}

        with collected({self.parts.voxel_encoder: pillar_features}) as pillars:
            raw = super().step(sweep).outputs
        outputs = {name: raw[f'{name}_0'] for name in OUTPUTS}
        objects = self._objects({name: torch.from_numpy(value) for name, value in outputs.items()})
        outputs['dim'] = outputs['dim'][:, [1, 0, 2]]
        outputs['rot'] = -outputs['rot'][:, ::-1]
        return StepResult({PILLARS: pillars[PILLARS], SPATIAL: raw['bev'], **outputs}, objects)

    def _objects(self, raw: Mapping[str, torch.Tensor]) -> Detections3D:
        heat = raw['heatmap'].sigmoid()
        heat = heat * (heat == heat.amax(1, keepdim=True))  # the node looks at the best class of a cell alone
        classes = [self._decoded(heat[:, index : index + 1], raw) for index in range(heat.shape[1])]
        boxes, scores = (
            np.concatenate([decoded[name] for decoded in classes]) for name in ('bboxes', 'scores')
        )
        labels = np.repeat(np.arange(len(classes)), [len(decoded['scores']) for decoded in classes])
        threshold = np.float32(self.parts.head.bbox_coder.score_threshold or 0.0)
        objects = Detections3D(boxes, scores, labels)[(scores >= threshold) & (scores > 0)].best_first()
        objects.boxes[:, 2] -= objects.boxes[:, 5] / 2  # z at the bottom
        return suppressed(objects, [str(name).upper() for name in self.model.CLASSES])

    def _decoded(self, heat: torch.Tensor, raw: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        head_coder: Any = self.parts.head.bbox_coder
        coder = CenterPointBBoxCoder(
            head_coder.pc_range,
            head_coder.out_size_factor,
            head_coder.voxel_size,
            post_center_range=[-FAR_M] * 3 + [FAR_M] * 3,
            max_num=heat[0, 0].numel(),
            code_size=head_coder.code_size,
        )
        sine, cosine, sizes = raw['rot'][:, :1], raw['rot'][:, 1:], raw['dim'].exp()
        (boxes,) = coder.decode(
            heat, sine, cosine, raw['height'], sizes, raw['vel'], reg=raw['reg'], task_id=0
        )
        return {name: boxes[name].numpy() for name in ('bboxes', 'scores')}


class CenterPointFiles(AutowareContract):
    node = CENTERPOINT

    def check(self, cfg: Any) -> None:
        differences = _differences(cfg.model)
        if differences:
            raise ConfigError(
                f'{cfg.filename}: --contract autoware: lidar_centerpoint cannot load this model: '
                f'{"; ".join(differences)}; projects/configs/Autoware/centerpoint_pillar032_nus.py is a '
                'config that fits'
            )
        tasks = cfg.model[f'{prefix_of(cfg.model)}bbox_head']['tasks']
        class_words(tasks[0]['class_names'], f'{cfg.filename}: class_names of the task')

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        if model.box_convention != '1.x':
            raise ConfigError(
                f'--contract autoware: the checkpoint has boxes of mmdet3d {model.box_convention}, '
                'expected 1.x, which the graph converts to the boxes of the node'
            )
        return graphs(model)

    def reference(self, model: nn.Module) -> NodeReference:
        return NodeReference(model)

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return (TensorSpec(SPATIAL, 'float32', (), 'pillars on the map'),)

    def companions(self, model: nn.Module) -> dict[str, str]:
        parts = parts_of(model)
        layer, head = parts.voxel_layer, parts.head
        point_range = [float(value) for value in layer.point_cloud_range]
        names = class_words(model.CLASSES, 'CLASSES of the checkpoint or config')
        furthest = math.hypot(*(max(abs(point_range[axis]), abs(point_range[axis + 3])) for axis in (0, 1)))
        threshold = float(head.bbox_coder.score_threshold or 0.0)
        max_voxels = layer.max_voxels[1] if isinstance(layer.max_voxels, list | tuple) else layer.max_voxels
        decorated_values = int(parts.voxel_encoder.in_channels)
        parameters = dict(
            version='4.1',
            encoder_onnx_path=f'{ENCODER}.onnx',
            encoder_engine_path=f'{ENCODER}.engine',
            head_onnx_path=f'{HEAD}.onnx',
            head_engine_path=f'{HEAD}.engine',
            class_remapper_param_path=REMAPPER,
            trt_precision='fp32',
            model_params=dict(
                class_names=names,
                has_twist=True,
                point_feature_size=POINT_WIDTH[decorated_values],
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
        return companion_texts(CENTERPOINT, parameters)


def class_words(names: Sequence[str], place: str) -> list[str]:
    """Return class names in the node's words; ConfigError for a class that it would publish as UNKNOWN."""
    translated, unknown = in_words_of(CENTERPOINT.classes, names)
    if unknown:
        raise ConfigError(
            f'{place} has {", ".join(unknown)}, which the node publishes as UNKNOWN; it supports '
            f'{", ".join(CENTERPOINT.classes)}: rename or remove the classes'
        )
    return translated


def _differences(model: Mapping[str, Any]) -> list[str]:
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
        ('max_num_points of the voxel layer', layer['max_num_points'], POINTS),
        ('channels of a pillar', list(encoder.get('feat_channels', (64,)))[-1], CHANNELS),
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
                f"{columns} cells along {name}, but {cells} in the node's float32 division: change "
                'point_cloud_range or voxel_size'
            )
    height = point_range[5] - point_range[2]
    if abs(voxel_size[2] - height) > 1e-4:
        differences.append(
            f'voxels are {voxel_size[2]} m high, expected the height of the range, {height:g} m'
        )
    return differences
