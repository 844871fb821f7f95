"""Faults that people make: none of the files is proven, and the right files beside them are.

Each fault is tried as if the file were edited on purpose, so that the comparison with a fresh export does not
decide: `CHECKS` says that the checks of the file's surroundings find it, `OUTPUTS` that they do not and the
outputs differ. `FILE` are faults that no input need show: they are differences from a fresh export.
"""

import dataclasses
import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

import toy_atss
import toy_centerpoint
import toy_solo
from marking import in_suite
from mmdeploy_ext.base.errors import Mm2OnnxError
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.graphs.io.index import all_nodes
from mmdeploy_ext.proving.pictures import (
    InputReference,
    open_backend,
    picture_inputs,
    read_picture_file,
    run_case,
)
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.digest import sealed
from planting import arguments, replaced, result
from proofs import check_files, few_inputs, prove, samples_alone
from toy_atss import CHECKPOINT, PICTURE, load_demo
from toy_faults import set_attribute
from verdicts import cases_of

CHECKS, OUTPUTS, FILE = 'checks', 'outputs', 'file'
PICTURES = [('toy.jpg', read_image(PICTURE)[::2, ::2])]
SIZE = dict(height=128, width=160)


class Right:
    """A model and its right files.

    Attributes:
        detector: config and checkpoint.
        paths: of the graphs.
        samples: what proofs run on.
    """

    def __init__(self, detector, paths, samples):
        self.detector, self.paths, self.samples = detector, paths, samples

    @functools.cached_property
    def unfinished(self):
        """What the checks alone say of the right files: that nothing was compared."""
        return self.checked(self.detector, self.paths)

    @functools.cached_property
    def references(self):
        """Inputs of a proof of pictures with the results of PyTorch, which are computed once."""
        file, options = read_picture_file(self.detector, self.paths[0])
        inputs, _ = few_inputs(self.detector, file, options, PICTURES)
        computed = (
            one if isinstance(one, InputReference) else InputReference(self.detector, one) for one in inputs
        )
        return list(computed)

    def checked(self, detector, paths, edited=True):
        return set(check_files(detector, paths, self.samples(), edited).failures)

    def found_by(self, detector, paths):
        """Return what refuses files first, '' if they are proven."""
        try:
            if self.checked(detector, paths) != self.unfinished:
                return CHECKS
            if not self.outputs_pass(detector, paths):
                return OUTPUTS
        except Mm2OnnxError:  # the file cannot be read, or is of another model
            return CHECKS
        return FILE if self.checked(detector, paths, edited=False) != self.unfinished else ''

    def outputs_pass(self, detector, paths):
        """Return whether an edited file of the right model passes: of pictures, whether each input does."""
        if detector is self.detector and detector.family.samples == 'images':
            file, _ = read_picture_file(detector, paths[0])
            with open_backend({}, file) as backend:
                return all(run_case(one, backend).passed for one in self.references)
        return edited_verdict(detector, paths, self.samples()).passed


def edited_verdict(detector, paths, samples):
    with samples_alone():
        return prove(detector, paths, samples, edited=True, timed=False)


def export(detector, path, **options):
    """Export a model of pictures, any size and batch."""
    return [toy_atss.export_toy(detector, path, **SIZE, **options)]


def of_pictures(folder, name):
    detector = load_demo(name)
    return Right(detector, export(detector, folder / f'{name}.onnx'), lambda: PICTURES)


def of_atss(form):
    return Right(load_demo('atss'), [toy_atss.toy_file(form)], lambda: PICTURES)


def of_frames():
    pytest.importorskip('mm2onnx_driving')
    import toy_streampetr_deploy

    paths = list(toy_streampetr_deploy.files())
    return Right(toy_streampetr_deploy.detector(), paths, lambda: toy_streampetr_deploy.drive(3))


def of_sweeps():
    from mmdeploy_ext.families.detector_files import read_files

    detector, files, *_ = toy_centerpoint.exported('pillars')
    sweeps = [Sweep(toy_centerpoint.sweep(0, 400), 'sweep')]
    return Right(detector, read_files(str(files)).paths, lambda: sweeps)


@pytest.fixture(scope='session')
def right(tmp_path_factory):
    """Return name -> right files, exported once."""
    folder = tmp_path_factory.mktemp('right')
    make = {'atss': lambda: of_atss('full'), 'atss raw': lambda: of_atss('raw')}
    make |= dict(streampetr=of_frames, centerpoint=of_sweeps)
    return functools.cache(lambda name: make.get(name, lambda: of_pictures(folder, name))())


