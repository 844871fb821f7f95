"""Cases of a sparse backbone for NVIDIA's libspconv: voxels, and spconv's dense map of each."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import UsageError
from mmdeploy_ext.base.files import sha256_file
from mmdeploy_ext.bench.kit.contents import LIBSPCONV, ArrayFolder, KitCase, KitGraph
from mmdeploy_ext.exporting.sparse import libspconv
from mmdeploy_ext.graphs.io.files import is_sparse
from mmdeploy_ext.proving.inputs.voxel_sets import in_order, proof_sets
from mmdeploy_ext.proving.sparse_file import read_sparse_file
from mmdeploy_ext.proving.sparse_layers import HALF_RTOL
from mmdeploy_ext.runtime.sparse import engine
from mmdeploy_ext.spec.digest import check_whole
from mmdeploy_ext.spec.tensors import ColumnGroup, GraphSpec, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.runtime.sparse.ir import SparseGraph


def write_voxels(
    detector: Detector, path: str, samples: Collection[VoxelSet], folder: Path
) -> dict[str, Any]:
    """Write file and cases into a kit; return the manifest's entries.

    `path` is read, not run. `samples` are real voxels, coordinates in the model's order of axes. A float16
    file also gets the proof's synthetic voxels; INT8 ranges hold for real voxels only.
    """
    file = read_sparse_file(detector, path, None)
    if not is_sparse(file.model):
        raise UsageError(
            f'{path}: is a sparse backbone in the portable form; a kit needs a detector or a backbone for '
            'libspconv'
        )
    settings, sets = detector.settings, list(samples)
    if file.precision == 'fp16':
        synthetic = proof_sets(settings.spatial_shape, settings.in_channels)
        sets = [voxels for voxels in synthetic if len(voxels.features)] + sets
    if not sets:
        raise UsageError(
            f'{path}: is INT8 with ranges for real sweeps; pass some with --samples (.bin, .npz)'
        )
    arrays, family = ArrayFolder(folder), detector.family
    network = libspconv.read(path)
    graph = KitGraph('backbone', f'lidar.backbone.{network.order}.onnx', None, _spec(network))
    check_whole(path)
    shutil.copyfile(path, folder / graph.file)
    cases = []
    for index, voxels in enumerate(sets):
        features = voxels.features.astype(np.float16)
        inputs = dict(
            features=features,
            coordinates=in_order(voxels.coordinates, file.same_order).astype(np.int32),
            grid=np.array(network.spatial_shape, np.int32),
        )
        dense = family.run_encoder(detector.model, features.astype(np.float32), voxels.coordinates)
        case = KitCase(f'{index:03}', graph.name, voxels.name, (), inputs, {}, dict(dense=dense), [])
        cases.append(case.write(arrays, dict(dense=dense)))
    return dict(
        graphs=[graph.to_json() | dict(source_sha256=sha256_file(path))],
        cases=cases,
        frames=[],
        engine=LIBSPCONV,
        precision=file.precision,
    )


def _spec(network: SparseGraph) -> GraphSpec:
    group = ColumnGroup(rtol=HALF_RTOL)
    return GraphSpec(
        'backbone',
        (
            TensorSpec('features', 'float16', ('N', network.in_channels)),
            TensorSpec('coordinates', 'int32', ('N', 4)),
            TensorSpec('grid', 'int32', (3,)),
        ),
        (TensorSpec('dense', 'float16', network.output_shape, groups=(group,)),),
    )


def open_interpreted(path: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a function from a case's inputs to `dense` in float16, which interprets the file in numpy."""
    network = libspconv.read(path)

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(dense=engine.run(network, inputs['coordinates'], inputs['features']).astype(np.float16))

    return run
