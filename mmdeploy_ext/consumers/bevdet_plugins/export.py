"""The graph of BEVDet's own TensorRT converter.

Source of names, shapes and order: HuangJunJie2017/BEVDet f71858d, tools/convert_bevdet_to_TRT.py.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from mmdeploy_ext.consumers.bevdet_plugins.loop import PoolOnnx
from mmdeploy_ext.consumers.plugins.bevdet_kernels import POOL
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import Graph, GraphSpec, TensorSpec
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.exporting.ops.operator import Operator, Plugin, register
from mmdeploy_ext.families.bevdet.graphs import Network, output_specs
from mmdeploy_ext.families.bevdet.runtime import FORM
from mmdeploy_ext.families.contracts import PUBLISHED, Contract
from mmdeploy_ext.families.parts.traced_inputs import with_examples

TABLES = dict(
    ranks_depth=('M', 'index into depth (N, D, h, w)'),
    ranks_feat=('M', 'index into features (N, h, w)'),
    ranks_bev=('M', 'cell y * X + x'),
    interval_starts=('I', 'first entry of a cell'),
    interval_lengths=('I', 'entries of a cell'),
)


REPLACED = ('CellTables',)
"""Classes of modules whose work the tables do."""


def pooled(
    depth: Tensor,
    features: Tensor,
    ranks_depth: Tensor,
    ranks_feat: Tensor,
    ranks_bev: Tensor,
    interval_starts: Tensor,
    interval_lengths: Tensor,
    out_height: int,
    out_width: int,
) -> Tensor:
    """Return the sums (1, Y, X, C) of depth times features, as the plug-in `bev_pool_v2`."""
    rows = features.flatten(0, 2)
    values = depth.flatten()[ranks_depth.long()][:, None] * rows[ranks_feat.long()]
    end = interval_starts[-1:] + interval_lengths[-1:]  # entries behind the last interval do not count
    values = values * (torch.arange(len(ranks_bev), device=end.device) < end)[:, None]
    grid = values.new_zeros((out_height * out_width, rows.shape[1]))
    return grid.index_add(0, ranks_bev.long(), values).unflatten(0, (out_height, out_width))[None]


def _example() -> tuple[Tensor, ...]:
    entries = torch.arange(3, dtype=torch.int32)
    return torch.rand(1, 2, 2, 3), torch.rand(1, 2, 3, 4), *[entries] * 4, torch.ones_like(entries)


POOLING = register(
    Operator(
        'BevPool',
        pooled,
        inputs=dict(
            depth='N D H W',
            features='N H W C',
            ranks_depth='M',
            ranks_feat='M',
            ranks_bev='M',
            interval_starts='I',
            interval_lengths='I',
        ),
        outputs=('view',),
        example=_example,
        traceable=pooled,
        plugin=Plugin(
            POOL, attributes=dict(out_height='out_height', out_width='out_width'), domain='mmdeploy'
        ),
    )
)


class PooledFrame(Network):
    """A frame with the plug-in's pooling; depth and features have channels last."""

    def forward(self, img: Tensor, *tables: Tensor) -> tuple[Tensor, ...]:
        """Return the maps of the head; `img` is (N, 3, H, W), `tables` in the order of `TABLES`."""
        columns, rows, _ = (int(size) for size in self.model.img_view_transformer.grid_size)
        depth, features = self.lift(img, None)
        view = POOLING(depth, features.permute(0, 2, 3, 1), *tables, rows, columns)
        return self.heads(view.permute(0, 3, 1, 2))


class PoolFiles(Contract):
    opens, settings, replaces = PoolOnnx, PUBLISHED, REPLACED

    def check(self, cfg: Any) -> None:
        if cfg.model.type != 'BEVDet':
            raise ConfigError(
                f"{cfg.filename}: model.type={cfg.model.type!r}: BEVDet's converter takes one frame and no "
                f'depth network; expected BEVDet, or the contract portable'
            )

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        cameras, height, width = model.input_sizes
        inputs = [TensorSpec('img', 'float32', (cameras, 3, height, width), 'normalised images, B, G, R')]
        inputs += [TensorSpec(name, 'int32', (axis,), meaning) for name, (axis, meaning) in TABLES.items()]
        outputs = (
            dataclasses.replace(tensor, name=f'output_{index}')
            for index, tensor in enumerate(output_specs(model))
        )
        spec = GraphSpec('bevdet/trt-plugin', tuple(inputs), tuple(outputs))
        (graph,) = with_examples(model, [(FORM, PooledFrame(model), spec)])
        stages = [dataclasses.replace(stage, operators='plugin') for stage in graph.stages]
        return [dataclasses.replace(graph, make=lambda: stages)]

    def runner_outputs(self, model: nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        return output_specs(model)
