"""Graphs of FlashOcc's own TensorRT converter, with logits or classes.

Source of names, shapes and order: Yzichen/FlashOCC 4084861, tools/convert_bevdet_to_TRT.py.
"""

import dataclasses
from typing import Any

from torch import Tensor, nn

from mm2onnx_driving.flashocc.graphs import output_specs
from mm2onnx_driving.flashocc.runtime import FORM
from mm2onnx_driving.plugins.bev_pool_export import REPLACED, PooledNetwork, pooled_graph
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.contracts import PUBLISHED, Contract
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, TensorSpec


class PooledLogits(PooledNetwork):
    """A frame, pooled by the plug-in, to logits (1, X, Y, Z, K)."""

    def forward(self, img: Tensor, *tables: Tensor) -> tuple[Tensor]:
        return (self.model.occ_head(self.encoded(self.view_of(img, *tables))),)


class PooledLabels(PooledLogits):
    """The same, to classes (1, X, Y, Z)."""

    def forward(self, img: Tensor, *tables: Tensor) -> tuple[Tensor]:
        (logits,) = super().forward(img, *tables)
        return (logits.argmax(-1),)


class PooledFiles(Contract):
    settings, replaces = PUBLISHED, REPLACED

    def check(self, cfg: Any) -> None:
        if (kind := cfg.model.img_view_transformer.type) != 'LSSViewTransformer':
            raise ConfigError(
                f'{cfg.filename}: model.img_view_transformer.type={kind!r}: this contract has no depth '
                'network; expected LSSViewTransformer, or use --contract portable'
            )

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        logits, labels = output_specs(model)
        module, output = PooledLogits(model), dataclasses.replace(logits, name='output_0')
        if options.contract == 'trt-argmax':
            given = dict(name='cls_occ_label', dtype='int64', axes=(1, *labels.axes))
            module, output = PooledLabels(model), dataclasses.replace(labels, **given)
        return [pooled_graph(model, FORM, module, f'flashocc/{options.contract}', [output])]

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return output_specs(model)[options.contract == 'trt-argmax' :][:1]
