"""Seeded weights of full-size models: `mm2onnx synthetic weights CONFIG --out OUT.pth`."""

import argparse
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dev.seeded.by_name import fill_sparse_module
from dev.seeded.dense import (
    bound_logits,
    build_student,
    calibration_of,
    check_supported,
    for_head,
    is_cornered,
    scale_corners,
    scale_outputs,
    scale_prototypes,
)
from dev.seeded.layers import calibrate_norms, fill_network, norms_of, outputs_of_all, rescale
from dev.seeded.queries import is_query, is_regional, scale_queries, scale_region_queries
from dev.seeded.rules import RULES, rule_of
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.config import test_pipeline
from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.families.base import Family
from mmdeploy_ext.families.first_run import own_forward
from mmdeploy_ext.families.synthetic.scene import make_scene
from mmdeploy_ext.proving.inputs import bright, dark
from mmdeploy_ext.spec.registry import seeded_heads_of

PUBLISHED_PREFIXES = {
    'BEVFusionSparseEncoder': 'encoders.lidar.backbone.',
    'CenterPointSparseEncoder': 'backbone.',
}
"""Class of a sparse encoder -> prefix of its published keys."""

GREY, CONTRAST = 114.0, 57
"""Mean and deviation of a photograph in 0..255."""
LARGEST_SEED = (1 << 63) - 1
"""Largest seed: PyTorch refuses 2^64 and more."""
SCENE_SHAPES = 12
"""Tried shapes of a scene."""


