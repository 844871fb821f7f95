"""What every converter does besides renaming: the model's tensors, an account of every key, and the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.core.errors import CheckpointError, ConfigError, UsageError, root_cause
from mmdeploy_ext.core.files import atomic_path, check_outputs, check_writable
from mmdeploy_ext.weights.checkpoint import check_finite, check_types, misfits

Tensors = dict[str, torch.Tensor]
OTHER_KINDS = ('.py', '.json', '.onnx', '.safetensors')
"""Endings by which a checkpoint would be taken for another file."""


def model_tensors(cfg: Any) -> Tensors:
    """Return the state dict of the config's model, without memory; ConfigError where it cannot be built."""
    from mmdet.models import build_detector

    model = cfg.model.copy()
    model.pop('pretrained', None)
    try:
        with torch.device('meta'):
            built = build_detector(model)
    except Exception as error:
        raise ConfigError(f'{cfg.filename}: the model cannot be built ({error})') from error
    return built.state_dict()


def in_order(tensors: Tensors, own: Tensors, config: str, advice: str) -> Tensors:
    """Return converted tensors in the model's order; names and shapes are the model's own, every one.

    Else the CheckpointError names the config, and by the `advice` which one to give; no checkpoint.
    """
    missing, unexpected = (
        [key for key in one if key not in other] for one, other in ((own, tensors), (tensors, own))
    )
    if problems := misfits(own, tensors, missing, unexpected):
        raise CheckpointError(f'does not fit the model of {config}: {problems}{advice}')
    return {key: tensors[key] for key in own}


def check_numbers(source: str | Path, tensors: Mapping[str, torch.Tensor], own: Tensors) -> None:
    """Refuse codes in place of weights, and weights that are not finite, by checkpoint and keys."""
    check_types(source, tensors, own)
    check_finite(source, tensors)


def check_output(source: str | Path, target: str | Path, config: str | Path | None = None) -> None:
    """Refuse to write a checkpoint over a file that is read, under the ending of another kind, or nowhere."""
    target = Path(target)
    if target.suffix in OTHER_KINDS:
        raise UsageError(f'{target}: is not the name of a checkpoint: {target.suffix}; expected e.g. .pth')
    read = {'the original checkpoint': [source], 'the config': [config] if config else []}
    check_outputs({'': [target]}, read)
    check_writable(target)


def save_checkpoint(
    target: str | Path, state_dict: Mapping[str, torch.Tensor], meta: Mapping[str, Any]
) -> None:
    """Write `{'meta', 'state_dict'}` for `torch.load`, atomically; where that fails all is as it was."""
    with atomic_path(target) as temporary, open(temporary, 'wb') as stream:
        try:
            torch.save({'meta': dict(meta), 'state_dict': dict(state_dict)}, stream)
        except RuntimeError as error:  # what torch makes of a write that failed
            cause = root_cause(error)
            raise cause if isinstance(cause, OSError) else OSError(f'torch: {error}') from error
