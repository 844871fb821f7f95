"""SparseDrive's graphs: image features, heads of a first frame, heads of later frames."""

from torch import Tensor, nn

from mm2onnx_driving.common.camera_graphs import camera_graphs, feature_maps, map_shapes
from mm2onnx_driving.common.instance_graphs import (
    ANCHOR_COLUMNS,
    ANCHORS,
    VALUES,
    InstanceNetwork,
    interval_spec,
    near_spec,
)
from mm2onnx_driving.layers.sparse_instances.steps import NUMBERS, feature_rows
from mm2onnx_driving.sparsedrive.facts import MEMORY, OUTPUTS
from mm2onnx_driving.sparsedrive.runtime import FILES
from mm2onnx_driving.sparsedrive.steps import Moment, ego_feature, run_frame
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

ROWS = ColumnGroup(rtol=1e-5, atol=5e-5)
INTEGERS = ('instance_id', 'prev_id', 'queue_period', 'ego_period')


class Features(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, img: Tensor) -> tuple[Tensor, Tensor]:
        maps = feature_maps(self.model, img)
        queue = self.model.head.motion_plan_head.instance_queue
        return feature_rows(maps), ego_feature(queue, maps[-1][:1])


class FirstFrame(InstanceNetwork):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.head = model.head

    def run(
        self, feature: Tensor, ego: Tensor, lidar2img: Tensor, command: Tensor, *past: object
    ) -> tuple[Tensor, ...]:
        outputs, post = run_frame(self.head, self.pictures(feature, lidar2img), ego, command, *past)
        return (*(outputs[name] for name in OUTPUTS), *(post[name] for name in MEMORY))

    def forward(
        self, feature: Tensor, ego_feature: Tensor, lidar2img: Tensor, command: Tensor
    ) -> tuple[Tensor, ...]:
        return self.run(feature, ego_feature, lidar2img, command, None, None)


class NextFrame(FirstFrame):
    def forward(
        self,
        feature: Tensor,
        ego_feature: Tensor,
        lidar2img: Tensor,
        command: Tensor,
        gap: Tensor,
        time_interval: Tensor,
        near: Tensor,
        motion: Tensor,
        *memory: Tensor,
    ) -> tuple[Tensor, ...]:
        moment = Moment(time_interval, near > 0.5, motion, gap)
        return self.run(
            feature, ego_feature, lidar2img, command, dict(zip(MEMORY, memory, strict=True)), moment
        )


def memory_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    bank, lines = (part.instance_bank for part in (model.head.det_head, model.head.map_head))
    channels, slots = bank.embed_dims, model.head.motion_plan_head.instance_queue.queue_length - 1
    rows, line_rows = (1, bank.num_temp_instances), (1, lines.num_temp_instances)
    return dict(
        feature=(*rows, channels),
        anchor=(*rows, NUMBERS),
        confidence=rows,
        instance_id=rows,
        prev_id=(1,),
        queue_feature=(*rows, slots, channels),
        queue_anchor=(*rows, slots, NUMBERS),
        queue_period=rows,
        map_feature=(*line_rows, channels),
        map_anchor=(*line_rows, lines.anchor.shape[1]),
        map_confidence=line_rows,
        ego_feature=(1, slots, channels),
        ego_anchor=(1, slots, NUMBERS),
        ego_period=(1,),
        ego_status=(1, 1, model.head.motion_plan_head.layers[-1].plan_status_branch[-1].out_features),
    )


def memory_specs(model: nn.Module, prefix: str) -> tuple[TensorSpec, ...]:
    """Return the memory before (`pre`), with meanings, or after a frame (`post`)."""
    specs = []
    for name, shape in memory_shapes(model).items():
        dtype, meaning = 'int64' if name in INTEGERS else 'float32', MEMORY[name] if prefix == 'pre' else ''
        specs.append(TensorSpec(f'{prefix}_{name}', dtype, shape, meaning, single=True))
    return tuple(specs)


def specs(model: nn.Module) -> list[GraphSpec]:
    (cameras, height, width), head = model.input_sizes, model.head
    bank, lines, planner = head.det_head.instance_bank, head.map_head.instance_bank, head.motion_plan_head
    rows, line_rows = (1, bank.num_anchor), (1, lines.num_anchor)
    cells = cameras * sum(h * w for _, h, w in map_shapes(model, height, width))
    classes, line_classes = (
        part.layers[-1].cls_layers[-1].out_features for part in (head.det_head, head.map_head)
    )

    def tensor(
        name: str, axes: tuple[int, ...], meaning: str, *groups: ColumnGroup, dtype: str = 'float32'
    ) -> TensorSpec:
        return TensorSpec(name, dtype, axes, meaning, groups=groups, single=True)

    images = TensorSpec('img', 'float32', (cameras, 3, height, width), 'normalised images')
    features = (
        tensor('feature', (1, cells, bank.embed_dims), 'features by camera, level, row, column', ROWS),
        tensor('ego_feature', (1, 1, bank.embed_dims), 'feature map of the front camera', ROWS),
    )
    frame = (
        *features,
        tensor('lidar2img', (cameras, 4, 4), 'LiDAR frame to pixels times depth'),
        tensor('command', (1,), 'command: 0 right, 1 left, 2 straight', dtype='int64'),
    )
    past = (
        tensor('gap', (1,), 'seconds since the last frame'),
        interval_spec(bank),
        near_spec('near', bank),
        tensor('motion', (1, 4, 4), 'LiDAR frame of the last frame to the current LiDAR frame'),
    )
    modes, plans = planner.fut_mode, planner.ego_fut_mode
    outputs = (
        tensor('pred_anchor', (*rows, NUMBERS), ANCHOR_COLUMNS, *ANCHORS),
        tensor('pred_class_score', (*rows, classes), 'class logits', VALUES),
        tensor('pred_quality_score', (*rows, 2), 'logits of centerness and yawness', VALUES),
        tensor('map_points', (*line_rows, lines.anchor.shape[1]), 'x y of the points of lines (m)', VALUES),
        tensor('map_scores', (*line_rows, line_classes), 'class logits of lines', VALUES),
        tensor('motion_scores', (*rows, modes), "mode logits of the instances' trajectories", VALUES),
        tensor(
            'motion_steps',
            (*rows, modes * planner.fut_ts * 2),
            "x y of the trajectories' steps, mode by mode (m)",
            VALUES,
        ),
        tensor('plan_scores', (1, plans), 'mode logits of the plans for the command', VALUES),
        tensor('plan_steps', (1, plans, planner.ego_fut_ts * 2), "x y of the plans' steps (m)", VALUES),
        tensor('instance_id', rows, 'track ids', dtype='int64'),
        tensor('confidence', rows, 'scores that select the instances to keep', VALUES),
        tensor('line_confidence', line_rows, 'scores that select the lines to keep', VALUES),
    )
    post = *outputs, *memory_specs(model, 'post')
    pairs = tuple((f'post_{name}', f'pre_{name}') for name in MEMORY)
    return [
        GraphSpec('sparsedrive/features', (images,), features),
        GraphSpec('sparsedrive/first', frame, post),
        GraphSpec('sparsedrive/next', (*frame, *past, *memory_specs(model, 'pre')), post, state=pairs),
    ]


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    modules = Features(model), FirstFrame(model), NextFrame(model)
    return camera_graphs(model, options, list(zip(FILES, modules, specs(model), strict=True)))
