"""One config: built with seeded weights, exported with one size and with any, and both files proven.

Models of sweeps have one export, a folder of graphs, which takes any sweep.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.exporting import deployment as deploy
from mmdeploy_ext.exporting.files import export_files
from mmdeploy_ext.families.base import DETECTOR, Family, find_family
from mmdeploy_ext.proving.ladder import prove
from mmdeploy_ext.zoo.configs import Config, without_augmentation
from mmdeploy_ext.zoo.record import FILES, NOT_PROVEN, Outcome, Record, failure
from mmdeploy_ext.zoo.rules import files_digest, proof_rules

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    import torch

    from mmdeploy_ext.contract.option import Options
    from mmdeploy_ext.proving.verdict import Verdict

WEIGHTS = 'seeded weights'
"""What stands for the path of a checkpoint."""
TAKEN = (1024, 1024)
"""A size that every network takes; before it is built, a config is checked at it."""
LEAST = 512
"""Pixels of a side where the size of the run is refused: SSD512 has a level of stride 512."""

OWN_KERNELS = ('MaskedConv2d', 'CARAFEPack', 'DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack')
"""Modules of mmcv without a CPU kernel: where they run, this project's patch does."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all configs of a run share.

    Attributes:
        size: of the traced input, (H, W) pixels; the next larger one that the network takes.
        picture: title and BGR picture that the proof begins with.
        seeded: (cfg, family) -> the detector with seeded weights.
        engine: options of `build_backend`.
        files: of `FILES`, those to export and to prove.
        sweeps: how many generated ones models of sweeps are proven on.
    """

    size: tuple[int, int]
    picture: tuple[str, np.ndarray]
    seeded: Callable[[Any, Family], torch.nn.Module]
    engine: Mapping[str, Any]
    files: tuple[str, ...] = FILES
    sweeps: int = 3


def examine(
    config: Config, settings: Settings, before: Record | None, keep: Callable[[Record], None]
) -> Record:
    """Return what is known of a config.

    Args:
        config: to look at.
        settings: of the run.
        before: what an earlier run found; proofs of equal graphs by equal rules are taken over, and
            what it says of files that this one leaves out.
        keep: called with what is known so far, after each export: what follows may kill the process.
    """
    record = Record(config.name, config.parts)
    try:
        cfg = load_config(config.path)
        record = dataclasses.replace(record, notes=without_augmentation(cfg))
        deployment = _deployment(config, cfg, settings)
    except Exception as error:
        return dataclasses.replace(record, fixed=failure(error))
    kinds = {type(module).__name__ for module in deployment.model.modules()}
    own = tuple(sorted(kinds & set(OWN_KERNELS)))
    record = dataclasses.replace(record, family=deployment.family.name, own_kernels=own)
    for name in FILES if _of_pictures(deployment.family) else FILES[:1]:
        found = getattr(before, name, None)
        if name in settings.files:
            found = _outcome(deployment, settings, name == 'dynamic', found)
        record = dataclasses.replace(record, **{name: found})
        keep(record)
        deployment.exports.clear()
    return record


def _deployment(config: Config, cfg: Any, settings: Settings) -> deploy.Deployment:
    family = find_family(cfg, DETECTOR)
    rule = family.preprocess_rule(cfg)
    family.check(cfg, _options(family, TAKEN, False, 0) if _of_pictures(family) else family.choose(opset=0))
    model = settings.seeded(cfg, family)
    model.CLASSES = deploy.class_names(cfg, {}, family.num_classes(model))
    return deploy.Deployment(
        cfg=cfg,
        config=config.path,
        cfg_options={},
        family=family,
        model=model.eval(),
        checkpoint=WEIGHTS,
        checkpoint_sha256=_weights_sha256(model),
        classes=model.CLASSES,
        rule=rule,
        settings=family.settings(cfg, model),
    )


def _of_pictures(family: Family) -> bool:
    return family.samples == 'images'


def _weights_sha256(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _options(family: Family, size: tuple[int, int], dynamic: bool, opset: int) -> Options:
    return family.choose(opset=opset, height=size[0], width=size[1], dynamic=dynamic)


def _chosen(deployment: deploy.Deployment, settings: Settings, dynamic: bool) -> Options:
    """Return the options of an export, at a larger size than the run's where the network does not take it."""
    try:
        return _sized(deployment, settings.size, dynamic)
    except UsageError:
        return _sized(deployment, tuple(max(LEAST, side) for side in settings.size), dynamic)


