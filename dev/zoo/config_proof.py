"""Exports one config with seeded weights, with fixed and dynamic input size, and proves both files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dev.zoo.configs import Config, library_of, resize_to
from dev.zoo.records import EXPORT_KINDS, MAX_CHARACTERS, NOT_PROVEN, Outcome, Record, outcome_of_error
from mmdeploy_ext.base.config import load_config, without_augmentation
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.source_code import versions
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.families.backbone_files import read_settings
from mmdeploy_ext.families.base import BACKBONE, DETECTOR, Family, find_family
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector import (
    Detector,
    check_picture_options,
    class_names,
    prepare_fixed,
    resolve_opset,
)
from mmdeploy_ext.families.detector_files import export_files
from mmdeploy_ext.families.images import picture_of
from mmdeploy_ext.proving.subject import Claims
from mmdeploy_ext.spec.registry import registered, registration_of
from mmdeploy_ext.upstream.compat.plain_kernels import MMCV_MODULES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import torch

    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.verdict import Verdict

WEIGHTS = 'seeded weights'
"""The metadata's checkpoint path."""
CHECKED_SIZE = (1024, 1024)
"""(H, W) that every network takes, for a check before the build."""
MIN_SIDE = 512
"""Shortest side in pixels if a network refuses the size of the run: SSD512 has a level of stride 512."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings that all configs of a run share.

    Attributes:
        size: (H, W) of the traced input in pixels, rounded up for the network.
        picture: title and picture (h, w, 3) uint8 BGR that the proof begins with.
        seeded: builds the detector with seeded weights from a config and its family.
        engine: see `engines.registry.engine_settings`.
        export_kinds: a choice of `EXPORT_KINDS`.
        sweeps: number of generated sweeps.
    """

    size: tuple[int, int]
    picture: tuple[str, np.ndarray]
    seeded: Callable[[Any, Family], torch.nn.Module]
    engine: Mapping[str, Any]
    export_kinds: tuple[str, ...] = EXPORT_KINDS
    sweeps: int = 3


def origin_digest(config: Config, settings: Settings) -> str:
    """Return a hash of all inputs of a config's outcomes; '' for the user's own configs."""
    if not library_of(Path(config.path)) or not config.test_digest:
        return ''
    run = settings.size, settings.sweeps, settings.export_kinds, sorted(settings.engine.items())
    digest = hashlib.sha256(repr((config.test_digest, sorted(versions().items()), run)).encode())
    digest.update(settings.picture[1].tobytes())
    for package in sorted({registration.family.partition('.')[0] for registration in registered().values()}):
        for folder in importlib.import_module(package).__path__:
            digest.update(code_digest(Path(folder)).encode())
    return digest.hexdigest()


@functools.cache
def code_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob('*.py')):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def prove_config(config: Config, settings: Settings, keep: Callable[[Record], None]) -> Record:
    """Export and prove a config; an error becomes the outcome in its record.

    `keep` gets the record after each export.
    """
    record = Record(config.name, config.parts, made_from=origin_digest(config, settings))
    try:
        cfg = load_config(config.path)
        record = dataclasses.replace(record, notes=without_augmentation(cfg))
        resize_to(cfg, settings.size)
        detector = _deploy(config, cfg, settings)
    except Exception as error:
        return dataclasses.replace(record, **{settings.export_kinds[0]: outcome_of_error(error)})
    types, family = {type(module).__name__ for module in detector.model.modules()}, detector.family
    own_kernels = tuple(sorted(types & {*MMCV_MODULES, *registration_of(family.name).own_kernels}))
    record = dataclasses.replace(record, family=family.name, task=family.task, own_kernels=own_kernels)
    for kind in settings.export_kinds:
        if kind == 'fixed' or _takes_pictures(family):
            outcome = _prove_export(detector, settings, kind == 'dynamic')
            record = dataclasses.replace(record, **{kind: outcome})
            keep(record)
    return record


