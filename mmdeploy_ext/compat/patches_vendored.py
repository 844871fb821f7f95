"""What copies of mmdet in research repositories need beside mmcv-full 1.7.2, each patch with its reason."""

import ast
from collections.abc import Sequence
from types import ModuleType

from mmdeploy_ext.compat.import_hook import Execute, patch, patched


def _string_constants(module: ModuleType) -> dict[str, str]:
    """Return name -> text of the strings that a module which has not run yet assigns at its top."""
    source = module.__spec__.loader.get_source(module.__name__)
    return {
        statement.targets[0].id: statement.value.value
        for statement in ast.parse(source or '').body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    }


def _release(version: str) -> Sequence[int]:
    """Return a version as numbers; a part that is no number ends it."""
    parts = version.split('+')[0].split('.')
    return [int(part) for part in parts if part.isdigit()]


@patch('mmdet', versions='mmdet 2.11.0, 2.14.0 and 2.25.3 with mmcv-full 1.7.2')
def mmdet_version_check(module: ModuleType, execute: Execute) -> bool:
    """A copy of mmdet in a repository asserts an mmcv of its time: it sees the newest that it takes.

    What the mmcv of today lacks or does otherwise has patches of its own.
    """
    import mmcv

    newest = _string_constants(module).get('mmcv_maximum_version', mmcv.__version__)
    if _release(mmcv.__version__) <= _release(newest):
        execute()
        return False
    with patched(mmcv, __version__=newest):
        execute()
    return True