RIGHT = (
    'atss', 'atss raw', 'mask_rcnn', 'retinanet', 'yolox', 'solov2', 'deformable_detr', 'streampetr',
    'centerpoint',
)  # fmt: skip


@pytest.mark.matrix
@pytest.mark.parametrize('name', RIGHT)
def test_the_right_files_are_proven(right, name):
    one = right(name)
    with samples_alone():
        verdict = prove(one.detector, one.paths, one.samples(), timed=False)
    assert verdict.passed, verdict.failures
    assert verdict.title == 'PROVEN'


# --- the file is right, the config is another -----------------------------------------------------------

STEPS = 'data.test.pipeline.1.transforms'
SETTINGS = {
    'another score threshold': ('atss', {'model.test_cfg.score_thr': 0.1}),
    'another IoU of the suppression': ('atss', {'model.test_cfg.nms.iou_threshold': 0.5}),
    'one suppression for all classes': ('atss', {'model.test_cfg.nms.class_agnostic': True}),
    'another mean': ('atss', {f'{STEPS}.2.mean': [120.0, 116.28, 103.53]}),
    'RGB for BGR': ('atss', {f'{STEPS}.2.to_rgb': False}),
    'the shape is not kept': ('atss', {f'{STEPS}.0.keep_ratio': False}),
    'deviations of another coder': ('atss', {'model.bbox_head.bbox_coder.target_stds': [0.2, 0.2, 0.1, 0.1]}),
    'anchors of twice the size': ('atss', {'model.bbox_head.anchor_generator.octave_base_scale': 8}),
    'another threshold of masks': ('mask_rcnn', {'model.test_cfg.rcnn.mask_thr_binary': 0.6}),
    'another kernel of the matrix': ('solov2', {'model.test_cfg.kernel': 'linear'}),
}
"""What is wrong -> toy, and settings of the config that the file is compared with."""
SETTINGS_OF_THE_SUITE = (
    'another score threshold',
    'RGB for BGR',
    'deviations of another coder',
)


@pytest.mark.parametrize('fault', in_suite(SETTINGS, *SETTINGS_OF_THE_SUITE))
def test_a_file_of_another_config_is_not_proven(right, fault):
    name, changes = SETTINGS[fault]
    one = right(name)
    assert one.found_by(load_demo(name, changes), one.paths)


# --- the file is right, the checkpoint is another -------------------------------------------------------


def another_epoch(checkpoint):
    """Weights of one training step more."""
    torch.manual_seed(0)
    for value in checkpoint['state_dict'].values():
        if value.is_floating_point():
            value += 1e-2 * value.abs().mean() * torch.randn_like(value)


def one_layer_left_out(checkpoint):
    """A layer that was not read keeps the weights that it was built with."""
    checkpoint['state_dict']['neck.fpn_convs.0.conv.weight'].normal_(0, 0.02)


def statistics_of_another_run(checkpoint):
    checkpoint['state_dict']['backbone.layer1.0.bn1.running_var'].mul_(1.1)


def names_swapped(checkpoint):
    names = list(checkpoint['meta']['CLASSES'])
    checkpoint['meta']['CLASSES'] = (names[1], names[0], *names[2:])


CHECKPOINTS = dict(
    another_epoch=another_epoch,
    one_layer_left_out=one_layer_left_out,
    statistics_of_another_run=statistics_of_another_run,
    names_swapped=names_swapped,
)


@pytest.mark.parametrize('fault', in_suite(CHECKPOINTS, 'another_epoch', 'names_swapped'))
def test_a_file_of_another_checkpoint_is_not_proven(right, tmp_path, fault):
    checkpoint = torch.load(CHECKPOINT, map_location='cpu')
    CHECKPOINTS[fault](checkpoint)
    torch.save(checkpoint, tmp_path / 'other.pth')
    one = right('atss')
    assert one.found_by(load_demo('atss', checkpoint=tmp_path / 'other.pth'), one.paths)


# --- the file was edited --------------------------------------------------------------------------------


