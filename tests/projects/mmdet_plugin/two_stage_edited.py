"""Faults of files of two-stage detectors, as edits of their graphs; each is given a model."""

import json

import numpy as np
import onnx
from onnx import helper, numpy_helper

POSTPROCESS = 'mm2onnx.postprocess'


class Edit:
    """A graph whose constants can be changed and whose tensors can be replaced."""

    def __init__(self, graph):
        self.graph = graph
        self.makers = {name: node for node in graph.node for name in node.output}
        self.weights = {tensor.name: tensor for tensor in graph.initializer}

    def stored(self, name):
        """Return what stores a constant."""
        return self.weights[name] if name in self.weights else self.makers[name].attribute[0].t

    def value(self, name):
        known = name in self.weights or self.makers[name].op_type == 'Constant'
        return numpy_helper.to_array(self.stored(name)) if known else None

    def keep(self, name, array):
        tensor = self.stored(name)
        array = np.asarray(array, numpy_helper.to_array(tensor).dtype)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    def nodes(self, op_type, part=''):
        return [node for node in self.graph.node if node.op_type == op_type and part in node.name]

    def readers(self, name):
        return [node for node in self.graph.node if name in node.input]

    def scaled(self, op_type, part, old, factor):
        """Multiply the constants of nodes that are these numbers; there has to be one."""
        found = [
            name for node in self.nodes(op_type, part) for name in node.input[1:] if self.like(name, old)
        ]
        assert found, f'no {op_type} by {old}'
        for name in found:
            self.keep(name, self.value(name) * np.asarray(factor))

    def like(self, name, old):
        value = None if name not in self.weights and name not in self.makers else self.value(name)
        same = value is not None and value.size == np.size(old)
        return same and np.allclose(value.ravel(), np.ravel(old), rtol=1e-5)

    def of_the_first_image(self, name):
        """Let every image of a batch have a tensor of the first."""
        wrong = f'{name}_wrong'
        for node in self.readers(name):
            node.input[:] = [wrong if one == name else one for one in node.input]
        place = next(index for index, node in enumerate(self.graph.node) if name in node.output) + 1
        self.graph.initializer.append(numpy_helper.from_array(np.array([0]), f'{name}_index'))
        own = [
            helper.make_node('Gather', [name, f'{name}_index'], [f'{name}_first']),
            helper.make_node('Shape', [name], [f'{name}_shape']),
            helper.make_node('Expand', [f'{name}_first', f'{name}_shape'], [wrong]),
        ]
        for node in reversed(own):
            self.graph.node.insert(place, node)


def pools(model):
    """Return the attributes of the RoiAlign nodes."""
    nodes = Edit(model.graph).nodes('RoiAlign')
    return [{one.name: one for one in node.attribute} for node in nodes]


def sampling_ratio(model):
    for pool in pools(model):
        pool['sampling_ratio'].i = 2


def not_aligned(model):
    for pool in pools(model):
        pool['coordinate_transformation_mode'].s = b'output_half_pixel'


def scale_of_a_level(model):
    for pool in pools(model):
        pool['spatial_scale'].f *= 1.0 if pool['spatial_scale'].f != 0.125 else 8 / 7


def maps_of_other_levels(model):
    nodes = Edit(model.graph).nodes('RoiAlign')
    scales = {node.input[0]: {one.name: one for one in node.attribute}['spatial_scale'].f for node in nodes}
    first, second, *_ = sorted(scales, key=scales.get)
    for node in nodes:
        node.input[0] = {first: second, second: first}.get(node.input[0], node.input[0])


def shifted_levels(model):
    edit = Edit(model.graph)
    for node in edit.nodes('GreaterOrEqual', 'boxes/stages.0/pool'):
        edit.keep(node.input[1], edit.value(node.input[1]) * 2)


def proposals_of_the_first_image(model):
    edit = Edit(model.graph)
    for name in list(edit.makers):
        if name.startswith(('rpn_cls_', 'rpn_reg_')):
            edit.of_the_first_image(name)


def deviation_of_proposals(model):
    Edit(model.graph).scaled('Mul', 'proposals/', [1, 1, 1, 1], [1, 1, 1.1, 1])


def deviation_of_the_second_stage(model):
    Edit(model.graph).scaled('Mul', 'boxes/', [0.05, 0.05, 0.1, 0.1], [1, 1, 1.1, 1])


def scores_of_the_last_stage(model):
    edit = Edit(model.graph)
    (softmax,) = edit.nodes('Softmax', 'boxes/')
    total = edit.makers[edit.makers[softmax.input[0]].input[0]]
    softmax.input[0] = total.input[1]


def background_for_the_first_class(model):
    edit = Edit(model.graph)
    (softmax,) = edit.nodes('Softmax', 'boxes/')
    (cut,) = edit.readers(softmax.output[0])
    assert cut.op_type == 'Slice'
    edit.keep(cut.input[1], [1])
    edit.keep(cut.input[2], [2**31 - 1])


def masks_of_the_next_class(model):
    edit = Edit(model.graph)
    layers = [name for name in edit.weights if 'conv_logits.' in name]
    assert layers
    for name in layers:
        edit.keep(name, np.roll(edit.value(name), 1, axis=0))


def suppression_over_all_classes(model):
    edit = Edit(model.graph)
    last = edit.nodes('NonMaxSuppression')[-1]
    last.input[0] = edit.makers[last.input[0]].input[0]


def threshold_of_masks(model):
    for entry in model.metadata_props:
        if entry.key == POSTPROCESS:
            entry.value = json.dumps(json.loads(entry.value) | dict(mask_thr=0.45))


def planted(plant, source, target):
    """Write the file `target`: that of `source` with a fault; returns its path."""
    model = onnx.load(source)
    plant(model)
    onnx.save(model, target)
    return str(target)


POOLING = (sampling_ratio, not_aligned, scale_of_a_level, maps_of_other_levels)
CASCADE = (
    shifted_levels,
    proposals_of_the_first_image,
    deviation_of_proposals,
    deviation_of_the_second_stage,
    scores_of_the_last_stage,
    background_for_the_first_class,
    masks_of_the_next_class,
    suppression_over_all_classes,
    threshold_of_masks,
)
"""Of a cascade with masks, in a batch."""
