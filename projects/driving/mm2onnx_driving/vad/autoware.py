"""VAD as Autoware's tensorrt_vad loads it: three graphs by its names, and two files of parameters.

Source: autoware_universe, autoware_tensorrt_vad (lib/networks/{backbone,head}.cpp, src/vad_node.cpp@048de72e,
test/test_param_loader.cpp@df44cd5f; facts, no code).

Glossary: N cameras, H, W network input in pixels, h, w feature map, C channels, Q cells of the view.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mm2onnx_driving.autoware.contract import AutowareContract, companion_texts, published
from mm2onnx_driving.autoware.nodes import VAD, VAD_LAYERS
from mm2onnx_driving.common.bev import with_sampling
from mm2onnx_driving.common.camera import camera_graphs, feature_maps, map_shapes
from mm2onnx_driving.layers.bev_steps import LastView, encode_view, rotate_view, rotation_in_graph
from mm2onnx_driving.vad.family import further_specs, spec
from mm2onnx_driving.vad.runtime import FIRST, NEXT
from mm2onnx_driving.vad.runtime import OUTPUTS as PORTABLE
from mm2onnx_driving.vad.steps import OUTPUTS, predict
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.runtime.bev_motion import CAN_BUS, YAW_DEG
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

FEATURES = ColumnGroup(rtol=1e-5, atol=5e-5)
CONFIDENCE, COLOURS, STEP_S = 0.5, (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5, 0.5, 0.5), 0.5
"""Thresholds, colours of lines and seconds between points of a plan: ours, for the parameters."""
FOLDER = '$(var model_path)'


class Backbone(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, img: Tensor) -> tuple[Tensor]:
        """Return the feature map (N, 1, C, h, w) of pictures (N, 3, H, W)."""
        return (feature_maps(self.model, img)[0][:, None],)


class FirstHead(nn.Module):
    """A feature map (1, N, C, h, w), rig and motion to the view and `model.steps.OUTPUTS`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.head, self.size = model.pts_bbox_head, tuple(model.input_sizes[1:])

    def forward(self, features: Tensor, can_bus: Tensor, lidar2img: Tensor, shift: Tensor) -> Any:
        cells = self.head.bev_embedding.weight.new_zeros(1, *self.head.bev_embedding.weight.shape)
        last = LastView(cells, shift[0], shift.new_zeros(1), True)
        return self.found(features, can_bus, lidar2img, last)

    def found(self, features: Tensor, can_bus: Tensor, lidar2img: Tensor, last: LastView) -> Any:
        view = encode_view(self.head, [features[0]], can_bus[0], lidar2img, self.size, last)
        return view.transpose(0, 1), *predict(self.head, view)


class NextHead(FirstHead):
    """The same with the last view (Q, 1, C), which the graph turns."""

    def forward(
        self, features: Tensor, can_bus: Tensor, lidar2img: Tensor, shift: Tensor, prev_bev: Tensor
    ) -> Any:
        head, cells = self.head, prev_bev[:, 0]
        if head.transformer.rotate_prev_bev:
            center, size = cells.new_tensor(list(head.transformer.rotate_center)), (head.bev_h, head.bev_w)
            cells = rotate_view(cells, rotation_in_graph(can_bus[0, YAW_DEG], center, *size), *size)
        last = LastView(cells[None], shift[0], shift.new_ones(1), True)
        return self.found(features, can_bus, lidar2img, last)


def specs(model: nn.Module) -> list[GraphSpec]:
    portable, (cameras, height, width) = spec(model), model.input_sizes
    ((channels, rows, columns),) = map_shapes(model, height, width)
    further = {tensor.name: tensor for tensor in further_specs(model)}

    def tensor(name: str, axes: Sequence[int], meaning: str, **more: Any) -> TensorSpec:
        return TensorSpec(name, 'float32', tuple(axes), meaning, **more)

    found = tensor(
        'out.0', (cameras, 1, channels, rows, columns), 'features of the cameras', groups=(FEATURES,)
    )
    frame = (
        tensor('mlvl_feats.0', (1, cameras, channels, rows, columns), 'the same numbers'),
        tensor('img_metas.0[can_bus]', (1, CAN_BUS), portable.tensor('can_bus').meaning, single=True),
        tensor('img_metas.0[lidar2img]', (cameras, 4, 4), portable.tensor('lidar2img').meaning, single=True),
        tensor('img_metas.0[shift]', (1, 2), portable.tensor('bev_shift').meaning, single=True),
    )
    last = tensor('prev_bev', portable.tensor('prev_bev').axes, "the last frame's out.bev_embed")
    outputs = tuple(
        dataclasses.replace(further.get(name) or portable.tensor(name), name=f'out.{name}')
        for name in ('bev_embed', *OUTPUTS)
    )
    return [
        GraphSpec('vad/autoware backbone', (portable.tensor('img'),), (found,)),
        GraphSpec('vad/autoware head_no_prev', frame, outputs),
        GraphSpec('vad/autoware head', (*frame, last), outputs, (('out.bev_embed', 'prev_bev'),)),
    ]


