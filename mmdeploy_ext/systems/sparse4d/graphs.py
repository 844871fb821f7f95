"""Sparse4D's graph: one for all frames, pictures to instances; `memory.py` has the rest."""

from torch import Tensor, nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, Graph, GraphSpec, TensorSpec
from mmdeploy_ext.families.common.camera_graphs import camera_graphs, feature_maps, map_shapes
from mmdeploy_ext.models.sparse_instances import steps
from mmdeploy_ext.models.sparse_instances.steps import Pictures, Remembered, feature_rows, run_head
from mmdeploy_ext.systems.sparse4d.runtime import FORM, PREDICTIONS

FEATURES = ColumnGroup(rtol=0.0, atol=1e-3)
LOGITS = ColumnGroup('logits', unit='logit', rtol=0.0, atol=1e-3)
ANCHORS = (
    ColumnGroup('xyz', (0, 1, 2), 'm', 0.0, 5e-3),
    ColumnGroup('log size', (3, 4, 5), '', 0.0, 1e-3),
    ColumnGroup('sin cos yaw', (6, 7), '', 0.0, 1e-3),
    ColumnGroup('velocity', (8, 9, 10), 'm/s', 0.0, 1e-3),
)
"""Tolerances of float32. Source: "Suggested tolerances" of the reference data of Sparse4D."""


def map_sizes(model: nn.Module) -> tuple[Tensor, Tensor]:
    cameras, height, width = model.input_sizes
    return steps.map_sizes([shape[1:] for shape in map_shapes(model, height, width)], cameras)


class PortableFrame(nn.Module):
    """One frame, the first or a later one; map sizes are constants."""

    def __init__(self, model: nn.Module, grid_sample: bool) -> None:
        super().__init__()
        self.model, self.size, self.grid_sample = model, model.input_sizes, grid_sample
        sizes, starts = map_sizes(model)
        self.register_buffer('sizes', sizes, persistent=False)
        self.register_buffer('starts', starts, persistent=False)

    def forward(
        self,
        img: Tensor,
        lidar2img: Tensor,
        time_interval: Tensor,
        temp_instance_feature: Tensor,
        temp_anchor: Tensor,
        mask: Tensor,
        has_temp: Tensor,
    ) -> tuple[Tensor, ...]:
        cameras, height, width = self.size
        image_wh = lidar2img.new_tensor([[width, height]] * cameras)
        rows = feature_rows(feature_maps(self.model, img))
        pictures = Pictures(rows, self.sizes, self.starts, lidar2img, image_wh, self.grid_sample)
        last = Remembered(temp_instance_feature, temp_anchor, mask > 0.5, has_temp > 0.5)
        return run_head(self.model.head, pictures, time_interval, last)


def predictions(model: nn.Module) -> tuple[TensorSpec, ...]:
    bank = model.head.instance_bank
    rows = 1, bank.num_anchor
    channels, classes = bank.instance_feature.shape[1], model.head.layers[-1].cls_layers[-1].out_features
    entries = (
        (channels, 'instances', (FEATURES,)),
        (steps.NUMBERS, 'x y z (m) log l w h sin cos (yaw) vx vy vz (m/s)', ANCHORS),
        (classes, 'class logits', (LOGITS,)),
        (2, 'logits of centerness and yawness', (LOGITS,)),
    )
    return tuple(
        TensorSpec(name, 'float32', (*rows, columns), meaning, groups=groups, single=True)
        for name, (columns, meaning, groups) in zip(PREDICTIONS, entries, strict=True)
    )


def temporal_inputs(model: nn.Module) -> tuple[TensorSpec, ...]:
    """Return the specs of `time_interval` and the last frame's instances."""
    bank = model.head.instance_bank
    rows, channels = (1, bank.num_temp_instances), bank.instance_feature.shape[1]
    default, longest = f'{bank.default_time_interval:g}', f'{bank.max_time_interval:g}'
    seconds = f'seconds since the last frame, {default} if 0 or more than {longest}'
    kept, moved = (
        'kept instances of the last frame',
        'anchors of the kept instances, projected to the current frame',
    )
    return (
        TensorSpec('time_interval', 'float32', (1,), seconds, single=True),
        TensorSpec('temp_instance_feature', 'float32', (*rows, channels), kept, single=True),
        TensorSpec('temp_anchor', 'float32', (*rows, steps.NUMBERS), moved, single=True),
    )


def spec(model: nn.Module) -> GraphSpec:
    cameras, height, width = model.input_sizes
    near = f'1 if the last frame is at most {model.head.instance_bank.max_time_interval:g} s away, else 0'
    exists = '0 at a first frame, where the last instances can be any finite values'
    inputs = (
        TensorSpec('img', 'float32', (cameras, 3, height, width), 'normalised images'),
        TensorSpec('lidar2img', 'float32', (cameras, 4, 4), 'LiDAR frame to pixels times depth', single=True),
        *temporal_inputs(model),
        TensorSpec('mask', 'float32', (1,), near, single=True),
        TensorSpec('has_temp', 'float32', (1,), exists, single=True),
    )
    return GraphSpec('sparse4d/portable', inputs, predictions(model))


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    module = PortableFrame(model, options.grid_sample == 'operator')
    return camera_graphs(model, options, [(FORM, module, spec(model))])
