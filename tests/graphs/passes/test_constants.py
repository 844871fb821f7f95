"""What depends on no input of a graph becomes a constant; weights stay."""

import copy

import numpy as np
import onnx
import onnx.parser
import torch
from torch import nn

from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.graphs.passes.constants import compute_constants
from mmdeploy_ext.graphs.run import run


class Grid(nn.Module):
    """Places of the cells of a map, as anchors have them, and a row of weights."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 2))

    def forward(self, x):
        height, width = x.shape[2:]
        xs, ys = torch.arange(width) * 8.0, torch.arange(height) * 8.0
        cells = torch.stack([xs.repeat(height), ys.view(-1, 1).repeat(1, width).view(-1)], 1)
        return x.flatten(1).mean() * self.weight + cells, cells.sum(0)


def test_places_of_cells_are_constants_and_weights_keep_their_names():
    x = torch.rand(1, 1, 3, 4)
    model = export_module(Grid(), [x], input_names=['x'], output_names=['places', 'sum'])
    folded = copy.deepcopy(model)
    changed = compute_constants(folded)
    operators = {node.op_type for node in folded.graph.node}
    assert changed and not operators & {'Shape', 'Range', 'Expand', 'Tile', 'ConstantOfShape', 'Unsqueeze'}
    assert 'weight' in {tensor.name for tensor in folded.graph.initializer}
    values = [run(graph, {'x': x.numpy()}) for graph in (model, folded)]
    for name in values[0]:
        np.testing.assert_array_equal(values[0][name], values[1][name])
    assert not compute_constants(folded)


def test_what_the_body_of_an_if_alone_reads_stays():
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2] x, bool go) => (float[2] y) {
            two = Constant<value = float {2.0}>()
            four = Mul(two, two)
            z = Add(x, four)
            y = If (go) <
                then_branch = a () => (float[2] p) { p = Mul(z, two) },
                else_branch = b () => (float[2] q) { q = Identity(z) }
            >
        }
    """
    model = onnx.parser.parse_model(text)
    folded = copy.deepcopy(model)
    changed = compute_constants(folded)
    feeds = dict(x=np.ones(2, np.float32), go=np.array(True))
    assert changed and run(folded, feeds)['y'].tolist() == run(model, feeds)['y'].tolist() == [10, 10]


def test_a_range_of_a_shape_is_folded_and_a_random_value_is_not():
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[2,3,5,7] x) => (int64[2] sums, float[5] noise) {
            sizes = Shape <start: int = 1, end: int = 3> (x)
            last = Shape <start: int = -2> (x)
            sums = Add (sizes, last)
            five = Constant <value = float[5] {0.0, 0.0, 0.0, 0.0, 0.0}> ()
            noise = RandomNormalLike (five)
        }
    """
    folded = onnx.parser.parse_model(text)
    compute_constants(folded)
    kinds = {node.output[0]: node.op_type for node in folded.graph.node}
    assert kinds['noise'] == 'RandomNormalLike'
    values = run(folded, dict(x=np.zeros((2, 3, 5, 7), np.float32)))
    assert values['sums'].tolist() == [3 + 5, 5 + 7] and 'Add' not in kinds.values()
