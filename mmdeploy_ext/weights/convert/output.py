"""Writing a checkpoint: where it may go, and atomically."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.core.errors import UsageError, root_cause
from mmdeploy_ext.core.files import atomic_path, check_outputs, check_writable

if TYPE_CHECKING:
    from collections.abc import Mapping

OTHER_KINDS = ('.py', '.json', '.onnx', '.safetensors')
"""Endings by which a checkpoint would be taken for another file."""


def check_output(source: str | Path, target: str | Path, config: str | Path | None = None) -> None:
    """Refuse a place where a checkpoint must not go, before work begins.

    Args:
        source: the checkpoint that is read.
        target: the checkpoint to write.
        config: that is read too.

    Raises:
        UsageError: it is the source or the config, has the ending of another kind, or cannot be written.
    """
    target = Path(target)
    if target.suffix in OTHER_KINDS:
        raise UsageError(f'{target}: is not the name of a checkpoint: {target.suffix}; expected e.g. .pth')
    read = {'the original checkpoint': [source], 'the config': [config] if config else []}
    check_outputs({'': [target]}, read)
    check_writable(target)


def save_checkpoint(
    target: str | Path, state_dict: Mapping[str, torch.Tensor], meta: Mapping[str, Any]
) -> None:
    """Write `{'meta', 'state_dict'}` for `torch.load`, atomically.

    Raises:
        Mm2OnnxError: the disk is full or the write failed; what was there is as it was.
    """
    with atomic_path(target) as temporary, open(temporary, 'wb') as stream:
        try:
            torch.save({'meta': dict(meta), 'state_dict': dict(state_dict)}, stream)
        except RuntimeError as error:  # what torch makes of a write that failed
            cause = root_cause(error)
            raise cause if isinstance(cause, OSError) else OSError(f'torch: {error}') from error