def store(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def weight(part, change):
    """Change the first initializer whose name has a part."""

    def plant(model):
        tensor = next(one for one in model.graph.initializer if part in one.name)
        store(tensor, change(numpy_helper.to_array(tensor)))

    return plant


def number(old, new, part=''):
    """Change every constant that is a number or a row of numbers, of nodes whose name has a part."""

    def plant(model):
        graph = model.graph
        constants = [one for one in graph.node if one.op_type == 'Constant' and part in one.name]
        tensors = [*(one.attribute[0].t for one in constants), *graph.initializer]
        tensors = [one for one in tensors if one.data_type and np.prod(one.dims) == np.size(old)]
        arrays = [numpy_helper.to_array(tensor) for tensor in tensors]
        found = [np.allclose(array.ravel(), old, rtol=1e-6, atol=0) for array in arrays]
        assert any(found), f'no constant is {old}'
        for tensor, array, is_old in zip(tensors, arrays, found, strict=True):
            if is_old:
                store(tensor, np.asarray(new, array.dtype).reshape(array.shape))

    return plant


def rename(graph, names, inputs=True, outputs=True):
    """Rename what nodes read and write."""
    for one in graph.node:
        for values in [one.input] * inputs + [one.output] * outputs:
            values[:] = [names.get(value, value) for value in values]


def behind(name, *nodes, **constants):
    """Nodes, which read `X` and write `Y`, between the tensor of a name and those that read it."""

    def plant(model):
        graph = model.graph
        given = any(value.name == name for value in graph.input)
        names = dict(X=name if given else f'right/{name}', Y=f'wrong/{name}' if given else name)
        rename(graph, {name: names['Y' if given else 'X']}, inputs=given, outputs=not given)
        made = [onnx.NodeProto.FromString(one.SerializeToString()) for one in nodes]
        for one in made:
            one.input[:] = [names.get(value, value) for value in one.input]
            one.output[:] = [names.get(value, value) for value in one.output]
        makers = [place + 1 for place, one in enumerate(graph.node) if names['X'] in one.output]
        place = 0 if given else makers[0]
        for one in reversed(made):
            graph.node.insert(place, one)
        for key, value in constants.items():
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), key))

    return plant


def node(kind, inputs, outputs=('Y',), **attributes):
    return helper.make_node(kind, inputs.split(), list(outputs), **attributes)


OF_THE_FIRST_IMAGE = (
    node('Gather', 'X zero', ['first']),
    node('Shape', 'X', ['shape']),
    node('Expand', 'first shape'),
)
HALVES = node('Split', 'X', ['left', 'right'], axis=-1), node('Concat', 'right left', axis=-1)
NONE_OF_IT = node('Mul', 'X nothing', ['none']), node('Add', 'none frozen')


def frozen(name, value):
    """An input still reaches the outputs, times zero; what counts is a constant."""
    return behind(name, *NONE_OF_IT, nothing=np.float32(0), frozen=np.float32(value))


def of_the_first_image(name):
    return behind(name, *OF_THE_FIRST_IMAGE, zero=np.int64([0]))


def cut_off(name, value):
    """What reads an input reads a constant instead."""

    def plant(model):
        rename(model.graph, {name: 'instead'}, outputs=False)
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), 'instead'))

    return plant


def swapped(first, second):
    return lambda model: rename(model.graph, {first: second, second: first})


def attribute(operator, name, value):
    """Change an attribute of all nodes of an operator."""

    def plant(model):
        nodes = [one for one in all_nodes(model) if one.op_type == operator]
        assert nodes
        for one in nodes:
            set_attribute(one, name, value)

    return plant


def metadata(key, change):
    """Change an entry of the metadata."""

    def plant(model):
        entry = next(one for one in model.metadata_props if one.key == f'mm2onnx.{key}')
        value = json.loads(entry.value)
        entry.value = json.dumps(change(value))

    return plant


def another_dtype(model):
    behind('labels', node('Cast', 'X', to=onnx.TensorProto.INT32))(model)
    next(one for one in model.graph.output if one.name == 'labels').type.tensor_type.elem_type = 6


def another_opset(model):
    model.opset_import[0].version = 16


