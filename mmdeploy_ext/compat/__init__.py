"""All that mmcv-full 1.7.2, mmdet 2.28.2, mmdet3d 1.0.0rc6 and spconv 2.3.8 need on today's PyTorch.

`apply()` imports no library: each patch runs when its module is imported, and looks then whether it is
needed. Call it before the first import of torchvision, mmcv, mmdet or mmdet3d:

    from mmdeploy_ext import compat
    compat.apply()
    import mmdet.apis

It returns all the patches; `effective()` says later which of them had something to do. See
`import_hook.Patch` for what a patch takes and returns.
"""

from mmdeploy_ext.compat import (  # noqa: F401 - they register
    absent_packages,
    patches_mmcv,
    patches_mmdet,
    patches_spconv,
    patches_vendored,
)
from mmdeploy_ext.compat.import_hook import PATCHES, Patch

# what callers outside of this package use, beside `apply`
effective = PATCHES.effective
numpy_checkpoint_globals, single_thread = patches_mmcv.numpy_checkpoint_globals, patches_spconv.single_thread


def apply() -> list[Patch]:
    """Make every patch happen when its module is imported; see `import_hook.Patches.apply`."""
    absent_packages.offer()
    return PATCHES.apply()
