"""ATSS: three forms, fixed and dynamic, traced on one input, equal to mmdet on others; variants; refusals."""

import copy
import functools

import numpy as np
import onnx
import pytest
import torch

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
from dev.seeded.weights import fill_seeded
from marking import in_suite
from mmdeploy_ext.base.config import load_config, mmdet_config
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import FAMILIES, find_family
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.families.synthetic import coco
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.tasks.bbox2d import match_detections
from mmdeploy_ext.spec.metadata import read_metadata

PUBLISHED = mmdet_config('atss/atss_r50_fpn_1x_coco.py')
SMALL = {
    'model.backbone.depth': 18,
    'model.backbone.base_channels': 8,
    'model.backbone.stem_channels': 8,
    'model.neck.in_channels': [8, 16, 32, 64],
    'model.neck.out_channels': 32,
    'model.bbox_head.in_channels': 32,
    'model.bbox_head.feat_channels': 16,
    'model.bbox_head.stacked_convs': 1,
    'model.bbox_head.norm_cfg': dict(type='GN', num_groups=4),
    'model.bbox_head.num_classes': 7,
}
FORMS = ('full', 'decode', 'raw')
TRACED = (128, 160)


def load(folder, cfg_options=SMALL, config=PUBLISHED):
    """Return a small ATSS with seeded weights, read from a checkpoint file as users' models are."""
    cfg = load_config(config, copy.deepcopy(cfg_options))
    path = folder / 'seeded.pth'
    torch.save(dict(state_dict=fill_seeded(find_family(cfg).build(cfg)).state_dict()), path)
    return detectors.load(config, str(path), copy.deepcopy(cfg_options))


@pytest.fixture(scope='module')
def detector(tmp_path_factory):
    return load(tmp_path_factory.mktemp('weights'))


@functools.cache
def picture(index, height=150, width=200):
    return coco.sample(3, 'picture', index, (height, width))[0]


def prepared(detector, index, size=TRACED):
    return detectors.prepare_fixed(detector.rule, picture(index), *size)


def options_for(**changes):
    return FAMILIES['dense'].choose(**{'height': TRACED[0], 'width': TRACED[1], **changes})


