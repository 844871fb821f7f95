"""Modules of older versions that have another name since; importing one says the new name."""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

PACKAGE = __name__.partition('.')[0]
MOVED = {
    'cli.backend_config': 'evaluate.backend_config',
    'cli.demo': 'tools/demo/drawing.py',
    'cli.lidar_demo_app': 'tools/demo/lidar_demo.py',
    'cli.tested_models': 'kinds.tested',
    'cli.video_app': 'tools/demo/streampetr_video.py',
    'cli.zoo_app': 'dev.zoo.app',
    'consumers': 'targets',
    'consumers.autoware.bevdet_export': 'systems.bevdet.targets.autoware_export',
    'consumers.autoware.bevformer': 'systems.bevformer.targets.autoware',
    'consumers.autoware.bevformer_export': 'systems.bevformer.targets.autoware_export',
    'consumers.autoware.bevfusion': 'systems.bevfusion.targets.autoware',
    'consumers.autoware.bevfusion_export': 'systems.bevfusion.targets.autoware_export',
    'consumers.autoware.streampetr': 'systems.streampetr.targets.autoware',
    'consumers.autoware.streampetr_export': 'systems.streampetr.targets.autoware_export',
    'consumers.bevdet': 'systems.bevdet.targets',
    'consumers.bevdet_plugins': 'systems.bevdet.targets.bevdet_plugins',
    'consumers.bevformer': 'systems.bevformer.targets',
    'consumers.bevfusion': 'systems.bevfusion.targets',
    'consumers.cuda_bevfusion': 'systems.bevfusion.targets.cuda_bevfusion',
    'consumers.dl4agx': 'systems.petr.targets.dl4agx',
    'consumers.petr': 'systems.petr.targets',
    'consumers.sparse4d': 'systems.sparse4d.targets',
    'consumers.sparseend2end': 'systems.sparse4d.targets.sparseend2end',
    'consumers.streampetr': 'systems.streampetr.targets',
    'consumers.streampetr_fork': 'systems.streampetr.targets.streampetr_fork',
    'consumers.tensorrt_plugins': 'systems.bevformer.targets.tensorrt_plugins',
    'core': 'util',
    'core.config': 'config.config',
    'core.unregistered': 'config.unregistered',
    'core.user_functions': 'config.user_functions',
    'core.user_modules': 'config.user_modules',
    'core.yaml_config': 'config.yaml_config',
    'contract.comparison': 'verdict.comparison',
    'contract.slices': 'verdict.slices',
    'cutting': 'parts',
    'cutting.pieces': 'parts.part',
    'cutting.trees': 'parts.tree',
    'families.backbone_files': 'backbone_files',
    'families.bevdet': 'systems.bevdet',
    'families.bevformer': 'systems.bevformer',
    'families.bevfusion': 'systems.bevfusion',
    'families.files': 'detector_files',
    'families.model': 'detector',
    'families.parts': 'families.common',
    'families.petr': 'systems.petr',
    'families.rtdetr': 'systems.rtdetr',
    'families.sparse4d': 'systems.sparse4d',
    'families.streampetr': 'systems.streampetr',
    'models.bevdet': 'systems.bevdet.model',
    'models.bevformer': 'systems.bevformer.model',
    'models.bevfusion': 'systems.bevfusion.model',
    'models.petr': 'systems.petr.model',
    'models.sparse4d': 'systems.sparse4d.model',
    'models.streampetr': 'systems.streampetr.model',
    'proving.ladder': 'kinds',
    'proving.verdict': 'verdict.verdict',
    'runtime.held': 'runtime.device_graph',
    'seeded': 'dev.seeded',
    'systems.rtdetr.model': 'models.rtdetr',
    'tasks.half_bars': 'verdict.bars',
    'tasks.matching': 'verdict.matching',
    'tasks.results': 'verdict.results',
    'tasks.ties': 'verdict.ties',
    'zoo': 'dev.zoo',
}
"""Old name below the package -> new name there, or a place in the checkout; a package is for all below it."""


KEPT = (
    'families.parts.detector_parts',
    'families.parts.image_graphs',
)
"""Old names that configs, kits and packages of users import; a package is for all below it."""
KEPT_NAMES = tuple(f'{PACKAGE}.{name}.' for name in KEPT)


def new_name(name: str) -> str:
    """Return the name of an old module of this package today, or ''."""
    words = name.split('.')[1:]
    for count in range(len(words), 0, -1):
        if new := MOVED.get('.'.join(words[:count])):
            home = '' if '/' in new or new.startswith('dev.') else f'{PACKAGE}.'
            return '.'.join([home + new, *words[count:]])
    return ''


class Kept:
    """The first finder of imports and the loader of `KEPT`: the new module has the old name too."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        is_kept = name.startswith(f'{PACKAGE}.') and f'{name}.'.startswith(KEPT_NAMES)
        return ModuleSpec(name, Kept) if is_kept else None

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """Make an empty module, which `exec_module` replaces."""

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        name = module.__spec__.name
        sys.modules[name] = importlib.import_module(new_name(name))


class Finder:
    """The last finder of imports: it is asked for modules that are not there."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: object = None) -> ModuleSpec | None:
        """Return an empty package for a folder that was moved; ImportError for a module that was."""
        if not name.startswith(f'{PACKAGE}.'):
            return None
        words = name.split('.', 1)[1]
        if words in FOLDERS:
            return ModuleSpec(name, None, is_package=True)
        if new := new_name(name):
            raise ImportError(f'{name} of an older mm2onnx is {new} now; change the import', name=name)
        return None


FOLDERS = [
    'consumers',
    'consumers.autoware',
    'consumers.bevdet_plugins',
    'consumers.cuda_bevfusion',
    'consumers.dl4agx',
    'consumers.plugins',
    'consumers.sparseend2end',
    'consumers.streampetr_fork',
    'consumers.tensorrt_plugins',
    'core',
    'cutting',
    'families.bevdet',
    'families.bevformer',
    'families.bevfusion',
    'families.bevfusion.runtime',
    'families.parts',
    'families.parts.runtime',
    'families.petr',
    'families.rtdetr',
    'families.sparse4d',
    'families.streampetr',
    'models.bevdet',
    'models.bevformer',
    'models.bevfusion',
    'models.petr',
    'models.sparse4d',
    'models.streampetr',
    'seeded',
    'zoo',
]
"""Moved packages; importing one alone is no error, so that the error names the module in it."""
