"""Weights by a seeded rule, for full-size models: `mm2onnx synthetic seeded CONFIG OUT.pth`.

The rule: every convolution and linear layer gets seeded Gaussian weights with the He scale; batch norm
gets the statistics of seeded pictures, layer by layer; the head's last layers are scaled so that class logits
spread around -4.6, box deltas around 0 and centerness around 0.5 (`seeded_dense.py` has it for each head of
mmdet, `seeded_lidar.py` for LiDAR detectors of mmdet3d and BEVFusion). Scores are spread,
boxes differ between anchors, and a few per cent of the anchors pass the threshold.
"""

import argparse
import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.config import test_pipeline
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.families.base import Family
from mmdeploy_ext.proving.inputs.pictures import bright, dark
from mmdeploy_ext.synthetic import staging
from mmdeploy_ext.synthetic.scene import make_scene
from mmdeploy_ext.synthetic.seeded_corners import is_cornered, scale_corners
from mmdeploy_ext.synthetic.seeded_dense import (
    build_student,
    calibration_of,
    check_known,
    for_head,
    scale_outputs,
    scale_prototypes,
)
from mmdeploy_ext.synthetic.seeded_layers import calibrate_norms, fill_network, norms_of
from mmdeploy_ext.synthetic.seeded_lidar import fill_fusion, fill_lidar
from mmdeploy_ext.synthetic.seeded_queries import is_query, is_regional, scale_queries

NAMED_RULES = dict(rtdetr='seeded_rtdetr', streampetr='seeded_streampetr', solo='seeded_solo')
"""Families whose weights depend on names and shapes alone: family -> module beside this one."""

OF_SENSORS = dict(anchor3d=fill_lidar, centerpoint=fill_lidar, bevfusion_det=fill_fusion)
"""Families of sweeps and fused frames -> what fills their whole detectors."""

PUBLISHED_PREFIXES = {'bevfusion': 'encoders.lidar.backbone.', 'centerpoint-det3d': 'backbone.'}
"""Families of sparse backbones -> prefix of their published keys; the rule draws by full names."""

GREY = 114.0
"""The mean of a photograph, in 8 bits."""
CONTRAST = 57
"""Its standard deviation."""
SHAPES = 12
"""That are tried in a scene."""


def seeded_picture(seed: int, height: int = 320, width: int = 416) -> torch.Tensor:
    """Return (1, 3, height, width) float32 with structure at all scales, unit variance."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((3, height, width), np.float32)
    for cell in (8, 16, 32, 64):
        coarse = rng.normal(size=(3, height // cell + 1, width // cell + 1)).astype(np.float32)
        picture += coarse.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
    return torch.from_numpy(picture / picture.std())[None]


def seeded_scene(
    seed: int, height: int, width: int, exposed: Callable[[np.ndarray], np.ndarray] | None = None
) -> torch.Tensor:
    """Return an exposed picture of the generated data set, normalised: (1, 3, height, width) float32."""
    picture, _ = make_scene(np.random.default_rng(seed), height, width, SHAPES)
    picture = exposed(picture) if exposed else picture
    return (torch.from_numpy(picture).float().permute(2, 0, 1)[None] - GREY) / CONTRAST


def _shift_norms(model: nn.Module, shift: float) -> None:
    """Give the normalised values of necks, and of inverted residual blocks, a mean of their own deviation.

    With a mean of 0 each of the 50 layers of a MobileNetV2 makes rounding a fifth larger.
    """
    from mmdeploy_ext.compat.older_mmdet import mmdet_module

    block = mmdet_module('mmdet.models.utils').InvertedResidual
    blocks = [part for part in model.modules() if isinstance(part, block)]
    for part in [*blocks, model.neck] if shift and model.with_neck else ():
        for norm in norms_of(part):
            norm.bias.fill_(shift)


Heads = Callable[[Sequence[torch.Tensor]], None]
"""What is done with the heads of a detector, given the features of each level."""


def _heads(model: nn.Module, pictures: torch.Tensor, exposed: torch.Tensor) -> tuple[Heads, Heads]:
    """Return what runs the heads of a detector, and what scales their last layers."""
    head = getattr(model, 'bbox_head', None)
    if is_query(model):
        return lambda maps: None, functools.partial(scale_queries, model, pictures)
    if is_cornered(model):
        return lambda maps: head(maps), functools.partial(scale_corners, model)
    if head is None:
        from mmdeploy_ext.synthetic.seeded_query_regions import scale_stages  # imports mmdet
        from mmdeploy_ext.synthetic.seeded_regions import run_heads, scale_heads

        pair = (scale_stages, lambda *_: None) if is_regional(model) else (run_heads, scale_heads)
        return tuple(functools.partial(one, model, pictures) for one in pair)

    def scale(maps: Sequence[torch.Tensor]) -> None:
        scale_outputs(head, maps, lambda: model.extract_feat(exposed))
        scale_prototypes(model, maps)

    return lambda maps: head(for_head(head, maps)), scale


def fill_seeded(model: nn.Module, seed: int = 0, deviation: float = 1.0, offset: float = 0.0) -> nn.Module:
    """Fill a detector of mmdet by the rule of this module, in place.

    A normalised photograph has a standard deviation, about 57 where the config's `std` is 1, and a mean,
    `offset`, of 0 where the config subtracts one.
    """
    calibration = calibration_of(model)
    drawn = [seeded_picture(seed + index, *calibration.size) for index in range(calibration.pictures)]
    drawn += [seeded_scene(seed + index, *calibration.size) for index in range(calibration.scenes)]
    exposed = [seeded_scene(seed, *calibration.size, exposure) for exposure in (dark, bright)]
    drawn += exposed if calibration.exposures else []
    model.eval()
    with torch.no_grad():
        fill_network(model, seed, calibration.residual)
        _shift_norms(model, calibration.shift)
        pictures, others = (torch.cat(some) * deviation + offset for some in (drawn, exposed))
        run, scale = _heads(model, pictures, others)

        def through() -> Sequence[torch.Tensor]:
            features = model.extract_feat(pictures)
            run(features)
            return features

        scale(calibrate_norms(norms_of(model), through))
    return model


def normalised_deviation(std: tuple[float, ...]) -> float:
    """Return the standard deviation of a photograph that was divided by `std`; 1.0 with ImageNet's."""
    return round(CONTRAST / float(np.mean(std)), 1)