@pytest.fixture(scope='module')
def files(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')

    @functools.cache
    def export(**changes):
        options = options_for(**changes)
        path = folder / ('_'.join(f'{key}-{value}' for key, value in changes.items()) + '.onnx')
        export_files(detector, options, str(path), [prepared(detector, 0)])
        return str(path)

    return export


def check_outputs(detector, path, images, rescale):
    """Compare one file with unpatched mmdet: tensors to 1e-4 of their scale, detections by class and IoU."""
    family = detector.family
    with build_backend('OnnxRuntimeBackend', path) as backend:
        feeds = family.feeds(images, rescale)
        outputs = backend.infer({name: feeds[name] for name in backend.spec.input_names if name in feeds})
        metadata = backend.metadata
    if metadata.form != 'full':
        reference = family.reference(detector.model).tensors(feeds, metadata.form)
        assert list(reference) == list(outputs)
        for name, wanted in reference.items():
            assert outputs[name].shape == wanted.shape
            assert np.abs(outputs[name] - wanted).max() <= 1e-4 * np.abs(wanted).max()
    expected = family.reference(detector.model).results(images, rescale)
    rows = [
        match_detections('image', wanted, got)
        for wanted, got in zip(expected, results_of(family.name, metadata, outputs, feeds), strict=True)
    ]
    assert all(row.passed for row in rows), rows
    assert sum(row.matched for row in rows) >= 25


@pytest.mark.parametrize('form', in_suite(FORMS, 'full'))
@pytest.mark.parametrize('rescale', in_suite([False, True], False))
def test_a_fixed_file_equals_mmdet_on_an_image_it_never_saw(detector, files, form, rescale):
    check_outputs(detector, files(form=form, dynamic=False), [prepared(detector, 1)], rescale)


@pytest.mark.parametrize('form', in_suite(FORMS, 'full', 'raw'))
@pytest.mark.parametrize(('size', 'batch'), in_suite([((96, 256), 1), ((150, 203), 2)], ((150, 203), 2)))
def test_a_dynamic_file_equals_mmdet_at_other_sizes_and_batches(detector, files, form, size, batch):
    images = [prepared(detector, index + 1, size) for index in range(batch)]
    check_outputs(detector, files(form=form, dynamic=True), images, rescale=batch == 2)


def graph_tensors(values):
    return [
        (
            value.name,
            str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
            tuple(dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim),
        )
        for value in values
    ]


@pytest.mark.parametrize(
    'changes',
    [
        dict(form='full', dynamic=False),
        dict(form='decode', score_form='product', dynamic=True),
        dict(form='raw', dynamic=True),
    ],
)
def test_spec_names_are_graph_names_are_metadata(detector, files, changes):
    model, metadata = onnx.load(files(**changes)), read_metadata(files(**changes))
    spec = detector.family.spec(detector.model, options_for(**changes))
    assert metadata.spec == spec
    for values, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        wanted = [(tensor.name, tensor.dtype, tensor.axes) for tensor in tensors]
        assert graph_tensors(values) == wanted
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    assert (metadata.family, metadata.form) == ('dense', changes['form'])
    assert metadata.classes == detector.classes
    assert metadata.checkpoint_sha256 == detector.checkpoint_sha256
    assert metadata.config_sha256 == detector.config_sha256


def test_the_product_of_scores_and_centerness_is_what_mmdet_multiplies(detector, files):
    path = files(form='decode', score_form='product', dynamic=True)
    feeds = detector.family.feeds([prepared(detector, 2, (96, 96))], False)
    reference = detector.family.reference(detector.model).tensors(feeds, 'decode')
    with build_backend('OnnxRuntimeBackend', path) as backend:
        found = backend.infer({'input': feeds['input']})
    assert list(found) == ['boxes', 'scores']
    axes = [tensor.axes for tensor in read_metadata(path).spec.outputs]
    assert axes == [('B', 'A', 4), ('B', 'A', len(detector.classes))]
    wanted = reference['scores'] * reference['centerness'][..., None]
    assert np.abs(found['scores'] - wanted).max() <= 1e-4 * wanted.max()


def test_the_opset_asked_for_is_the_opset_written(files):
    model = onnx.load(files(form='raw', opset=11))
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [('', 11)]
    assert {node.domain for node in model.graph.node} == {''}
    onnx.checker.check_model(model, full_check=True)


def test_img_shape_and_scale_factor_really_are_inputs(detector, files):
    image = prepared(detector, 1)
    with build_backend('OnnxRuntimeBackend', files(form='full', dynamic=False)) as backend:
        plain = backend.infer({'input': image.tensor[None]})['dets'][0]
        small = np.float32([[40, 50]])
        clipped = backend.infer({'input': image.tensor[None], 'img_shape': small})['dets'][0]
        factor = np.float32([[2, 4, 2, 4]])
        scaled = backend.infer({'input': image.tensor[None], 'scale_factor': factor})['dets'][0]
    assert plain[:, [0, 2]].max() > 50
    assert plain[:, [1, 3]].max() > 40
    assert clipped[:, [0, 2]].max() <= 50
    assert clipped[:, [1, 3]].max() <= 40
    assert scaled[:, 2].max() <= TRACED[1] / 2
    assert scaled[:, 3].max() <= TRACED[0] / 4


DEFORMABLE = {
    **SMALL,
    'model.backbone.depth': 50,
    'model.neck.in_channels': [32, 64, 128, 256],
    'model.backbone.dcn': dict(type='DCNv2', deform_groups=1, fallback_on_stride=False),
    'model.backbone.stage_with_dcn': (False, False, False, True),
}
YOLO = dict(_delete_=True, type='YOLOBBoxCoder')
NO_THRESHOLD = dict(_delete_=True, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)


@pytest.mark.parametrize(
    ('cfg_options', 'changes', 'message'),
    [
        ({}, dict(form='mask'), '--postprocess mask'),
        ({}, dict(height=127), '--shape 127 160'),
        ({}, dict(opset=10), '--opset-version 10'),
        ({}, dict(opset=17, exporter='dynamo'), '--opset-version 17'),
        (DEFORMABLE, dict(opset=17), '--opset-version 17'),
        ({'model.test_cfg.nms.type': 'soft_nms'}, {}, "nms.type='soft_nms'"),
        ({'model.bbox_head.bbox_coder': YOLO}, {}, r'YOLOBBoxCoder\.decode'),
        ({'model.test_cfg': NO_THRESHOLD}, {}, 'score_thr'),
        ({}, dict(height=64, width=64), '128'),
    ],
)
def test_what_cannot_be_exported_is_refused_by_name(cfg_options, changes, message):
    with pytest.raises((UsageError, ConfigError), match=message):
        options = options_for(**{'opset': 17, **changes})
        options.check()
        model = detectors.read_config(PUBLISHED, '', copy.deepcopy({**SMALL, **cfg_options}))
        detectors.build(model)
        detectors.check_picture_options(options, model.unbuilt_cfg, model.family, model.model)
