"""All that mmcv-full 1.7.2, mmdet 2.28.2, mmdet3d 1.0.0rc6 and spconv 2.3.8 need on torch 2.13.

Call `apply()` before the first import of torchvision or these libraries. Each patch runs when its module is
imported, if it is needed.
"""

from mmdeploy_ext.upstream.compat import (  # noqa: F401 - they register
    imports,
    patches_mmcv,
    patches_mmdet,
    patches_spconv,
    patches_vendored,
)
from mmdeploy_ext.upstream.compat.import_hook import PATCHES, Patch

effective = PATCHES.effective
"""Patches that changed something in this process so far."""
numpy_checkpoint_globals = patches_mmcv.numpy_checkpoint_globals
"""Globals that `torch.load(weights_only=True)` must allow for numpy."""
single_thread = patches_spconv.single_thread
"""Context with one thread in torch and all OpenMP runtimes; with more, spconv races."""


def apply() -> list[Patch]:
    """Make every patch run when its module is imported, or now; offer stand-ins for what is absent.

    Returns all patches, needed or not.
    """
    imports.offer()
    return PATCHES.apply()