EDITS = {
    'a number changed': ('atss', number(0.05, 0.2), OUTPUTS),
    'deviations of another coder': ('atss', number([0.1, 0.1, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1]), OUTPUTS),
    'sigmoid twice': ('atss', behind('cls_score_1', node('Sigmoid', 'X')), OUTPUTS),
    'every image is the first': ('atss', of_the_first_image('input'), OUTPUTS),
    'the size of the export': ('atss', frozen('img_shape', [[128, 160]]), OUTPUTS),
    'a resize of the other pixel': ('atss', attribute('Resize', 'nearest_mode', b'ceil'), OUTPUTS),
    'rows in ascending order': (
        'atss',
        behind('dets', node('Slice', 'X last end axis back'), last=[-1], end=[-(2**31)], axis=[1], back=[-1]),
        OUTPUTS,
    ),
    'labels from 1': ('atss', behind('labels', node('Add', 'X one'), one=np.int64(1)), OUTPUTS),
    'another type': ('atss', another_dtype, CHECKS),
    'another opset': ('atss', another_opset, CHECKS),
    'an input without use': ('atss', cut_off('scale_factor', [[1, 1, 1, 1]]), CHECKS),
    'noise': (
        'atss',
        behind('cls_score_0', node('RandomNormalLike', 'X', ['noise'], scale=1e-9), node('Add', 'X noise')),
        CHECKS,
    ),
    'mean in the file': ('atss', metadata('preprocess', lambda one: one | dict(mean=[0, 0, 0])), CHECKS),
    'levels exchanged': ('atss raw', swapped('cls_score_3', 'cls_score_4'), OUTPUTS),
    'a candidate less': ('atss', number(1000, 999), FILE),
    'regions not aligned': (
        'mask_rcnn',
        attribute('RoiAlign', 'coordinate_transformation_mode', b'output_half_pixel'),
        OUTPUTS,
    ),
    'masks of the next class': (
        'mask_rcnn',
        weight('conv_logits.weight', lambda one: np.roll(one, 1, 0)),
        OUTPUTS,
    ),
    'masks with their halves exchanged': ('mask_rcnn', behind('masks', *HALVES), OUTPUTS),
    'samples of the nearest cell': ('deformable_detr', attribute('GridSample', 'mode', b'nearest'), OUTPUTS),
}  # fmt: skip
"""What is wrong -> name of the right file, what plants it, and what finds it."""
EDITS_OF_THE_SUITE = (
    'every image is the first', 'rows in ascending order', 'labels from 1', 'an input without use', 'noise',
    'mean in the file', 'levels exchanged',
)  # fmt: skip


def planted(one, folder, plant, graph=0):
    """Return paths of the right files, one of which has a fault."""
    paths = [shutil.copy(path, folder) for path in one.paths]
    model = onnx.load(paths[graph])
    plant(model)
    Path(paths[graph]).write_bytes(sealed(model.SerializeToString()))
    return list(map(str, paths))


@pytest.mark.parametrize('fault', in_suite(EDITS, *EDITS_OF_THE_SUITE))
def test_an_edited_file_is_not_proven(right, tmp_path, fault):
    name, plant, found_by = EDITS[fault]
    one = right(name)
    assert one.found_by(one.detector, planted(one, tmp_path, plant)) == found_by


def test_an_input_that_fails_decides_the_verdict(right, tmp_path):
    one = right('atss')
    paths = planted(one, tmp_path, EDITS['sigmoid twice'][1])
    verdict = edited_verdict(one.detector, paths, one.samples())
    assert verdict.title == 'NOT PROVEN'
    assert not cases_of(verdict)[0].passed


# --- the exporter has a fault ---------------------------------------------------------------------------


POSTPROCESS = 'mmdeploy_ext.exporting.postprocess.bbox2d:DenseBoxPostprocess.forward'


def weighed_before_the_threshold(self, boxes, scores, factors, *others):
    scores = [score * factor[..., None] for score, factor in zip(scores, factors, strict=True)]
    return self, boxes, scores, [torch.ones_like(factor) for factor in factors], *others


def rescaled_before_the_clipping(self, boxes, scores, factors, clip, scale, *others):
    boxes = [level / scale[:, None] for level in boxes]
    return self, boxes, scores, factors, clip, torch.ones_like(scale), *others


def without_factors(self, boxes, scores, factors, *others):
    return self, boxes, scores, [torch.ones_like(factor) for factor in factors], *others


def where_nothing_is_found(found, *_):
    """Return a mask of score 0.9 where there are no results."""
    masks, scores, labels, *others = found
    more = 1 - (scores > 0).sum(1).amax().clamp(max=1)
    batch, _, height, width = masks.shape
    mask = torch.ones(1, dtype=torch.bool).reshape(1, 1, 1, 1).expand(batch, 1, height, width)[:, :more]
    score, label = torch.full((1, 1), 0.9).expand(batch, 1), torch.zeros(1, 1, dtype=torch.long)
    return (
        torch.cat([masks, mask], 1),
        torch.cat([scores, score[:, :more]], 1),
        torch.cat([labels, label.expand(batch, 1)[:, :more]], 1),
        *others,
    )


def best_class_of_a_cell(self, classes, *others):
    best = classes.amax(2, keepdim=True)
    return self, torch.where(classes == best, classes, torch.zeros_like(classes)), *others


def of_one_original_size(self, classes, soft, img_shape, ori_shape):
    return self, classes, soft, img_shape, torch.tensor(PICTURES[0][1].shape[:2]) + 0 * ori_shape