def _deploy(config: Config, cfg: Any, settings: Settings) -> Detector:
    family = find_family(cfg, DETECTOR)
    rule = family.preprocess_rule(cfg)
    if _takes_pictures(family):
        family.check(cfg, _image_options(family, CHECKED_SIZE, dynamic=False))
    else:
        options = family.choose(opset=0)
        family.check(cfg, options)
        contract_of(family, options).check(cfg)
    model = settings.seeded(cfg, family)
    model.eval()  # by itself, since the `train` of some detectors returns None
    model.CLASSES = class_names(cfg, meta={}, num_classes=family.num_classes(model))
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.numpy().tobytes())
    detector = Detector(
        cfg=cfg,
        config=config.path,
        cfg_options={},
        family=family,
        model=model,
        checkpoint=WEIGHTS,
        checkpoint_sha256=digest.hexdigest(),
        classes=model.CLASSES,
        rule=rule,
    )
    if family.product == BACKBONE:
        read_settings(detector)
    return detector


def _takes_pictures(family: Family) -> bool:
    return family.samples == 'images'


def _image_options(family: Family, size: tuple[int, int], dynamic: bool) -> Options:
    return family.choose(opset=0, height=size[0], width=size[1], dynamic=dynamic)


def choose_options(detector: Detector, size: tuple[int, int], dynamic: bool) -> Options:
    """Return the options of an export at (H, W), rounded up for the network."""
    try:
        return _options_at(detector, size, dynamic)
    except UsageError:
        return _options_at(detector, tuple(max(MIN_SIDE, side) for side in size), dynamic)


def _options_at(detector: Detector, size: tuple[int, int], dynamic: bool) -> Options:
    family, model = detector.family, detector.model
    options = resolve_opset(_image_options(family, size, dynamic), model)
    multiple = picture_of(family, model, options).multiple
    height, width = (-(-side // multiple) * multiple for side in size)
    return check_picture_options(options.replace(height=height, width=width), detector.cfg, family, model)


def _prove_export(detector: Detector, settings: Settings, dynamic: bool) -> Outcome:
    start = time.process_time()
    family, rule = detector.family, detector.rule
    try:
        if _takes_pictures(family):
            options = choose_options(detector, settings.size, dynamic)
            shape, name = (options.height, options.width), 'model.onnx'
            traced = [prepare_fixed(rule, settings.picture[1], *shape)]
            samples = [settings.picture]
        else:
            options = resolve_opset(family.choose(opset=0), detector.model)
            shape, name, traced = (0, 0), 'model', ()
            samples = list(family.data.generated_sweeps(rule, settings.sweeps))
        with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
            paths, _ = export_files(detector, options, str(Path(folder, name)), traced)
            claims = Claims(written=True, timed=False)
            engine = dict(settings.engine or {})
            verdict = kind_of(family).subject().prove(detector, paths, samples, engine, claims)
    except Exception as error:
        return dataclasses.replace(outcome_of_error(error), seconds=time.process_time() - start)
    seconds = time.process_time() - start
    return Outcome(shape=shape, seconds=seconds, **_figures(verdict))


def _figures(verdict: Verdict) -> dict[str, Any]:
    summary = verdict.summary()
    failure = {}
    labels_drawn = [getattr(pair.reference, 'labels', ()) for pair in verdict.pairs]
    if not verdict.proven:
        failure = dict(reason=NOT_PROVEN, why='; '.join(verdict.failures)[:MAX_CHARACTERS])
    return dict(
        proven=verdict.proven,
        inputs=summary['inputs'],
        reference=summary['reference'],
        matched=summary['matched'],
        fewest=min((finding.figures['reference'] for finding in verdict.with_figure('image')), default=0),
        classes=len({int(label) for labels in labels_drawn for label in labels}),
        worst_rel=summary['worst_rel'],
        worst_iou=summary['worst_iou'],
        worst_score=summary['worst_score'],
        worst_distance=summary['worst_distance'],
        **failure,
    )
