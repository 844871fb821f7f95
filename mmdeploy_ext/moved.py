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
    'backbone_files': 'families.backbone_files',
    'benchmark': 'bench.benchmark',
    'cli.backend_config': 'families.evaluate.backend_config',
    'cli.demo': 'tools/demo/drawing.py',
    'cli.lidar_demo_app': 'tools/demo/lidar_demo.py',
    'cli.tested_models': 'bench.kinds.tested',
    'cli.video_app': 'tools/demo/streampetr_video.py',
    'cli.zoo_app': 'dev.zoo.app',
    'config': 'base',
    'consumers': 'mm2onnx_driving',
    'consumers.autoware.bevdet_export': 'mm2onnx_driving.bevdet.targets.autoware_export',
    'consumers.autoware.bevformer': 'mm2onnx_driving.bevformer.targets.autoware',
    'consumers.autoware.bevformer_export': 'mm2onnx_driving.bevformer.targets.autoware_export',
    'consumers.autoware.bevfusion': 'mm2onnx_driving.bevfusion.targets.autoware',
    'consumers.autoware.bevfusion_export': 'mm2onnx_driving.bevfusion.targets.autoware_export',
    'consumers.autoware.streampetr': 'mm2onnx_driving.streampetr.targets.autoware',
    'consumers.autoware.streampetr_export': 'mm2onnx_driving.streampetr.targets.autoware_export',
    'consumers.bevdet': 'mm2onnx_driving.bevdet.targets',
    'consumers.bevdet_plugins': 'mm2onnx_driving.bevdet.targets.bevdet_plugins',
    'consumers.bevformer': 'mm2onnx_driving.bevformer.targets',
    'consumers.bevfusion': 'mm2onnx_driving.bevfusion.targets',
    'consumers.cuda_bevfusion': 'mm2onnx_driving.bevfusion.targets.cuda_bevfusion',
    'consumers.dl4agx': 'mm2onnx_driving.petr.targets.dl4agx',
    'consumers.petr': 'mm2onnx_driving.petr.targets',
    'consumers.sparse4d': 'mm2onnx_driving.sparse4d.targets',
    'consumers.sparseend2end': 'mm2onnx_driving.sparse4d.targets.sparseend2end',
    'consumers.streampetr': 'mm2onnx_driving.streampetr.targets',
    'consumers.streampetr_fork': 'mm2onnx_driving.streampetr.targets.streampetr_fork',
    'consumers.tensorrt_plugins': 'mm2onnx_driving.bevformer.targets.tensorrt_plugins',
    'contract': 'spec',
    'contract.comparison': 'spec.comparison',
    'contract.slices': 'spec.slices',
    'contract.spec': 'spec.tensors',
    'core': 'base',
    'core.config': 'base.config',
    'core.unregistered': 'base.unregistered',
    'core.user_functions': 'base.user_functions',
    'core.user_modules': 'base.user_modules',
    'core.yaml_config': 'base.yaml_config',
    'cutting': 'proving.parts',
    'cutting.pieces': 'proving.parts.part',
    'cutting.trees': 'proving.parts.tree',
    'detector': 'families.detector',
    'detector_files': 'families.detector_files',
    'evaluate': 'families.evaluate',
    'exporting.ops': 'upstream.operators',
    'exporting.ops.forms': 'exporting.operator_nodes',
    'exporting.places': 'upstream.operators.places',
    'exporting.sparse.implicit_gemm': 'mm2onnx_driving.bevfusion.targets.implicit_gemm',
    'families.bevdet': 'mm2onnx_driving.bevdet',
    'families.bevformer': 'mm2onnx_driving.bevformer',
    'families.bevfusion': 'mm2onnx_driving.bevfusion',
    'families.common.bev_data': 'mm2onnx_driving.common.bev_data',
    'families.common.bev_graphs': 'mm2onnx_driving.common.bev_graphs',
    'families.common.bev_models': 'mm2onnx_driving.common.bev_models',
    'families.common.bev_reference': 'mm2onnx_driving.common.bev_reference',
    'families.common.bev_suppression': 'families.common.suppression3d',
    'families.common.camera_data': 'mm2onnx_driving.common.camera_data',
    'families.common.camera_graphs': 'mm2onnx_driving.common.camera_graphs',
    'families.common.camera_models': 'mm2onnx_driving.common.camera_models',
    'families.common.camera_reference': 'mm2onnx_driving.common.camera_reference',
    'families.common.camera_samples': 'mm2onnx_driving.common.camera_samples',
    'families.common.instance_anchors': 'mm2onnx_driving.common.instance_anchors',
    'families.common.instance_data': 'mm2onnx_driving.common.instance_data',
    'families.common.instance_graphs': 'mm2onnx_driving.common.instance_graphs',
    'families.common.instance_reference': 'mm2onnx_driving.common.instance_reference',
    'families.common.lift_data': 'mm2onnx_driving.common.lift_data',
    'families.common.lift_graphs': 'mm2onnx_driving.common.lift_graphs',
    'families.common.lift_models': 'mm2onnx_driving.common.lift_models',
    'families.common.lift_reference': 'mm2onnx_driving.common.lift_reference',
    'families.common.runtime.bev_frames': 'mm2onnx_driving.common.runtime.bev_frames',
    'families.common.runtime.instance_boxes': 'mm2onnx_driving.common.runtime.instance_boxes',
    'families.common.runtime.instance_stream': 'mm2onnx_driving.common.runtime.instance_stream',
    'families.common.runtime.lift_splat': 'mm2onnx_driving.common.runtime.lift_splat',
    'families.common.runtime.query_boxes': 'mm2onnx_driving.common.runtime.query_boxes',
    'families.common.traced_inputs': 'mm2onnx_driving.common.traced_inputs',
    'families.files': 'families.detector_files',
    'families.hosts': 'families.host_programs',
    'families.model': 'families.detector',
    'families.nearest': 'families.no_family',
    'families.parts': 'families.common',
    'families.petr': 'mm2onnx_driving.petr',
    'families.sparse4d': 'mm2onnx_driving.sparse4d',
    'families.streampetr': 'mm2onnx_driving.streampetr',
    'families.trial': 'families.first_run',
    'graph': 'graphs',
    'kinds': 'bench.kinds',
    'kit': 'bench.kit',
    'lint': 'bench.lint',
    'lint.trial': 'bench.lint.trial_exports',
    'models': 'upstream.models',
    'models.bevdet': 'mm2onnx_driving.bevdet.model',
    'models.bevformer': 'mm2onnx_driving.bevformer.model',
    'models.bevfusion': 'mm2onnx_driving.bevfusion.model',
    'models.petr': 'mm2onnx_driving.petr.model',
    'models.sparse4d': 'mm2onnx_driving.sparse4d.model',
    'models.streampetr': 'mm2onnx_driving.streampetr.model',
    'parts': 'proving.parts',
    'proving.kept': 'bench.precision.results_kept',
    'proving.ladder': 'bench.kinds',
    'proving.levels': 'proving',
    'proving.open_points': 'proving.not_shown',
    'proving.verdict': 'spec.verdict',
    'quantize': 'exporting.int8',
    'quantize.calibration_sets': 'bench.precision.calibration_sets',
    'quantize.damage': 'bench.precision.damage',
    'quantize.dense_nncf': 'bench.precision.dense_nncf',
    'quantize.dense_probe': 'bench.precision.dense_probe',
    'quantize.dense_target': 'bench.precision.dense_target',
    'quantize.difference': 'bench.precision.difference',
    'quantize.fidelity': 'bench.precision.fidelity',
    'quantize.plan': 'bench.precision.plan',
    'quantize.planned': 'exporting.precision_plan',
    'quantize.search': 'bench.precision.search',
    'quantize.simulation': 'bench.precision.simulation',
    'quantize.sparse_calibration': 'bench.precision.sparse_calibration',
    'quantize.views': 'bench.precision.views',
    'recorded': 'proving.recorded',
    'runtime.held': 'runtime.device_graph',
    'seeded': 'dev.seeded',
    'sparse.fold': 'exporting.sparse.fold',
    'sparse.folded_norms': 'upstream.weights.folded_norms',
    'sparse.implicit_gemm': 'mm2onnx_driving.bevfusion.targets.implicit_gemm',
    'sparse.layer_sources': 'exporting.sparse.layer_sources',
    'sparse.libspconv': 'exporting.sparse.libspconv',
    'sparse.libspconv_contract': 'exporting.sparse.libspconv_contract',
    'sparse.libspconv_measured': 'exporting.sparse.libspconv_measured',
    'sparse.libspconv_parser': 'exporting.sparse.libspconv_parser',
    'sparse.node_writer': 'exporting.sparse.node_writer',
    'sparse.order': 'exporting.sparse.order',
    'sparse.portable': 'exporting.sparse.portable',
    'sparse.precision': 'exporting.sparse.precision',
    'sparse.ranges': 'exporting.sparse.ranges',
    'sparse.show': 'exporting.sparse.show',
    'synthetic': 'families.synthetic',
    'systems': 'mm2onnx_driving',
    'systems.bevdet': 'mm2onnx_driving.bevdet',
    'systems.bevformer': 'mm2onnx_driving.bevformer',
    'systems.bevfusion': 'mm2onnx_driving.bevfusion',
    'systems.flashocc': 'mm2onnx_driving.flashocc',
    'systems.petr': 'mm2onnx_driving.petr',
    'systems.rtdetr': 'families.rtdetr',
    'systems.rtdetr.model': 'upstream.models.rtdetr',
    'systems.sparse4d': 'mm2onnx_driving.sparse4d',
    'systems.sparsedrive': 'mm2onnx_driving.sparsedrive',
    'systems.streampetr': 'mm2onnx_driving.streampetr',
    'systems.vad': 'mm2onnx_driving.vad',
    'targets': 'mm2onnx_driving',
    'tasks': 'runtime.tasks',
    'tasks.half_bars': 'spec.bars',
    'tasks.matching': 'spec.matching',
    'tasks.results': 'spec.results',
    'tasks.ties': 'spec.ties',
    'upstream.models.bev_view': 'mm2onnx_driving.layers.bev_view',
    'upstream.models.camera_detector': 'mm2onnx_driving.layers.camera_detector',
    'upstream.models.cp_fpn': 'mm2onnx_driving.layers.cp_fpn',
    'upstream.models.datasets': 'mm2onnx_driving.layers.datasets',
    'upstream.models.lift_splat': 'mm2onnx_driving.layers.lift_splat',
    'upstream.models.matrices': 'mm2onnx_driving.layers.matrices',
    'upstream.models.query_decoder': 'mm2onnx_driving.layers.query_decoder',
    'upstream.models.rays': 'mm2onnx_driving.layers.rays',
    'upstream.models.sparse_instances': 'mm2onnx_driving.layers.sparse_instances',
    'upstream.models.vovnet': 'mm2onnx_driving.layers.vovnet',
    'util': 'base',
    'verdict': 'spec',
    'weights': 'upstream.weights',
    'zoo': 'dev.zoo',
}
"""Old name below the package -> new name there, or a place in the checkout; a package is for all below it."""


