"""All that mmcv-full 1.7.2, mmdet 2.28.2, mmdet3d 1.0.0rc6 and spconv 2.3.8 need on torch 2.13.

`apply()` imports no library: each patch runs when its module is imported, and those that not every version
needs look then whether it is needed. Call it before the first import of torchvision, mmcv, mmdet, mmdet3d or
spconv:

    from mmdeploy_ext import compat
    compat.apply()
    import mmdet.apis

It returns all the patches, `effective()` later those that changed something. See
`import_hook.PatchFunction` for what a patch takes and returns.
"""

from mmdeploy_ext.compat import (  # noqa: F401 - they register
    absent_packages,
    patches_mmcv,
    patches_mmdet,
    patches_spconv,
    patches_vendored,
)
from mmdeploy_ext.compat.import_hook import PATCHES, Patch

effective = PATCHES.effective
"""Function that returns the patches that changed something in this process so far."""
numpy_checkpoint_globals = patches_mmcv.numpy_checkpoint_globals
"""Function that returns a list: what `torch.load(weights_only=True)` must allow for arrays of numpy."""
single_thread = patches_spconv.single_thread
"""Returns a context in which torch and all loaded OpenMP runtimes have one thread: with more spconv races.

After it they have as many as before. It is called without arguments: its only one, `runtimes`, is a
function that returns others to limit.
"""


def apply() -> list[Patch]:
    """Offer stand-ins for absent packages, and make every patch run when its module is imported.

    Modules that are imported already are patched now; what others took from them before stays as it was. A
    second call changes nothing. Returns all patches, whether they are needed or not.
    """
    absent_packages.offer()
    return PATCHES.apply()
