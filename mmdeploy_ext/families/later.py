"""Packages of families that are imported only where none that is here claims a config: it takes seconds."""

import importlib

_PACKAGES: list[str] = []


def import_later(package: str) -> None:
    """Name a package whose import registers families."""
    _PACKAGES.append(package)


def imported_more() -> bool:
    """Import the packages that were named; return whether there was one that can be imported."""
    found = False
    while _PACKAGES:
        try:
            importlib.import_module(_PACKAGES.pop())
            found = True
        except ModuleNotFoundError:  # mmdet3d is not installed: its detectors are refused as unknown
            continue
    return found