def seeded_picture(seed: int, height: int = 320, width: int = 416) -> torch.Tensor:
    """Return a picture (1, 3, height, width) float32 with structure at all scales, unit variance."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((3, height, width), np.float32)
    for cell in (8, 16, 32, 64):
        coarse = rng.normal(size=(3, height // cell + 1, width // cell + 1)).astype(np.float32)
        picture += coarse.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
    return torch.from_numpy(picture / picture.std())[None]


@functools.lru_cache(maxsize=16)
def _drawn(seed: int, height: int, width: int) -> np.ndarray:
    return make_scene(np.random.default_rng(seed), height, width, SCENE_SHAPES)[0]


def seeded_scene(
    seed: int, height: int, width: int, expose: Callable[[np.ndarray], np.ndarray] | None = None
) -> torch.Tensor:
    """Return a generated BGR picture (1, 3, height, width) float32, normalised by `GREY` and `CONTRAST`.

    `expose` darkens or brightens (height, width, 3) uint8.
    """
    picture = _drawn(seed, height, width)
    picture = expose(picture) if expose else picture
    return (torch.from_numpy(picture).float().permute(2, 0, 1)[None] - GREY) / CONTRAST


def _shift_norms(model: nn.Module, shift: float) -> None:
    from mmdeploy_ext.upstream.compat.patches_vendored import mmdet_module

    block = mmdet_module('mmdet.models.utils').InvertedResidual
    blocks = [part for part in model.modules() if isinstance(part, block)]
    for part in [*blocks, model.neck] if shift and model.with_neck else ():
        for norm in norms_of(part):
            norm.bias.fill_(shift)


HeadStep = Callable[[Sequence[torch.Tensor]], None]
"""A step on the heads of a detector, given the features of each level."""
HeadSteps = Callable[[nn.Module, torch.Tensor, torch.Tensor], tuple[HeadStep, HeadStep]]
"""Function of (detector, pictures, dark and bright pictures) -> two steps."""


def _head_steps(
    model: nn.Module, pictures: torch.Tensor, exposed_pictures: torch.Tensor
) -> tuple[HeadStep, HeadStep]:
    head = getattr(model, 'bbox_head', None)
    if is_query(model):
        scale_heads = functools.partial(scale_queries, model, pictures, exposed_pictures)
        return lambda maps: None, scale_heads
    if is_cornered(model):
        return lambda maps: head(maps), functools.partial(scale_corners, model)
    if is_regional(model):
        return functools.partial(scale_region_queries, model, pictures), lambda maps: None
    if head is None:
        from dev.seeded.regions import run_heads, scale_heads  # imports mmdet

        return functools.partial(run_heads, model, pictures), functools.partial(scale_heads, model, pictures)

    def scale(maps: Sequence[torch.Tensor]) -> None:
        scale_outputs(head, maps, lambda: model.extract_feat(exposed_pictures))
        scale_prototypes(model, maps)

    return lambda maps: head(for_head(head, maps)), scale


def steps_of_family(
    heads: Callable[..., Iterable[tuple[nn.Module, Callable[[], Any], Mapping[str, Sequence[Any]]]]],
    model: nn.Module,
    pictures: torch.Tensor,
    exposed_pictures: torch.Tensor,
) -> tuple[HeadStep, HeadStep]:
    """Return the `HeadSteps` of a family that is registered with `seeded`.

    `heads` takes the detector, features of each level, and regions (B, K, 4) xyxy. It yields heads in order;
    a function that runs the head; and last layer -> mean and deviation of its outputs (numbers or one per
    channel), perhaps with the largest value in dark and bright pictures.
    """
    from dev.seeded.regions import regions_of  # imports mmdet

    regions = regions_of(pictures)

    def run_heads(features: Sequence[torch.Tensor]) -> None:
        for head, run, _ in heads(model, features, regions):
            if norms_of(head):
                run()

    def scale_heads(features: Sequence[torch.Tensor]) -> None:
        exposed = heads(model, model.extract_feat(exposed_pictures), regions_of(exposed_pictures))
        for (head, run, targets), (_, run_exposed, _) in zip(
            heads(model, features, regions), exposed, strict=True
        ):
            layers = {name: head.get_submodule(name) for name in targets}
            outputs = outputs_of_all(list(layers.values()), run)
            for (name, layer), calls in zip(layers.items(), outputs, strict=True):
                mean, deviation, *largest = targets[name]
                rescale(layer, torch.cat(calls, 1), mean, deviation)
                if largest:
                    (logits,) = outputs_of_all([layer], run_exposed)
                    bound_logits(layer, torch.cat(logits, 1), mean, *largest)

    return run_heads, scale_heads


def fill_seeded(
    model: nn.Module,
    seed: int = 0,
    deviation: float = 1.0,
    offset: float = 0.0,
    head_steps: HeadSteps = _head_steps,
) -> nn.Module:
    """Fill a new detector with seeded weights, in place, and return it in evaluation mode.

    Args:
        model: detector of mmdet, or one with an `extract_feat`.
        seed: seed of weights and pictures.
        deviation: of a normalised photograph, see `normalised_photograph`.
        offset: its mean.
        head_steps: makes the steps on the heads; for heads that mmdet lacks.
    """
    calibration = calibration_of(model)
    pictures = [seeded_picture(seed + index, *calibration.size) for index in range(calibration.pictures)]
    pictures += [seeded_scene(seed + index, *calibration.size) for index in range(calibration.scenes)]
    exposed_pictures = [seeded_scene(seed, *calibration.size, expose) for expose in (dark, bright)]
    if calibration.exposures:
        pictures += exposed_pictures
    model.eval()
    with torch.no_grad():
        fill_network(model, seed, calibration.residual)
        _shift_norms(model, calibration.shift)
        batch, exposed_batch = (
            torch.cat(group) * deviation + offset for group in (pictures, exposed_pictures)
        )
        run_heads, scale_heads = head_steps(model, batch, exposed_batch)

        def run() -> Sequence[torch.Tensor]:
            features = model.extract_feat(batch)
            run_heads(features)
            return features

        with own_forward(model, *calibration.size):
            scale_heads(calibrate_norms(norms_of(model), run))
    return model


def normalised_deviation(std: tuple[float, ...]) -> float:
    """Return the deviation, to 0.1, of a photograph in 0..255 divided by `std`."""
    return round(CONTRAST / float(np.mean(std)), 1)


def normalised_photograph(cfg: Any) -> tuple[float, float]:
    """Return deviation and mean of a photograph after a config's test pipeline (mmdet 2.x)."""
    step = _find_step(test_pipeline(cfg), 'Normalize') or {}
    std, mean = step.get('std', (1.0,)), step.get('mean', (0.0,))
    return normalised_deviation(std), 0.0 if any(mean) else GREY / float(np.mean(std))