def a_row_more(shape):
    return shape[0] + 1, *shape[1:]


MASKS = 'mmdeploy_ext.exporting.postprocess.mask:MaskPostprocess.forward'
EXPORTERS = {
    'scores weighed before the threshold': ('atss', POSTPROCESS, arguments(weighed_before_the_threshold)),
    'boxes rescaled before they are clipped': ('atss', POSTPROCESS, arguments(rescaled_before_the_clipping)),
    'objectness left out': ('yolox', POSTPROCESS, arguments(without_factors)),
    'one suppression for all classes': (
        'yolox',
        'mmdeploy_ext.families.dense.graphs:model_facts',
        result(lambda found, *_: dataclasses.replace(found, class_agnostic=True)),
    ),
    'a mask where nothing is found': ('solov2', MASKS, result(where_nothing_is_found)),
    'classes of lower scores left out': ('seeded solov2', MASKS, arguments(best_class_of_a_cell)),
    'one original size': ('solov2', MASKS, arguments(of_one_original_size)),
    'an image of a row more': (
        'deformable_detr',
        'mmdeploy_ext.exporting.traced.whole:metas_of',
        result(lambda metas, *_: [meta | dict(img_shape=a_row_more(meta['img_shape'])) for meta in metas]),
    ),
}
"""What is wrong -> toy, the function of the exporter that is wrong, and how."""


@functools.cache
def model_of(name):
    """Return a toy of configs/demo, or one with seeded weights, whose cells have several classes."""
    if name == 'seeded solov2':
        with tempfile.TemporaryDirectory() as folder:
            return toy_solo.load_toy('solov2', Path(folder))
    return load_demo(name)


def passed_cases(detector, path):
    """Yield of each input of a proof whether it passes, the plain picture first."""
    file, options = read_picture_file(detector, path)
    with open_backend({}, file) as backend:
        for entry in reversed(picture_inputs(detector, file, options, PICTURES)[0]):
            computed = isinstance(entry, InputReference)
            yield run_case(entry if computed else InputReference(detector, entry), backend).passed


@pytest.mark.matrix  # in the suite: edited files, found by the same comparison
@pytest.mark.parametrize('fault', EXPORTERS)
def test_a_file_of_a_wrong_exporter_is_not_proven(tmp_path, fault):
    name, place, make = EXPORTERS[fault]
    detector = model_of(name)
    with replaced(place, make):
        paths = export(detector, tmp_path / 'm.onnx')
    assert not all(passed_cases(detector, *paths))


# --- cameras, time and memory ---------------------------------------------------------------------------

STREAMS = {
    'cameras swapped': (0, behind('img', node('Gather', 'X order'), order=[1, 0, 2, 3, 4, 5])),
    'a matrix transposed': (1, behind('img2lidar', node('Transpose', 'X', perm=[0, 1, 3, 2]))),
    'time of the export': (2, frozen('delta_t_s', [0.5])),
    'a memory that is never emptied': (2, frozen('prev_exists', [1.0])),
}  # fmt: skip
"""What is wrong -> number of the graph, and what plants it."""


@pytest.mark.parametrize('fault', in_suite(STREAMS, 'a memory that is never emptied'))
def test_a_stream_with_a_fault_is_not_proven(right, tmp_path, fault):
    graph, plant = STREAMS[fault]
    one = right('streampetr')
    assert one.found_by(one.detector, planted(one, tmp_path, plant, graph))


# --- points ---------------------------------------------------------------------------------------------

POINTS = {
    'range shifted': {'[-6.4, -8.0, -1.6, 6.4, 8.0, 1.6]': '[-6.4, -8.0, -1.2, 6.4, 8.0, 2.0]'},
    'boxes of another centre': {'out_size_factor=2': 'out_size_factor=1'},
}


@pytest.mark.matrix
@pytest.mark.parametrize('fault', POINTS)
def test_files_of_another_grid_are_not_proven(right, tmp_path, fault):
    one = right('centerpoint')
    config = toy_centerpoint.write_config(tmp_path, words=toy_centerpoint.PILLARS | POINTS[fault])
    assert one.found_by(detectors.load(config, one.detector.checkpoint), one.paths)


@pytest.mark.matrix
@pytest.mark.parametrize('graph', [0, 1])
def test_axes_of_a_grid_that_are_swapped_are_not_proven(right, tmp_path, graph):
    one = right('centerpoint')
    plant = behind('bev', node('Transpose', 'X', perm=[0, 1, 3, 2]))
    assert one.found_by(one.detector, planted(one, tmp_path, plant, graph)) == OUTPUTS
