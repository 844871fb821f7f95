"""The graph of BEVDet's own TensorRT converter.

Source of names, shapes and order: HuangJunJie2017/BEVDet f71858d, tools/convert_bevdet_to_TRT.py.
"""

import dataclasses
from typing import Any

from torch import Tensor, nn

from mm2onnx_driving.bevdet.graphs import BevDetHeads, output_specs
from mm2onnx_driving.bevdet.runtime import FORM
from mm2onnx_driving.bevdet.targets.bevdet_plugins.loop import PoolOnnx
from mm2onnx_driving.plugins.bev_pool_export import REPLACED, PooledNetwork, pooled_graph
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.contracts import PUBLISHED, Contract
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, TensorSpec


class PooledFrame(PooledNetwork, BevDetHeads):
    """A frame with the plug-in's pooling."""

    def forward(self, img: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the head."""
        return self.heads(self.view_of(img, *tables))


class PoolFiles(Contract):
    opens, settings, replaces = PoolOnnx, PUBLISHED, REPLACED

    def check(self, cfg: Any) -> None:
        if cfg.model.type != 'BEVDet':
            raise ConfigError(
                f"{cfg.filename}: model.type={cfg.model.type!r}: BEVDet's converter supports one frame "
                'and no depth network; expected BEVDet, or use --contract portable'
            )

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        outputs = [
            dataclasses.replace(tensor, name=f'output_{index}')
            for index, tensor in enumerate(output_specs(model))
        ]
        return [pooled_graph(model, FORM, PooledFrame(model), 'bevdet/trt-plugin', outputs)]

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return output_specs(model)
