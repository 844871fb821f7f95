"""Weights by a seeded rule, for full-size models: `python -m projects.toydata.seeded CONFIG OUT.pth`.

The rule: every convolution and linear layer gets seeded Gaussian weights with the He scale; batch norm
gets the statistics of seeded pictures, layer by layer; the head's last layers are scaled so that class logits
spread around -4.6, box deltas around 0 and centerness around 0.5. Scores are spread, boxes differ between
anchors, and a few per cent of the anchors pass mmdet's threshold of 0.05.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mmdeploy_ext.families.base import Family

HEAD_TARGETS = {'atss_cls': (-4.6, 1.3), 'atss_reg': (0.0, 0.4), 'atss_centerness': (0.5, 1.0)}
"""Last layers of the head: mean and standard deviation of their outputs."""

OFFSET_SCALE = 0.1
"""Offsets of deformable convolutions of about an eighth of a pixel. With a whole one the network is chaotic:
an input changed by 1e-5 changes the last features by their own size (measured, R50 with DCN v2)."""

NAMED_RULES = dict(rtdetr='seeded_rtdetr', streampetr='seeded_streampetr', solo='seeded_solo')
"""Families whose weights depend on names and shapes alone: family -> module beside this one."""

PUBLISHED_PREFIXES = {'bevfusion': 'encoders.lidar.backbone.', 'centerpoint-det3d': 'backbone.'}
"""Families of sparse backbones -> prefix of their published keys; the rule draws by full names."""

RESIDUAL_SCALE = 0.25
"""With 1.0 the network amplifies rounding: PyTorch's own float32 is up to 4e-5 of scale off float64 on R50 at
608x608, and two engines' errors add up to the bar of 1e-4; with 0.25 it is 5e-6."""


def seeded_picture(seed: int, height: int = 320, width: int = 416) -> torch.Tensor:
    """Return (1, 3, height, width) float32 with structure at all scales, unit variance."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((3, height, width), np.float32)
    for cell in (8, 16, 32, 64):
        coarse = rng.normal(size=(3, height // cell + 1, width // cell + 1)).astype(np.float32)
        picture += coarse.repeat(cell, 1).repeat(cell, 2)[:, :height, :width]
    return torch.from_numpy(picture / picture.std())[None]


def _fill_weights(model: nn.Module, generator: torch.Generator) -> None:
    for name, module in model.named_modules():
        table = getattr(module, 'relative_position_bias_table', None)
        if isinstance(table, torch.Tensor):
            table.copy_(torch.randn(table.shape, generator=generator) * 0.5)
        weight = getattr(module, 'weight', None)
        if not isinstance(weight, torch.Tensor) or weight.dim() < 2:
            continue
        scale = (2.0 / weight[0].numel()) ** 0.5
        if name.endswith('conv_offset'):
            scale *= OFFSET_SCALE
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
        if isinstance(getattr(module, 'bias', None), torch.Tensor):
            module.bias.copy_(torch.randn(module.bias.shape, generator=generator) * 0.05)


def _damp_residuals(model: nn.Module) -> None:
    """Scale the last normalisation of every residual block by `RESIDUAL_SCALE`."""
    from mmdet.models.backbones.resnet import BasicBlock, Bottleneck

    for block in model.modules():
        if isinstance(block, BasicBlock | Bottleneck):
            last = block.norm3 if isinstance(block, Bottleneck) else block.norm2
            last.weight.fill_(RESIDUAL_SCALE)


def _calibrate_norms(model: nn.Module, pictures: torch.Tensor) -> None:
    """Set running statistics, layer by layer, to those of the pictures."""

    def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        module.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        module.running_var.copy_(inputs[0].var(dim=(0, 2, 3)) + 1e-3)

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    handles = [module.register_forward_pre_hook(hook) for module in norms]
    model.extract_feat(pictures)
    for handle in handles:
        handle.remove()


def _scale_head(model: nn.Module, pictures: torch.Tensor) -> None:
    """Bring the outputs of the head's last layers to their targets."""
    for name, (mean, deviation) in HEAD_TARGETS.items():
        layer = getattr(model.bbox_head, name)
        outputs: list[torch.Tensor] = []
        handle = layer.register_forward_hook(
            lambda module, inputs, output, kept=outputs: kept.append(output.flatten())
        )
        model.bbox_head(model.extract_feat(pictures))
        handle.remove()
        values = torch.cat(outputs)
        layer.weight.mul_(deviation / values.std())
        layer.bias.fill_(mean)


