"""Check of a checkpoint's grids: with those of another config SOLO finds wrong objects, or none."""

from torch import nn

from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.weights.checkpoint import Checkpoint
from mmdeploy_ext.weights.convert.solo_config import checkpoint_grids, config_grids
from mmdeploy_ext.weights.convert.solo_names import original_head


def check_grids(head: nn.Module, checkpoint: Checkpoint) -> None:
    """Refuse (CheckpointError) a checkpoint that was trained on other grids.

    SOLO and Decoupled SOLO predict one mask or line per cell, so that the layers tell. SOLOv2's layers do not
    depend on the grids; its checkpoint tells when a config was kept in it, as mmdet and `solo_wxinlong.py`
    do. A checkpoint of the original repository is left to the loader.
    """
    if original_head(checkpoint.state_dict):
        return
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.state_dict.items()}
    own = list(head.num_grids)
    trained = checkpoint_grids(shapes) or config_grids(checkpoint.meta.get('config'))
    if trained and trained != own:
        raise CheckpointError(
            f'{checkpoint.path}: was trained on grids of {trained} cells, the config says '
            f'model.mask_head.num_grids={own}; use the config that this checkpoint was trained with'
        )