class VadFiles(AutowareContract):
    node = VAD

    def check(self, cfg: Any) -> None:
        transformer = cfg.model.pts_bbox_head.transformer
        for name in ('decoder', 'map_decoder'):
            if (layers := transformer[name].num_layers) != VAD_LAYERS:
                raise ConfigError(
                    f'{cfg.filename}: --contract autoware: model.pts_bbox_head.transformer.{name}.num_layers='
                    f'{layers}; the node takes outputs of {VAD_LAYERS} layers'
                )

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        modules = Backbone(model), FirstHead(model), NextHead(model)
        parts = list(zip(self.files, modules, specs(model), strict=True))
        return [with_sampling(graph, options) for graph in camera_graphs(model, options, parts)]

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return tuple(spec(model).tensor(name) for name in PORTABLE)

    def companions(self, model: nn.Module) -> dict[str, str]:
        head, rule = model.pts_bbox_head, model.rule
        cameras, height, width = model.input_sizes
        ((channels, rows, _),) = map_shapes(model, height, width)
        lines = ['divider', 'ped_crossing', 'boundary'][: head.map_cls_branches[-1][-1].out_features]

        def net(name: str) -> dict[str, Any]:
            paths = dict(onnx_path=f'{FOLDER}/{name}.onnx', engine_path=f'{FOLDER}/{name}.engine')
            return dict(name=name, precision='fp32', **paths)

        def head_net(name: str) -> dict[str, Any]:
            inputs = dict(input_feature='mlvl_feats.0', net='backbone', name='out.0')
            return dict(net(name), inputs=inputs)

        thresholds = dict(
            map_confidence_thresholds=[CONFIDENCE] * len(lines),
            object_confidence_thresholds=[CONFIDENCE] * len(model.CLASSES),
        )
        parameters = dict(
            node_params=dict(num_cameras=cameras, use_raw=[True] * cameras),
            sync_params=dict(front_camera_id=0, sync_tolerance_ms=100.0),
            interface_params=dict(
                trajectory_timestep=STEP_S,
                detection_range=[float(value) for value in head.pc_range],
                map_colors=list(COLOURS),
                input_image_width=rule.source[1],
                input_image_height=rule.source[0],
            ),
            model_param_path=f'{FOLDER}/{VAD.model_manifest}',
            model_params=dict(
                default_command=2,
                plugins_path='$(var plugins_path)',
                nets=dict(backbone=net('backbone'), head=head_net(NEXT), head_no_prev=head_net(FIRST)),
                **thresholds,
            ),
            class_mapping=published(VAD.classes, model.CLASSES),
        )
        architecture = dict(
            bev=dict(
                height=head.bev_h, width=head.bev_w, feature_dim=channels, downsample_factor=height // rows
            ),
            transformer=dict(num_decoder_layers=len(head.cls_branches)),
            prediction=dict(
                num_queries=head.query_embedding.num_embeddings,
                num_classes=head.cls_branches[-1][-1].out_features,
                bbox_pred_dim=head.code_size,
                trajectory_modes=head.fut_mode,
                timesteps=head.fut_ts,
            ),
            planning=dict(ego_commands=head.ego_fut_mode, timesteps=head.fut_ts),
            map=dict(
                num_queries=head.map_instance_embedding.num_embeddings,
                num_classes=len(lines),
                points_per_polyline=head.map_pts_embedding.num_embeddings,
            ),
            vehicle_state=dict(can_bus_dim=CAN_BUS),
        )
        content = dict(
            major_version=0,
            minor_version=1,
            model_name='vad',
            image_normalization=dict(mean=[*map(float, rule.mean)], std=[*map(float, rule.std)]),
            input_specs=dict(target_image_width=width, target_image_height=height),
            class_definitions=dict(map_classes=lines, object_classes=[str(name) for name in model.CLASSES]),
            network_architecture=architecture,
        )
        return companion_texts(VAD, parameters) | {VAD.model_manifest: json.dumps(content, indent=1)}
