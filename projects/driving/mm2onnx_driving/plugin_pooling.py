"""The plug-in `bev_pool_v2` in graphs, and its tables among their inputs.

Source of names, shapes and order: HuangJunJie2017/BEVDet f71858d, tools/convert_bevdet_to_TRT.py.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera import with_examples
from mm2onnx_driving.common.lift import LiftNetwork
from mm2onnx_driving.plugin_bevdet import POOL
from mmdeploy_ext.spec.tensors import Graph, GraphSpec, TensorSpec
from mmdeploy_ext.upstream.operators.operator import Operator, Plugin, register

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


class PooledNetwork(LiftNetwork):
    """Pictures and tables to the view, by the plug-in."""

    def view_of(self, img: Tensor, *tables: Tensor) -> Tensor:
        """Return the view (1, C, Y, X); `img` is (N, 3, H, W), `tables` in the order of `TABLES`."""
        columns, rows, _ = (int(size) for size in self.model.img_view_transformer.grid_size)
        depth, features = self.lift(img, None)
        return POOLING(depth, features.permute(0, 2, 3, 1), *tables, rows, columns).permute(0, 3, 1, 2)


def pooled_graph(
    model: nn.Module, name: str, module: nn.Module, contract: str, outputs: Sequence[TensorSpec]
) -> Graph:
    """Return a graph of pictures and tables."""
    cameras, height, width = model.input_sizes
    inputs = [TensorSpec('img', 'float32', (cameras, 3, height, width), 'normalised images, B, G, R')]
    inputs += [TensorSpec(table, 'int32', (axis,), meaning) for table, (axis, meaning) in TABLES.items()]
    (graph,) = with_examples(model, [(name, module, GraphSpec(contract, tuple(inputs), tuple(outputs)))])
    stages = [dataclasses.replace(stage, operators='plugin') for stage in graph.stages]
    return dataclasses.replace(graph, make=lambda: stages)
