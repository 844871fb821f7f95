"""SOLO family: raw, fork and full graphs, traced on one input, equal to mmdet on others."""

import functools

import numpy as np
import onnx
import pytest

from image_checks import run_stages
from marking import in_suite
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.engines.tensorrt.limits import find_refusals
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.detector_files import export_files, make_metadata
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.tasks.mask import match_detections
from toy_solo import GRIDS, HEADS, TRACED, load_toy, options_for, prepared

OPSETS = {'solov2_light_dcn': 19}


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp('weights')
    return functools.cache(lambda name: load_toy(name, folder))


@pytest.fixture(scope='module')
def files(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp('models')

    @functools.cache
    def export(name, **changes):
        changes.setdefault('opset', OPSETS.get(name, 17))
        path = folder / ('_'.join([name, *(f'{key}-{value}' for key, value in changes.items())]) + '.onnx')
        export_files(models(name), options_for(**changes), str(path), [prepared(models(name), 0)])
        return str(path)

    return export


def run(detector, path, images):
    """Return what a file says of itself, feeds and outputs."""
    with build_backend('OnnxRuntimeBackend', path, graph_optimization='basic') as backend:
        feeds = detector.family.feeds(images, True)
        return backend.metadata, feeds, backend.infer(backend.select_inputs(feeds))


def check_tensors(detector, metadata, feeds, outputs):
    """Compare with unpatched mmdet to 1e-4 of the scale."""
    family, layout = detector.family, metadata.options['layout']
    reference = family.reference(detector.model).tensors(feeds, 'raw', layout=layout)
    assert list(reference) == list(outputs) == metadata.spec.output_names
    for name, wanted in reference.items():
        assert outputs[name].shape == wanted.shape
        assert np.abs(outputs[name] - wanted).max() <= 1e-4 * np.abs(wanted).max(), name


def check_instances(detector, metadata, feeds, outputs, images, expected=None):
    """Compare with mmdet's own `get_results`; enough are compared."""
    family, model = detector.family, detector.model
    expected = expected or family.reference(model).results(images, True)
    found = results_of(family.name, metadata, outputs, feeds)
    rows = [match_detections('image', *pair) for pair in zip(expected, found, strict=True)]
    assert all(row.passed for row in rows), rows
    assert min(row.matched for row in rows) >= 20


def eager(detector, images, **chosen):
    """Return what a file would say of itself, feeds, and outputs of the modules that are exported."""
    family, model, options = detector.family, detector.model, options_for(batch=len(images), **chosen)
    metadata = make_metadata(detector, detectors.check_picture_options(options, detector.cfg, family, model))
    feeds = family.feeds(images, True)
    outputs = run_stages(family.stages(model, options), feeds)
    return metadata, feeds, {name: outputs[name] for name in metadata.spec.output_names}


@pytest.mark.parametrize('name', HEADS)
def test_eager_tensors_and_instances_of_each_form_are_those_of_mmdet(models, name):
    detector, chosen = models(name), dict(opset=OPSETS.get(name, 17))
    images = [prepared(detector, index) for index in (2, 1)]
    raw = eager(detector, images, form='raw', **chosen)
    check_tensors(detector, *raw)
    expected = detector.family.reference(detector.model).results(images, True)
    check_instances(detector, *raw, images, expected)
    check_instances(detector, *eager(detector, images, form='full', **chosen), images, expected)


@pytest.mark.parametrize(
    ('form', 'name'),
    [
        *in_suite((('raw', name) for name in HEADS), ('raw', 'decoupled_light')),
        *in_suite((('full', name) for name in HEADS), ('full', 'solov2')),
    ],
)
def test_a_dynamic_file_equals_mmdet_at_a_size_and_batch_it_never_saw(models, files, name, form):
    detector, path = models(name), files(name, form=form, dynamic=True)
    size = (96, 192) if name.startswith('solov2') else (101, 150)  # SOLOv2 takes multiples of 32
    images = [prepared(detector, index, size) for index in (2, 1)]
    found = run(detector, path, images)
    if form == 'raw':
        check_tensors(detector, *found)
    check_instances(detector, *found, images)


@pytest.mark.parametrize('name', in_suite(['decoupled', 'solov2', 'solo', 'decoupled_light'], 'solov2'))
def test_a_capped_file_equals_mmdet_and_holds_nothing_that_tensorrt_refuses(models, files, name):
    detector, images = models(name), [prepared(models(name), 1)]
    path = files(name, form='full', max_candidates=600)
    metadata, feeds, outputs = run(detector, path, images)
    check_instances(detector, metadata, feeds, outputs, images)
    assert not find_refusals(onnx.load(path), rtx=True)


def test_the_fork_layout_has_the_forks_outputs_in_its_order(models):
    detector, images = models('solov2'), [prepared(models('solov2'), 1)]
    metadata, feeds, outputs = eager(detector, images, form='raw', layout='fork', opset=17)
    check_tensors(detector, metadata, feeds, outputs)
    check_instances(detector, metadata, feeds, outputs, images)
    cells, (height, width) = sum(grid**2 for grid in GRIDS), TRACED
    masks = (1, 24, height // 4, width // 4)
    shapes = [(name, array.shape) for name, array in outputs.items()]
    assert shapes == [('cate_pred', (cells, 5)), ('kernel_pred', (cells, 24)), ('seg_pred', masks)]
