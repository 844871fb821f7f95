"""DeformConv as GridSample and Conv: mmcv's values, at every border; other nodes stay; faults are seen."""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmcv.ops import deform_conv2d, modulated_deform_conv2d
from onnx import TensorProto, helper, numpy_helper

from mmdeploy_ext.graphs.passes.deform_conv import replace_deform_conv

CHANNELS, FILTERS = 8, 12
KINDS = {'float32': TensorProto.FLOAT, 'float64': TensorProto.DOUBLE, 'float16': TensorProto.FLOAT16}
SIZES = [(2, 9, 13), (1, 3, 6), (3, 17, 5)]
"""Images, height and width of the maps that one graph takes."""
TOLERANCE = 2e-6
"""Of the largest value."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One deformable convolution; pairs have y before x."""

    kernel: tuple = (3, 3)
    stride: tuple = (1, 1)
    padding: tuple = (1, 1)
    dilation: tuple = (1, 1)
    groups: int = 1
    offset_groups: int = 1
    mask: bool = False
    bias: bool = False
    opset: int = 19
    kind: str = 'float32'

    @property
    def constants(self):
        """Weight and bias."""
        draw = np.random.default_rng(1)
        weight = draw.standard_normal((FILTERS, CHANNELS // self.groups, *self.kernel))
        arrays = dict(weight=weight, bias=draw.standard_normal(FILTERS))
        return {name: array.astype(self.kind) for name, array in arrays.items()}

    @property
    def model(self):
        """A graph of the operator for any size."""
        values = dict(x=('B', CHANNELS, 'H', 'W'), offset=('B', 'O', 'h', 'w'))
        values |= dict(mask=('B', 'M', 'h', 'w')) if self.mask else {}
        values['y'] = ('B', FILTERS, 'h', 'w')
        infos = [helper.make_tensor_value_info(name, KINDS[self.kind], axes) for name, axes in values.items()]
        names = ['x', 'weight', 'offset', 'bias' if self.bias else '', 'mask' if self.mask else '']
        node = helper.make_node(
            'DeformConv',
            names if self.mask else names[: 3 + self.bias],
            ['y'],
            'dcn',
            strides=self.stride,
            pads=self.padding * 2,
            dilations=self.dilation,
            group=self.groups,
            offset_group=self.offset_groups,
        )
        constants = [
            numpy_helper.from_array(self.constants[name], name) for name in names if name in self.constants
        ]
        graph = helper.make_graph([node], 'g', infos[:-1], infos[-1:], constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid('', self.opset)], ir_version=9)

    def feeds(self, size):
        """Return inputs: places inside, exactly at and beside each border, and far outside."""
        batch, *sides = size
        draw = np.random.default_rng(2)
        taps = np.stack(np.mgrid[: self.kernel[0], : self.kernel[1]]).reshape(2, -1, 1)
        places = []
        for axis, side in enumerate(sides):
            reach = side + 2 * self.padding[axis] - self.dilation[axis] * (self.kernel[axis] - 1) - 1
            cells = np.arange(reach // self.stride[axis] + 1) * self.stride[axis]
            places.append(cells + taps[axis] * self.dilation[axis] - self.padding[axis])
        regular = np.stack(
            np.broadcast_arrays(places[0][:, :, None], places[1][:, None, :]), axis=1
        )  # (K, 2, h, w)
        offset = draw.uniform(-2, 2, (batch, self.offset_groups, *regular.shape))
        for axis, side in enumerate(sides):
            borders = [-1e9, -40, -1.5, -1, -0.5, 0, side - 1, side - 0.5, side, side + 3, 1e9]
            exact = draw.choice(borders, offset[:, :, :, axis].shape) - regular[:, axis]
            chosen = draw.random(exact.shape) < 0.4
            offset[:, :, :, axis] = np.where(chosen, exact, offset[:, :, :, axis])
        counts = regular.shape[2:]
        arrays = dict(
            x=draw.standard_normal((batch, CHANNELS, *sides)) + 2, offset=offset.reshape(batch, -1, *counts)
        )
        if self.mask:
            arrays['mask'] = draw.random((batch, self.offset_groups * len(regular), *counts))
        return {name: array.astype(self.kind) for name, array in arrays.items()}

    def of_mmcv(self, feeds):
        """Return the result of mmcv's kernel."""
        tensors = {name: torch.from_numpy(array) for name, array in (feeds | self.constants).items()}
        first = tensors['x'], tensors['offset']
        geometry = self.stride, self.padding, self.dilation, self.groups, self.offset_groups
        if not self.mask:
            return deform_conv2d(*first, tensors['weight'], *geometry).numpy()
        bias = tensors['bias'] if self.bias else None
        return modulated_deform_conv2d(*first, tensors['mask'], tensors['weight'], bias, *geometry).numpy()

    def difference(self, model, size):
        """Return the largest difference of a graph from mmcv, relative to the largest value."""
        feeds = self.feeds(size)
        wanted = self.of_mmcv(feeds)
        assert np.abs(wanted).max() > 1
        return np.abs(run(model, feeds) - wanted).max() / np.abs(wanted).max()


def run(model, feeds):
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=['CPUExecutionProvider']
    )
    return session.run(None, feeds)[0]


EVERYTHING = Case(
    kernel=(3, 2),
    stride=(2, 1),
    padding=(1, 2),
    dilation=(1, 2),
    groups=2,
    offset_groups=4,
    mask=True,
    bias=True,
)
CASES = {
    'row of taps': Case(kernel=(1, 3), offset_groups=4),
    'everything': EVERYTHING,
    'linear': dataclasses.replace(EVERYTHING, opset=20),
}


@pytest.mark.parametrize('name', CASES)
def test_values_are_those_of_mmcv_and_of_the_operator_at_any_size(name):
    case = CASES[name]
    replaced, changed = replace_deform_conv(case.model)
    operators = [node.op_type for node in replaced.graph.node]
    assert changed and 'DeformConv' not in operators and not replaced.functions
    assert operators.count('GridSample') == operators.count('Conv') == 1
    assert [entry.domain for entry in replaced.opset_import] == ['']
    for size in SIZES:
        assert case.difference(replaced, size) < TOLERANCE
        assert case.difference(case.model, size) < TOLERANCE


def test_float16_has_its_places_in_float32():
    half = dataclasses.replace(EVERYTHING, kind='float16')
    feeds = half.feeds((1, 9, 150))
    wanted = EVERYTHING.of_mmcv({name: array.astype(np.float32) for name, array in feeds.items()})
    given = run(replace_deform_conv(half.model)[0], feeds)
    assert given.dtype == np.float16 and np.abs(given - wanted).max() < 4e-3 * np.abs(wanted).max()
