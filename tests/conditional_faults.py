"""Faults that only some inputs set off, as nodes in an exported graph."""

import numpy as np
from onnx import helper, numpy_helper

SIZES = dict(atss=(256, 320), solov2=(256, 320), rtdetr=(256, 256))
IMAGE = dict(atss='input', solov2='input', rtdetr='images')
CHANGED = dict(atss='dets', solov2='scores', rtdetr='boxes')
"""The output that a conditional fault changes."""


class Planter:
    """Adds nodes to a graph: `planter.Mul(a, b)` returns the name of the result."""

    def __init__(self, graph):
        self.graph, self.count, self.first = graph, 0, []

    def constant(self, value):
        self.count += 1
        name = f'planted/{self.count}'
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def __getattr__(self, operator):
        def add(*inputs, **attributes):
            self.count += 1
            name = f'planted/{self.count}'
            names = [value if isinstance(value, str) else self.constant(value) for value in inputs]
            self.first.append(helper.make_node(operator, names, [name], **attributes))
            return name

        return add

    def side(self, image, axis):
        return self.Gather(self.Shape(image), np.int64(axis))

    def between(self, tensor, make):
        """Let all readers of a tensor, or the graph's output of that name, get `make(tensor)`."""
        made_by = [node for node in self.graph.node if tensor in node.output]
        is_output = any(value.name == tensor for value in self.graph.output)
        right = f'right/{tensor}' if is_output else tensor
        if is_output:
            for node in self.graph.node:
                for names in (node.input, node.output):
                    names[:] = [right if name == tensor else name for name in names]
        nodes = list(self.graph.node)
        self.first = []
        wrong = make(right)
        for node in nodes:
            node.input[:] = [wrong if name == right else name for name in node.input]
        if is_output:
            self.first.append(helper.make_node('Identity', [wrong], [tensor]))
        place = nodes.index(made_by[0]) + 1 if made_by else 0
        del self.graph.node[:]
        self.graph.node.extend([*nodes[:place], *self.first, *nodes[place:]])


def only_where(condition, wrong):
    """Change the results where a condition (a scalar bool) holds for the input."""

    def change(graph, family):
        planter = Planter(graph)
        planter.between(
            CHANGED[family],
            lambda right: planter.Where(condition(planter, IMAGE[family]), wrong(planter, right), right),
        )

    return change


def a_little_off(planter, right):
    return planter.Mul(right, np.float32(0.99))


def not_a_number(planter, right):
    return planter.Mul(right, np.float32(np.nan))


def mean_of(planter, image):
    return planter.ReduceMean(image, keepdims=0)


WHERE = {
    'a batch of 3 or more': lambda p, x: p.Greater(p.side(x, 0), np.int64(2)),
    'a batch of 2': lambda p, x: p.Equal(p.side(x, 0), np.int64(2)),
    'H over 640': lambda p, x: p.Greater(p.side(x, 2), np.int64(640)),
    'W over 640': lambda p, x: p.Greater(p.side(x, 3), np.int64(640)),
    'W > 2H': lambda p, x: p.Greater(p.side(x, 3), p.Mul(p.side(x, 2), np.int64(2))),
    'H > 2W': lambda p, x: p.Greater(p.side(x, 2), p.Mul(p.side(x, 3), np.int64(2))),
    'portraits': lambda p, x: p.Greater(p.side(x, 2), p.side(x, 3)),
    'H % 64': lambda p, x: p.Greater(p.Mod(p.side(x, 2), np.int64(64)), np.int64(0)),
    'W % 64': lambda p, x: p.Greater(p.Mod(p.side(x, 3), np.int64(64)), np.int64(0)),
    'H % 128 = 32': lambda p, x: p.Equal(p.Mod(p.side(x, 2), np.int64(128)), np.int64(32)),
}
FINE = {
    'H % 32': lambda p, x: p.Greater(p.Mod(p.side(x, 2), np.int64(32)), np.int64(0)),
    'W % 32': lambda p, x: p.Greater(p.Mod(p.side(x, 3), np.int64(32)), np.int64(0)),
}


def clipped(pixels):
    def change(graph, family):
        planter = Planter(graph)
        planter.between(CHANGED[family], lambda right: planter.Min(right, np.float32(pixels)))

    return change


def with_logits(change_logits, tensor):
    def change(graph, family):
        planter = Planter(graph)
        planter.between(tensor, lambda right: change_logits(planter, right))

    return change
