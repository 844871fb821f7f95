"""The families of this package and of installed packages."""

import importlib
import pkgutil

from mmdeploy_ext.base.errors import ConfigError

ENTRY_POINTS = 'mm2onnx.families', 'mm2onnx.contracts'
"""Groups of entry points; each value is a module that registers families, or files of other programs."""
OWN = 'mmdeploy_ext.families'
"""Package whose folders register families."""


def import_own() -> None:
    for folder in folders_of(OWN):
        importlib.import_module(folder)


def folders_of(name: str) -> list[str]:
    """Import a package; return the names of the packages in it."""
    package = importlib.import_module(name)
    return [module.name for module in pkgutil.iter_modules(package.__path__, f'{name}.') if module.ispkg]


def import_installed() -> None:
    """Import the modules of other packages that register families; raises ConfigError if one fails."""
    import importlib.metadata  # a tenth of the time of `mm2onnx run`

    found = importlib.metadata.entry_points()
    for entry in (*found.select(group=ENTRY_POINTS[0]), *found.select(group=ENTRY_POINTS[1])):
        try:
            entry.load()
        except Exception as error:
            raise ConfigError(
                f'{entry.dist.name if entry.dist else "a package"}: its entry point {entry.name} = '
                f'{entry.value} of {entry.group} cannot be imported: {type(error).__name__}: {error}; '
                'correct or uninstall it'
            ) from error
