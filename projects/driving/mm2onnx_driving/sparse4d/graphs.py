"""Sparse4D's graph: one for all frames, pictures to instances; `memory.py` has the rest."""

from torch import Tensor, nn

from mm2onnx_driving.common.camera_graphs import camera_graphs, feature_maps
from mm2onnx_driving.common.instance_graphs import (
    ANCHOR_COLUMNS,
    ANCHORS,
    VALUES,
    InstanceNetwork,
    interval_spec,
    near_spec,
)
from mm2onnx_driving.layers.sparse_instances import steps
from mm2onnx_driving.layers.sparse_instances.steps import Remembered, feature_rows, run_head
from mm2onnx_driving.sparse4d.runtime import FORM, PREDICTIONS
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

LOGITS = ColumnGroup('logits', unit='logit', rtol=0.0, atol=VALUES.atol)


class PortableFrame(InstanceNetwork):
    """One frame, the first or a later one."""

    def __init__(self, model: nn.Module, grid_sample: bool) -> None:
        super().__init__(model)
        self.model, self.grid_sample = model, grid_sample

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
        rows = feature_rows(feature_maps(self.model, img))
        pictures = self.pictures(rows, lidar2img, self.grid_sample)
        last = Remembered(temp_instance_feature, temp_anchor, mask > 0.5, has_temp > 0.5)
        return run_head(self.model.head, pictures, time_interval, last)


def predictions(model: nn.Module) -> tuple[TensorSpec, ...]:
    bank = model.head.instance_bank
    rows = 1, bank.num_anchor
    channels, classes = bank.instance_feature.shape[1], model.head.layers[-1].cls_layers[-1].out_features
    entries = (
        (channels, 'instances', (VALUES,)),
        (steps.NUMBERS, ANCHOR_COLUMNS, ANCHORS),
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
    kept = 'kept instances of the last frame'
    moved = 'anchors of the kept instances, projected to the current frame'
    return (
        interval_spec(bank),
        TensorSpec('temp_instance_feature', 'float32', (*rows, channels), kept, single=True),
        TensorSpec('temp_anchor', 'float32', (*rows, steps.NUMBERS), moved, single=True),
    )


def spec(model: nn.Module) -> GraphSpec:
    cameras, height, width = model.input_sizes
    exists = '0 at a first frame, where the last instances can be any finite values'
    inputs = (
        TensorSpec('img', 'float32', (cameras, 3, height, width), 'normalised images'),
        TensorSpec('lidar2img', 'float32', (cameras, 4, 4), 'LiDAR frame to pixels times depth', single=True),
        *temporal_inputs(model),
        near_spec('mask', model.head.instance_bank),
        TensorSpec('has_temp', 'float32', (1,), exists, single=True),
    )
    return GraphSpec('sparse4d/portable', inputs, predictions(model))


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    module = PortableFrame(model, options.grid_sample == 'operator')
    return camera_graphs(model, options, [(FORM, module, spec(model))])
