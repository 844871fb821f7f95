"""Why a module of a user's plugin cannot be imported: who holds a name, or which line refused."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from mmdeploy_ext.core.errors import root_cause

PACKAGE = Path(__file__).resolve().parents[1]
MACHINERY = ('importlib', '/mmcv/utils/', *(str(PACKAGE / name) for name in ('compat', 'core', 'models')))
"""Parts of paths of files that import or register, and raise for what others do."""


def import_failure(error: BaseException) -> str:
    """Return what an error says that importing a plugin raised, with the file and line that is to blame."""
    cause = error if str(error) else root_cause(error)
    frames = [frame for frame, _ in traceback.walk_tb(cause.__traceback__)]
    text = f'{type(cause).__name__}: {cause}'
    if isinstance(cause, KeyError) and (names := _registration(frames)):
        return f'{text}: {names}'
    place = next(_places(cause), '')
    return f'{text} (raised in {place})' if place else text


def _registration(frames: list[FrameType]) -> str:
    """Return which class an mmcv registry refused, and which holds its name; '' if it refused none."""
    for frame in reversed(frames):
        registry, refused = frame.f_locals.get('self'), frame.f_locals.get('module')
        holders = getattr(registry, 'module_dict', None)
        if isinstance(holders, dict) and refused is not None:
            name = frame.f_locals.get('module_name') or getattr(refused, '__name__', '')
            holder = next((holders[key] for key in _as_list(name) if key in holders), None)
            if holder is not None:
                files = (value.f_code.co_filename for value in reversed(frames))
                user = next((file for file in files if not _is_machinery(file)), '')
                return (
                    f'{_name(refused)} of {user} cannot have that name, which {_name(holder)} of '
                    f'{_file(holder)} has; import one of them alone, in a process of its own'
                )
    return ''


def _as_list(name: Any) -> list[str]:
    return [name] if isinstance(name, str) else list(name or ())


def _name(part: Any) -> str:
    return str(getattr(part, '__qualname__', part))


def _file(part: Any) -> str:
    """Return the file that defines a class or a function, or its module where that has none."""
    module = str(getattr(part, '__module__', ''))
    return str(getattr(sys.modules.get(module), '__file__', None) or module)


def _is_machinery(file: str) -> bool:
    return file.startswith('<') or any(part in file for part in MACHINERY)


def _places(error: BaseException) -> Iterator[str]:
    """Yield the lines that an error came through, the innermost first, those of machinery apart."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not _is_machinery(frame.filename):
            yield f'{frame.filename}:{frame.lineno}'
