"""Stages, graphs and results of small detectors of pictures beside the user's own test path."""

import dataclasses
import types
from unittest import mock

import numpy as np
import onnxruntime
import torch

from dev.seeded import weights
from dev.seeded.dense import calibration_of
from mmdeploy_ext.exporting import export
from mmdeploy_ext.exporting.copy import prepared as prepared_copy
from mmdeploy_ext.exporting.export import default_opset
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.runtime.detect import results_of
from mmdeploy_ext.runtime.tasks import task_module

EXPORTERS = ('torchscript', 'dynamo')
ORIGINAL = (150, 210)


def seeded_toy(cfg, family):
    """Return a toy with seeded weights, whose scales are measured on smaller pictures than a user's."""

    def smaller(model):
        return calibration_of(model)._replace(size=(160, 208))

    with mock.patch.object(weights, 'calibration_of', smaller):
        return weights.seeded_model(cfg, family)


def seeded_detector(cfg, config='toy.py'):
    """Return the detector of a config's model with seeded weights."""
    family = find_family(cfg)
    model = weights.seeded_model(cfg, family).eval()
    model.CLASSES = detectors.class_names(cfg, {}, family.num_classes(model))
    if family.name == detectors.TRACED:
        family.layout(model, traced=True)  # as after the weights of a checkpoint
    return detectors.Detector(
        cfg=cfg, config=config, cfg_options={}, family=family, model=model, checkpoint='seeded',
        checkpoint_sha256='0' * 64, classes=model.CLASSES, rule=family.preprocess_rule(cfg),
    )  # fmt: skip


def of_one_size(images):
    """Return prepared pictures with one original size, as graphs take that paste masks."""
    found = []
    for one in images:
        scale = np.array([one.img_shape[1] / ORIGINAL[1], one.img_shape[0] / ORIGINAL[0]] * 2, np.float32)
        found.append(dataclasses.replace(one, ori_shape=ORIGINAL, scale_factor=scale))
    return found


def run_stages(stages, feeds):
    """Return what a chain of modules gives, by name."""
    named = {name: torch.from_numpy(np.asarray(array)) for name, array in feeds.items()}
    with torch.no_grad():
        for stage in stages:
            named.update(
                zip(stage.outputs, stage.module(*(named[name] for name in stage.inputs)), strict=True)
            )
    return {name: tensor.numpy() for name, tensor in named.items()}


def exported(family, model, options, prepared):
    """Trace a graph with prepared pictures; return it, and what gives its outputs by name for feeds."""
    model = prepared_copy(model)
    options = options.replace(opset=default_opset(model, options.exporter))
    (graph,) = family.graphs(model, options)
    feeds = {name: torch.from_numpy(array) for name, array in family.feeds(prepared, True).items()}
    file = export.export_stages(graph.stages, graph.example or feeds, graph.spec, options)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3
    quiet.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(file.SerializeToString(), quiet, ['CPUExecutionProvider'])
    names = graph.spec.output_names
    taken = [one.name for one in (*session.get_inputs(), *session.get_overridable_initializers())]

    def run(feeds):
        return dict(zip(names, session.run(names, {name: feeds[name] for name in taken}), strict=True))

    return file, run


def matched(family, model, outputs, prepared, form='full', rescale=True, **options):
    """Return a row per picture: how results that the runtime makes of outputs match the detector's own."""
    metadata = types.SimpleNamespace(form=form, options=options, postprocess=family.facts(model))
    found = results_of(family.name, metadata, outputs, family.feeds(prepared, rescale))
    wanted = family.reference(model).results(prepared, rescale)
    match = task_module(family.task).match_detections
    return [match('image', *pair) for pair in zip(wanted, found, strict=True)]


def check(family, model, outputs, prepared, least=1, ties=0, **how):
    """Assert that results equal the results of the user's detector, `least` in each picture.

    ties: results of both sides that rounding decides. Two buckets of a side of the seeded SABL score the same
        to rounding: PyTorch, rounded otherwise, takes the other one in 9 of 24 runs.
    """
    for row in matched(family, model, outputs, prepared, **how):
        assert row.reference >= least, row
        off = row.missing + row.extra + 2 * row.outside
        assert row.passed or (not row.broken and 0 < off <= ties), row


def changed(cfg, path, value):
    """Return a config with a key of its model, 'bbox_head.bbox_coder', set."""
    *keys, last = path.split('.')
    part = cfg.model
    for key in keys:
        part = part[int(key) if key.isdigit() else key]
    part[last] = value
    return cfg