def fill_seeded(model: nn.Module, seed: int = 0, deviation: float = 1.0) -> nn.Module:
    """Fill a detector of mmdet by the rule of this module, in place.

    Args:
        model: the detector.
        seed: of weights and pictures.
        deviation: standard deviation of a normalised photograph; about 57 where the config's `std` is 1.
    """
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.cat([seeded_picture(seed), seeded_picture(seed + 1)]) * deviation
    model.eval()
    with torch.no_grad():
        _fill_weights(model, generator)
        _damp_residuals(model)
        _calibrate_norms(model, pictures)
        _scale_head(model, pictures)
    return model


def normalised_deviation(std: tuple[float, ...]) -> float:
    """Return the standard deviation of a photograph that was divided by `std`; 1.0 with ImageNet's."""
    return round(57 / float(np.mean(std)), 1)


def sparse_weights(cfg: Any, seed: int = 0) -> dict[str, torch.Tensor] | None:
    """Return published-form weights of a LiDAR model; None for others.

    The sparse backbone's follow from their names; what else a detector has is initialised with the seed.
    """
    import projects.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.families.base import BACKBONE, FAMILIES
    from projects.toydata.seeded_sparse import fill_module

    family = next((one for one in FAMILIES.values() if one.product == BACKBONE and one.claims(cfg)), None)
    if family is None:
        return None
    torch.manual_seed(seed)
    model = family.build(cfg)
    path = f'{family.settings(cfg, model).path}.'
    rest = {key: value for key, value in model.state_dict().items() if not key.startswith(path)}
    prefix = PUBLISHED_PREFIXES.get(family.name, path)
    filled = fill_module(family.encoder(model), prefix)
    return rest | {f'{prefix}{key}': torch.from_numpy(array) for key, array in filled.items()}


def dense_weights(cfg: Any, family: Family, seed: int) -> dict[str, torch.Tensor]:
    """Return weights of a detector by its family's rule."""
    model = family.build(cfg)
    if family.name in NAMED_RULES:
        rule = importlib.import_module(f'projects.toydata.{NAMED_RULES[family.name]}')
        return rule.seeded_weights({key: list(value.shape) for key, value in model.state_dict().items()})
    deviation = normalised_deviation(family.preprocess_rule(cfg).std)
    return fill_seeded(model, seed, deviation).state_dict()


def main(argv: Sequence[str] | None = None) -> int:
    """Write a checkpoint for a config; 0 done, 2 usage, also where OUT is there already."""
    parser = cli.ArgumentParser(prog='python -m projects.toydata.seeded', description=__doc__.splitlines()[0])
    parser.add_argument('config')
    cli.writes(parser.add_argument('out', type=Path))
    parser.add_argument('--seed', type=int, default=0)
    cli.add_debug_option(parser)
    return cli.run(_body, parser, argv)


def _body(args: argparse.Namespace) -> int:
    from mmdeploy_ext.core.files import check_writable
    from mmdeploy_ext.stack import compat

    check_writable(args.out)
    if args.out.exists():
        raise UsageError(f'{args.out}: is there already, and is never written over; give another name')
    compat.apply()
    write_seeded(args.config, args.out, args.seed)
    return 0


def write_seeded(config: str, out: Path, seed: int = 0) -> None:
    """Write a checkpoint with seeded weights for a config."""
    import projects.mmdet_plugin  # noqa: F401
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.families.base import find_family
    from mmdeploy_ext.weights.convert.output import save_checkpoint

    cfg = load_config(config)
    weights = sparse_weights(cfg, seed)
    if weights is None:
        weights = dense_weights(cfg, find_family(cfg), seed)
    save_checkpoint(out, weights, dict(seed=seed))


if __name__ == '__main__':
    raise SystemExit(main())
