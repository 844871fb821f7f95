"""Exported one-stage detectors of rotated boxes against PyTorch, at a size and batch that were not traced."""

import dataclasses
import functools
import types

import numpy as np
import onnxruntime
import pytest
import small_models
import torch

from mm2onnx_mmrotate import task
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.exporting import copy
from mmdeploy_ext.exporting.export import export_stages
from mmdeploy_ext.families.detector import check_picture_options, resolve_opset
from mmdeploy_ext.runtime import detect
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage

TRACED, OTHER = (160, 192), (192, 256)
CHEAP = ('retina_le90', 's2anet')
CASES = [
    pytest.param(name, form, marks=[] if form == 'full' or name in CHEAP else pytest.mark.matrix)
    for name in small_models.MODELS
    for form in ('full', 'decode', 'raw')
]


def prepared(count, size, seed):
    """Return prepared pictures whose content ends before their input does, and that were resized."""
    tensors = small_models.pictures(count, *size, seed).numpy()
    content, ratio = (size[0] - 5, size[1] - 9), np.full(4, 0.8, np.float32)
    original = tuple(int(side / 0.8) for side in content)
    return [PreparedImage(tensor, content, ratio, original) for tensor in tensors]


def exported(family, model, **options):
    """Return the session and the options of an export."""
    chosen = family.choose(opset=0, height=TRACED[0], width=TRACED[1], **options)
    options = resolve_opset(chosen, model)
    (graph,) = family.graphs(copy.prepared(model), options)
    feeds = family.feeds(prepared(1, TRACED, 0), rescale=True)
    example = {name: torch.from_numpy(feeds[name]) for name in graph.spec.input_names if name in feeds}
    onnx_model = export_stages(graph.stages, example, graph.spec, options)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(onnx_model.SerializeToString(), settings), options


def run(session, feeds):
    """Return name -> output."""
    names = [entry.name for entry in (*session.get_inputs(), *session.get_overridable_initializers())]
    outputs = session.run(None, {name: value for name, value in feeds.items() if name in names})
    return dict(zip([entry.name for entry in session.get_outputs()], outputs, strict=True))


def results_of(family, model, options, outputs, feeds):
    metadata = types.SimpleNamespace(
        postprocess=family.facts(model), form=options.form, options=dict(options)
    )
    return detect.results_of(family.name, metadata, outputs, feeds)


@pytest.mark.parametrize(('name', 'form'), CASES)
def test_a_file_of_any_size_gives_the_results_of_mmrotate_for_a_batch(name, form):
    _, family, model = small_models.seeded(name)
    session, options = exported(family, model, form=form, dynamic=True)
    images = prepared(2, OTHER, 3)
    feeds = family.feeds(images, rescale=True)
    outputs = run(session, feeds)
    if form != 'full':
        for key, right in family.reference(model).tensors(feeds, form).items():
            np.testing.assert_allclose(outputs[key], right, rtol=1e-4, atol=1e-4 * np.abs(right).max())
    results = results_of(family, model, options, outputs, feeds)
    references = family.reference(model).results(images, True)
    for reference, candidate in zip(references, results, strict=True):
        row = task.match_detections('', reference, candidate)
        assert row.passed and len(reference) > 10, row


def test_a_cap_keeps_the_best_and_counts_the_candidates():
    _, family, model = small_models.seeded('retina_le90')
    images = prepared(1, TRACED, 3)
    feeds = family.feeds(images, rescale=True)
    ((lower,), (upper,)) = family.reference(model).candidate_bounds(feeds, 1e-4)['candidates']
    session, options = exported(family, model, form='full', max_candidates=int(upper) + 3)
    outputs = run(session, feeds)
    assert lower <= outputs['candidates'][0] <= upper and outputs['dets'].shape[1] == min(upper + 3, 200)
    (reference,) = family.reference(model).results(images, True)
    (candidate,) = results_of(family, model, options, outputs, feeds)
    assert task.match_detections('', reference, candidate).passed
    session, options = exported(family, model, form='full', max_candidates=3)
    outputs = run(session, feeds)
    assert lower <= outputs['candidates'][0] <= upper and outputs['dets'].shape[1] == 3


def test_nothing_and_one_result_pass_through():
    _, family, model = small_models.seeded('fcos')
    images = prepared(2, TRACED, 3)
    feeds = family.feeds(images, rescale=False)
    (reference, _) = family.reference(model).results(images, False)
    for threshold, count in ((0.999, 0), (float(reference.scores[:1].mean()) - 1e-4, None)):
        model.bbox_head.test_cfg.score_thr = threshold
        session, options = exported(family, model, form='full', dynamic=True)
        results = results_of(family, model, options, run(session, feeds), feeds)
        for expected, candidate in zip(family.reference(model).results(images, False), results, strict=True):
            assert len(candidate) == len(expected) and (count is None or len(candidate) == count)


def test_what_is_refused_is_named():
    cfg = small_models.config('r3det')
    _, family, _ = small_models.seeded('retina_oc')
    options = family.choose(height=160, width=192)
    cfg.model.bbox_head = dict(cfg.model.bbox_head, type='CSLRRetinaHead', **small_models.CSL)
    with pytest.raises(Exception, match=r'model.bbox_head is CSLRRetinaHead; expected a RotatedRetinaHead'):
        family.check(cfg, options)
    cfg = small_models.config('retina_oc')
    cfg.model.test_cfg = dict(small_models.TEST, nms=dict(type='nms'))
    with pytest.raises(Exception, match=r'test_cfg.nms: got .* expected iou_thr'):
        family.check(cfg, options)
    assert dataclasses.is_dataclass(family.preprocess_rule(cfg))
    cfg = small_models.config('retina_oc')
    chosen = functools.partial(family.choose, height=64, width=96, form='full')
    pairs = (96 + 24 + 6 + 2) * 3 * small_models.CLASSES
    family.check(cfg, chosen(max_candidates=pairs))
    with pytest.raises(UsageError, match=f'the model has only {pairs} candidates at 64 x 96'):
        family.check(cfg, chosen(max_candidates=pairs + 1))
    with pytest.raises(UsageError, match='omit --dynamic-export'):
        family.check(cfg, chosen(max_candidates=5, dynamic=True))


def test_only_files_of_any_size_refuse_maps_that_are_smaller_than_a_kernel():
    cfg, family, model = small_models.seeded('s2anet')
    fixed, dynamic = (
        family.choose(opset=0, height=128, width=192, dynamic=dynamic) for dynamic in (False, True)
    )
    smallest = 2 * small_models.STRIDES[-1] + 1
    assert [family.spec(model, options).inputs[0].smallest for options in (fixed, dynamic)] == [1, smallest]
    check_picture_options(fixed, cfg, family, model)
    check_picture_options(dynamic.replace(height=smallest), cfg, family, model)
    with pytest.raises(UsageError, match=r'--shape 128 192: a file of any size takes .* 129 pixels'):
        check_picture_options(dynamic, cfg, family, model)