def normalisation(cfg: Any) -> tuple[float, float]:
    """Return standard deviation and mean of a photograph as the test pipeline of a config normalises it."""
    step = _step(test_pipeline(cfg), 'Normalize') or {}
    std, mean = step.get('std', (1.0,)), step.get('mean', (0.0,))
    return normalised_deviation(std), 0.0 if any(mean) else GREY / float(np.mean(std))


def _step(pipeline: Sequence[Any], kind: str) -> Any:
    """Return the first step of a kind, also within others."""
    for step in pipeline:
        found = step if step.get('type') == kind else _step(step.get('transforms', ()), kind)
        if found:
            return found
    return None


def sparse_weights(cfg: Any, seed: int = 0) -> dict[str, torch.Tensor] | None:
    """Return published-form weights of a LiDAR model; None for others.

    The sparse backbone's follow from their names; what else a detector has is initialised with the seed.
    """
    from mmdeploy_ext.families.base import BACKBONE, FAMILIES, load_families
    from mmdeploy_ext.synthetic.seeded_sparse import fill_module

    load_families()
    family = next((one for one in FAMILIES.values() if one.product == BACKBONE and one.claims(cfg)), None)
    if family is None:
        return None
    torch.manual_seed(seed)
    model = family.build(cfg)
    path = f'{family.settings(cfg, model).path}.'
    rest = {key: value for key, value in model.state_dict().items() if not key.startswith(path)}
    prefix = PUBLISHED_PREFIXES.get(family.name, path)
    filled = fill_module(family.encoder(model), prefix)
    return rest | {prefix + key: torch.from_numpy(array) for key, array in filled.items()}


def seeded_model(cfg: Any, family: Family | None, seed: int = 0) -> nn.Module:
    """Return a detector with weights by its family's rule; those of no family have the rule of their head.

    A head that the rule does not know raises ConfigError.
    """
    if family is not None and family.name in OF_SENSORS:
        return OF_SENSORS[family.name](family.build(cfg), cfg, family, seed)
    model = build_student(cfg) if family is None else family.build(cfg)
    if family is not None and family.name in NAMED_RULES:
        rule = importlib.import_module(f'mmdeploy_ext.synthetic.{NAMED_RULES[family.name]}')
        weights = model.state_dict()  # with the versions of its modules, of which heads rename older keys
        weights.update(rule.seeded_weights({key: list(value.shape) for key, value in weights.items()}))
        model.load_state_dict(weights)
        return model
    if not any(own(model) for own in (is_query, is_regional, is_cornered)):
        check_known(model, cfg.filename)
    return fill_seeded(model, seed, *normalisation(cfg))


def main(argv: Sequence[str] | None = None) -> int:
    """Write a checkpoint for a config; 0 done, 2 usage, also where OUT is there already."""
    parser = cli.ArgumentParser(prog='mm2onnx synthetic seeded', description=__doc__.splitlines()[0])
    staging.add_seeded(parser)
    return cli.run(run, parser, argv)


def run(args: argparse.Namespace, cfg_options: Mapping[str, Any] | None = None) -> int:
    """Write the checkpoint of a config with these overrides; 0 done."""
    from mmdeploy_ext import compat
    from mmdeploy_ext.core.files import check_writable

    check_writable(args.out)
    if args.out.exists():
        raise UsageError(f'{args.out}: is there already, and is never overwritten; give another name')
    compat.apply()
    write_seeded(args.config, args.out, args.seed, cfg_options)
    print(f'{args.out}: seeded weights of {args.config}, {args.out.stat().st_size / 1e6:.1f} MB')
    return 0


def write_seeded(config: str, out: Path, seed: int = 0, cfg_options: Mapping[str, Any] | None = None) -> None:
    """Write a checkpoint with seeded weights for a config with overrides."""
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.families.base import DETECTOR, FAMILIES, find_family, load_families
    from mmdeploy_ext.weights.convert.conversion import save_checkpoint

    cfg = load_config(config, cfg_options)
    load_families()
    names = [family.name for family in FAMILIES.values() if family.claims(cfg)]
    weights = None if OF_SENSORS.keys() & names else sparse_weights(cfg, seed)
    if weights is None:
        family = find_family(cfg, DETECTOR) if names or 'bbox_head' not in cfg.get('model', ()) else None
        weights = seeded_model(cfg, family, seed).state_dict()
    save_checkpoint(out, weights, dict(seed=seed))


if __name__ == '__main__':
    raise SystemExit(main())
