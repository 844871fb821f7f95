"""The families of this package and of installed packages."""

import importlib
import pkgutil

from mmdeploy_ext.base.errors import ConfigError

ENTRY_POINTS = 'mm2onnx.families'
"""Group of entry points; each value is a module that registers families."""
OWN = 'mmdeploy_ext.families', 'mmdeploy_ext.targets', 'mmdeploy_ext.systems'
"""Packages whose folders register families, and programs that load their files."""


def import_own() -> None:
    for name in OWN:
        for folder in folders_of(name):
            targets = [part for part in folders_of(folder) if part == f'{folder}.targets']
            for module in targets:  # programs that load the files of a system
                importlib.import_module(module)


def folders_of(name: str) -> list[str]:
    """Import a package; return the names of the packages in it."""
    package = importlib.import_module(name)
    return [module.name for module in pkgutil.iter_modules(package.__path__, f'{name}.') if module.ispkg]


def import_installed() -> None:
    """Import the modules of other packages that register families; raises ConfigError if one fails."""
    import importlib.metadata  # a tenth of the time of `mm2onnx run`

    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            raise ConfigError(
                f'{entry.dist.name if entry.dist else "a package"}: its entry point {entry.name} = '
                f'{entry.value} of {ENTRY_POINTS} cannot be imported: {type(error).__name__}: {error}; '
                'correct or uninstall it'
            ) from error
