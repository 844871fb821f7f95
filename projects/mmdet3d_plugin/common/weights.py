"""Weights of a detector with a sparse encoder, whole."""

from torch import nn

from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.weights.checkpoint import Checkpoint, listed
from mmdeploy_ext.weights.sparse_checkpoint import load_model


def load_whole(model: nn.Module, checkpoint: Checkpoint, encoder: str) -> None:
    """Load all weights of a detector; kernels of its sparse encoder in either spconv layout.

    Args:
        model: the detector.
        checkpoint: its file.
        encoder: where the sparse encoder is in the model.

    Raises:
        CheckpointError: the file lacks weights of the model, or has others.
    """
    report = load_model(checkpoint.path, model, encoder)
    if report.rest != 'loaded' or report.unused:
        missing = 'nothing but the sparse encoder' if report.rest != 'loaded' else 'all of the model'
        raise CheckpointError(
            f'{checkpoint.path}: does not fit the model of the config: it holds {missing}'
            f'{", and unexpected keys " + listed(report.unused) if report.unused else ""}. Use the '
            f'config that this checkpoint was trained with'
        )