def _find_step(pipeline: Sequence[Any], step_type: str) -> Any:
    for step in pipeline:
        match = step if step.get('type') == step_type else _find_step(step.get('transforms', ()), step_type)
        if match:
            return match
    return None


def backbone_weights(cfg: Any, seed: int = 0) -> dict[str, torch.Tensor] | None:
    """Return published key -> weights of a config's separately exported sparse backbone."""
    from mmdeploy_ext.families.base import BACKBONE, claiming_families, load_families

    load_families()
    families = claiming_families(cfg, BACKBONE)
    if not families:
        return None
    family = families[0]
    torch.manual_seed(seed)
    model = family.build(cfg)
    path = f'{family.settings(cfg, model).path}.'
    rest = {key: value for key, value in model.state_dict().items() if not key.startswith(path)}
    encoder = family.encoder(model)
    prefix = PUBLISHED_PREFIXES.get(type(encoder).__name__, path)
    weights = fill_sparse_module(encoder, prefix)
    return rest | {prefix + key: torch.from_numpy(array) for key, array in weights.items()}


def seeded_model(cfg: Any, family: Family | None, seed: int = 0) -> nn.Module:
    """Return a detector in evaluation mode with weights by its family's or its head's rule.

    `seed` has no effect on the rules of `by_name.py`.
    """
    model = build_student(cfg) if family is None else family.build(cfg)
    rule = rule_of(family.name) if family is not None else None
    if rule is not None:
        return rule(model, cfg, family, seed)
    head_steps = _head_steps
    if family is not None and (heads := seeded_heads_of(family.name)):
        head_steps = functools.partial(steps_of_family, heads)
    elif not (is_query(model) or is_regional(model) or is_cornered(model)):
        check_supported(model, cfg.filename)
    return fill_seeded(model, seed, *normalised_photograph(cfg), head_steps=head_steps)


def run(args: argparse.Namespace, cfg_options: Mapping[str, Any] | None = None) -> int:
    from mmdeploy_ext.base.files import check_writable
    from mmdeploy_ext.upstream import compat

    cli.check_minimums(args, seed=0)
    if args.seed > LARGEST_SEED:
        raise UsageError(f'--seed {args.seed}: expected at most {LARGEST_SEED}')
    check_writable(args.out)
    if args.out.exists():
        raise UsageError(f'{args.out}: is there already, and is never overwritten; give another name')
    compat.apply()
    write_seeded(args.config, args.out, args.seed, cfg_options)
    print(f'{args.out}: seeded weights of {args.config}, {args.out.stat().st_size / 1e6:.1f} MB')
    return 0


def write_seeded(config: str, out: Path, seed: int = 0, cfg_options: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint with seeded weights, and the seed in `meta`, over an older file.

    `cfg_options`: dotted key of the config -> value.
    """
    from mmdeploy_ext.base.config import load_config
    from mmdeploy_ext.families.base import DETECTOR, FAMILIES, find_family, load_families
    from mmdeploy_ext.upstream.weights.convert.conversion import save_checkpoint

    cfg = load_config(config, cfg_options)
    load_families()
    names = [family.name for family in FAMILIES.values() if family.claims(cfg)]
    weights = None if RULES.keys() & names else backbone_weights(cfg, seed)
    if weights is None:
        family = find_family(cfg, DETECTOR) if names or 'bbox_head' not in cfg.get('model', ()) else None
        model = seeded_model(cfg, family, seed)
        weights = model.state_dict()
        if getattr(model, 'fork', None):  # a repository of BEVFusion, whose kernels may have another layout
            weights = model.fork.weights(model)
    save_checkpoint(out, weights, dict(seed=seed))