KEPT = (
    'config.config',
    'contract.facts',
    'exporting.ops.operator',
    'families.parts.detector_parts',
    'families.parts.image_graphs',
    'models.mmdet',
    'models.mmdet3d',
    'synthetic.scene',
    'tasks',
    'util.errors',
)
"""Old names that configs, kits and packages of users import; a package is for all below it."""
ELSEWHERE = 'dev.', 'mm2onnx_driving'
"""Beginnings of new names that are not below the package."""
KEPT_NAMES = tuple(f'{PACKAGE}.{name}.' for name in KEPT)


def new_name(name: str) -> str:
    """Return the name of an old module of this package today, or ''."""
    words = name.split('.')[1:]
    for count in range(len(words), 0, -1):
        if new := MOVED.get('.'.join(words[:count])):
            home = '' if '/' in new or new.startswith(ELSEWHERE) else f'{PACKAGE}.'
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
    'benchmark',
    'config',
    'consumers',
    'consumers.autoware',
    'consumers.bevdet_plugins',
    'consumers.cuda_bevfusion',
    'consumers.dl4agx',
    'consumers.plugins',
    'consumers.sparseend2end',
    'consumers.streampetr_fork',
    'consumers.tensorrt_plugins',
    'contract',
    'core',
    'cutting',
    'evaluate',
    'exporting.ops',
    'families.bevdet',
    'families.bevformer',
    'families.bevfusion',
    'families.bevfusion.runtime',
    'families.parts',
    'families.parts.runtime',
    'families.petr',
    'families.sparse4d',
    'families.streampetr',
    'graph',
    'graph.diff',
    'graph.io',
    'graph.passes',
    'graph.reduce',
    'kinds',
    'kit',
    'kit.runners',
    'lint',
    'models',
    'models.bev_view',
    'models.bevdet',
    'models.bevformer',
    'models.bevfusion',
    'models.datasets',
    'models.datasets.pipelines',
    'models.lift_splat',
    'models.petr',
    'models.rtdetr',
    'models.sparse4d',
    'models.sparse_backbone',
    'models.sparse_instances',
    'models.streampetr',
    'parts',
    'proving.levels',
    'quantize',
    'recorded',
    'seeded',
    'synthetic',
    'systems',
    'systems.bevdet',
    'systems.bevdet.model',
    'systems.bevdet.targets',
    'systems.bevdet.targets.bevdet_plugins',
    'systems.bevformer',
    'systems.bevformer.model',
    'systems.bevformer.targets',
    'systems.bevformer.targets.tensorrt_plugins',
    'systems.bevfusion',
    'systems.bevfusion.model',
    'systems.bevfusion.runtime',
    'systems.bevfusion.targets',
    'systems.bevfusion.targets.cuda_bevfusion',
    'systems.flashocc',
    'systems.flashocc.model',
    'systems.flashocc.targets',
    'systems.petr',
    'systems.petr.model',
    'systems.petr.targets',
    'systems.petr.targets.dl4agx',
    'systems.rtdetr',
    'systems.sparse4d',
    'systems.sparse4d.model',
    'systems.sparse4d.targets',
    'systems.sparse4d.targets.sparseend2end',
    'systems.sparsedrive',
    'systems.sparsedrive.model',
    'systems.streampetr',
    'systems.streampetr.model',
    'systems.streampetr.targets',
    'systems.streampetr.targets.streampetr_fork',
    'systems.vad',
    'systems.vad.model',
    'systems.vad.targets',
    'targets',
    'targets.autoware',
    'targets.plugins',
    'tasks',
    'upstream.models.bev_view',
    'upstream.models.datasets',
    'upstream.models.datasets.pipelines',
    'upstream.models.lift_splat',
    'upstream.models.sparse_instances',
    'util',
    'verdict',
    'weights',
    'weights.convert',
    'zoo',
]
"""Moved packages; importing one alone is no error, so that the error names the module in it."""