def _sized(deployment: deploy.Deployment, size: tuple[int, int], dynamic: bool) -> Options:
    """Return the options of an export: sides are the next multiples that the network takes."""
    family, model = deployment.family, deployment.model
    options = deploy.resolve_opset(_options(family, size, dynamic, 0), model)
    multiple = family.picture(model, options).multiple
    height, width = (-(-side // multiple) * multiple for side in size)
    return deploy.check_options(options.replace(height=height, width=width), deployment.cfg, family, model)


def _outcome(
    deployment: deploy.Deployment, settings: Settings, dynamic: bool, known: Outcome | None
) -> Outcome:
    """Return what became of one export; its proof is `known` where graph and rules are as they were."""
    start = time.process_time()
    try:
        options, name, traced, samples = _export(deployment, settings, dynamic)
        rules = proof_rules(deployment.family)
        with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
            paths, _ = export_files(deployment, options, str(Path(folder, name)), traced)
            digest = files_digest([*deployment.exports.values()][-len(paths) :])
            if known is not None and (known.digest, known.rules) == (digest, rules):
                return known
            verdict, _ = prove(deployment, paths, samples, settings.engine)
    except Exception as error:
        return dataclasses.replace(failure(error), seconds=time.process_time() - start)
    figures = _figures(verdict)
    seconds = time.process_time() - start
    shape = (options.height, options.width) if _of_pictures(deployment.family) else (0, 0)
    return Outcome(digest=digest, rules=rules, shape=shape, seconds=seconds, **figures)


def _export(
    deployment: deploy.Deployment, settings: Settings, dynamic: bool
) -> tuple[Options, str, Sequence[Any], Sequence[Any]]:
    """Return options, name, what is traced and what it is proven on: of a picture or of sweeps."""
    family, rule = deployment.family, deployment.rule
    if not _of_pictures(family):
        options = deploy.resolve_opset(family.choose(opset=0), deployment.model)
        return options, 'model', (), list(family.generated_sweeps(rule, settings.sweeps))
    options = _chosen(deployment, settings, dynamic)
    traced = deploy.prepare_fixed(rule, settings.picture[1], options.height, options.width)
    return options, 'model.onnx', [traced], [settings.picture]


def _figures(verdict: Verdict) -> dict[str, Any]:
    summary = verdict.summary()
    rows = [row for case in verdict.cases for row in case.detections]
    distances = [row.worst_distance for row in rows if row.worst_distance is not None]
    reason = {} if verdict.proven else dict(reason=NOT_PROVEN, why='; '.join(_failures(verdict))[:2000])
    return dict(
        proven=verdict.proven,
        inputs=summary['inputs'],
        reference=summary['reference'],
        matched=summary['matched'],
        fewest=min((row.reference for row in rows), default=0),
        worst_rel=summary['worst_rel'],
        worst_iou=None if distances else summary['worst_iou'],
        worst_score=summary['worst_score'],
        worst_distance=max(distances, default=None),
        **reason,
    )


def _failures(verdict: Verdict) -> list[str]:
    """Return what failed, the graph first."""
    found = [graph.text for graph in verdict.graphs if not graph.passed]
    found += [f'{check.name}: {check.detail}' for check in verdict.structure if not check.passed]
    for case in (one for one in (*verdict.cases, *verdict.trials) if not one.passed):
        bad = (row for row in case.tensors if not row.passed and row.max_rel)
        tensors = ', '.join(f'{row.tensor} {row.max_rel:.1e}' for row in bad)
        images = sum(not row.passed for row in case.detections)
        found.append(f'{case.name} {case.input_shape}: {tensors} {images} images differ')
    return found + list(verdict.reasons)
