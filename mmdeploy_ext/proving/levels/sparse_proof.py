"""The proof of a sparse backbone's file: structure, then every layer and the dense map against spconv."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import one_line
from mmdeploy_ext.core.files import read_json, sha256_file
from mmdeploy_ext.exporting.sparse_backbone import has_precision
from mmdeploy_ext.proving.inputs.voxel_sets import in_order, proof_sets
from mmdeploy_ext.proving.levels import sparse_file
from mmdeploy_ext.proving.levels.attempts import attempt
from mmdeploy_ext.proving.levels.proof import Proof
from mmdeploy_ext.proving.levels.sparse_layers import (
    DialectRunner,
    PortableRunner,
    layer_rows,
    run_reference,
)
from mmdeploy_ext.proving.preprocessing.voxels import compare_voxels
from mmdeploy_ext.proving.provenance import settings_check
from mmdeploy_ext.proving.results import Case, Check, Pair
from mmdeploy_ext.proving.tensors import compare_named, failed_row
from mmdeploy_ext.sparse.libspconv import to_node_list

if TYPE_CHECKING:
    import contextlib

    import numpy as np

    from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.proving.levels.sparse_file import SparseFile
    from mmdeploy_ext.proving.levels.sparse_layers import SparseReference
    from mmdeploy_ext.proving.results import GraphResult, PreprocessingResult
    from mmdeploy_ext.proving.tensors import TensorRow
    from mmdeploy_ext.sparse.ranges import Ranges

DRAWN_VOXELS = 500
"""Minimum number of voxels of an input that is drawn in the report."""


class SparseProof(Proof):
    """A proof of one file, of the target 'libspconv' or 'portable'; `Proof` describes the methods.

    Its samples are sets of real voxels, with coordinates in the model's order of axes; `inputs` puts
    synthetic ones before them. Of the engine's options it takes `threads`.
    """

    by_rate = False
    max_drawn = 16

    def __init__(
        self,
        *arguments: Any,
        ranges: Ranges | None = None,
        max_voxels: int | None = None,
        node_list: str = '',
    ) -> None:
        """Read the file.

        Args:
            arguments: those of `Proof`: deployment, list of one path, sets of voxels, options of the engine.
            ranges: INT8 ranges that the file was exported with; None: those that it records.
            max_voxels: largest number of voxels of a sweep, by which a libspconv file is checked; None: the
                usual one.
            node_list: path of a JSON file with the node list of NVIDIA's exporter, which that of the file
                has to equal; '' for none.
        """
        self.ranges, self.max_voxels, self.node_list = ranges, max_voxels, node_list
        super().__init__(*arguments)

    @property
    def file(self) -> SparseFile:
        """The file under proof, with the graphs that it is compared with."""
        return self.files[0]

    def read(self, path: str) -> SparseFile:
        """Read the file, and make the graphs that it is compared with."""
        return sparse_file.read_sparse_file(self.deployment, path, self.ranges)

    def facts(self) -> dict[str, Any]:
        """Return hash, target (`form`), options, order of axes, precision, grid and output for the verdict.

        The grid is a text such as '41x1440x1440', whose axes are in the stated order: 'xyz' or 'zyx'; the
        output is the shape of the dense map, such as '1x256x180x180'.
        """
        file, options = self.file, self.file.export_options
        return dict(
            file_sha256=sha256_file(file.path),
            form=options.target,
            options=dict(options.to_json(), cfg_options=self.deployment.cfg_options),
            order=options.order,
            precision=file.precision,
            grid='x'.join(map(str, file.expected.spatial_shape)),
            output='x'.join(map(str, file.expected.output_shape)),
        )

    def graph(self, file: SparseFile) -> GraphResult:
        return sparse_file.compare_graph(file)

    def checks(self, file: SparseFile) -> list[Check]:
        """Check the file by the rules of its target, its settings, its INT8 ranges and its node list."""
        if file.export_options.target == 'libspconv':
            checks, notes = sparse_file.check_dialect(file.path, file.model, self.max_voxels)
            self.verdict.notes += notes
        else:
            checks = sparse_file.check_portable(file.model)
        if has_precision(file.export_options):
            self.verdict.notes.append(
                'layers are compared in float32: what int8 does to the values is measured by '
                f'{tool("calibrate")}'
            )
        overrides = file.options.get('cfg_options') or {}
        checks += [
            settings_check(self.deployment.unbuilt_cfg or self.deployment.cfg, overrides),
            sparse_file.metadata_check(file),
        ]
        if file.ranges is not None:
            checks.append(file.ranges)
        if self.node_list:
            expected, name = read_json(self.node_list), Path(self.node_list).name
            checks += sparse_file.compare_node_lists(to_node_list(file.model), expected, name)
        return checks

    def preprocessing(self) -> PreprocessingResult:
        """Compare the voxel rule in the file with the voxelisation of the model."""
        layer = self.deployment.family.voxel_layer(self.deployment.model)
        rule = sparse_file.read_fact(self.file.model, self.file.path, 'voxels')
        settings = self.deployment.settings
        return compare_voxels(layer, settings.order, settings.in_channels, rule)

    def start(self, stack: contextlib.ExitStack) -> None:
        """Open the file. If it cannot be run the proof fails, and there are no inputs."""
        self.candidate, self.milliseconds = None, {}
        dialect = self.file.export_options.target == 'libspconv'
        runner_class = DialectRunner if dialect else PortableRunner
        runner = attempt(lambda: runner_class(self.file, int(self.engine.get('threads', 0))))
        if isinstance(runner, Exception):
            self.results.reasons.append(f'the file cannot be run: {one_line(runner)[:300]}')
        else:
            self.candidate = runner

    def inputs(self) -> list[VoxelSet]:
        """Return synthetic voxels, then the samples; [] if the file cannot be run."""
        settings = self.deployment.settings
        sets = [*proof_sets(settings.spatial_shape, settings.in_channels), *self.samples]
        return sets if self.candidate else []

    def cases(self, sample: VoxelSet) -> tuple[list[Case], list[Pair]]:
        """Run both sides on one set of voxels; return its case, and what the report draws of it.

        Sets of less than `DRAWN_VOXELS`, and those on which the file raised, are not drawn.
        """
        reference = run_reference(self.file, sample)
        coordinates = in_order(sample.coordinates, self.file.same_order)
        start = time.perf_counter()
        dense = attempt(lambda: self.candidate.run(sample.features, coordinates))
        milliseconds = (time.perf_counter() - start) * 1e3
        rows = dense
        if not isinstance(dense, Exception):
            rows = attempt(lambda: self._tensor_rows(reference, dense, coordinates))
        is_failure = isinstance(rows, Exception)
        if is_failure:
            reason = f'the {self.candidate.failure}: {one_line(rows)[:200]}'
            rows = [failed_row('dense map', reason, reference.dense)]
        shape = 'x'.join(map(str, sample.features.shape))
        cases = [Case(sample.name, shape, sample.traced, tuple(rows))]
        if is_failure or len(sample.features) < DRAWN_VOXELS:
            return cases, []
        title = f'{sample.name}, {len(sample.features)} voxels'
        pair = Pair(title, None, reference.dense[0], dense[0], self.candidate.title)
        self.milliseconds = {'spconv, one thread': reference.milliseconds, self.candidate.timed: milliseconds}
        return cases, [pair]

    def _tensor_rows(
        self, reference: SparseReference, dense: np.ndarray, coordinates: np.ndarray
    ) -> list[TensorRow]:
        """Compare the outputs of every layer for one input, and the dense maps."""
        rows, rtol = [], self.candidate.rtol
        for layer in self.candidate.layers(coordinates) if len(coordinates) else ():
            rows += layer_rows(reference, layer, self.file.same_order, rtol)
        rows += compare_named({'dense map': reference.dense}, {'dense map': dense}, rtol, 'scn')
        return rows + self.candidate.more_rows(reference)

    def timing(self) -> dict[str, float]:
        """Return side -> milliseconds of its run on the last input that was drawn; {} if none was."""
        return self.milliseconds

    def conclude(self) -> None:
        """Judge all cases; the picture of the last input comes first."""
        self.pictures.reverse()
        super().conclude()
