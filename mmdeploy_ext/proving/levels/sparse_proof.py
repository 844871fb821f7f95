"""The proof of a sparse backbone's file: structure, then every layer and the dense map against spconv."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.files import read_json, sha256_file
from mmdeploy_ext.exporting.sparse_backbone import has_precision
from mmdeploy_ext.proving.inputs.voxel_sets import in_order, proof_sets
from mmdeploy_ext.proving.levels import sparse_files, sparse_structure
from mmdeploy_ext.proving.levels.base import Proof
from mmdeploy_ext.proving.levels.run_twice import attempt
from mmdeploy_ext.proving.levels.sparse_subject import (
    Subject,
    compare_graph,
    says_check,
    stored_fact,
    subject_of,
)
from mmdeploy_ext.proving.levels.voxels import compare_voxels
from mmdeploy_ext.proving.provenance import settings_check
from mmdeploy_ext.proving.results import Case, Check, Pair
from mmdeploy_ext.proving.rows import TensorRow
from mmdeploy_ext.proving.tensors import compare_named, failed_row
from mmdeploy_ext.sparse.libspconv import to_node_list

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Sequence

    from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.proving.levels.sparse_files import Reference
    from mmdeploy_ext.proving.results import GraphResult, PreprocessingResult
    from mmdeploy_ext.sparse.ranges import Ranges

DRAWN_VOXELS = 500
"""Smaller inputs give no picture worth looking at."""


class SparseProof(Proof):
    """A proof of one file, of either target.

    Its samples are real voxels besides the synthetic ones, coordinates in the model's own order. Of the
    engine's options it takes `threads`.
    """

    by_rate = False
    most_pictures = 16

    def __init__(
        self, *given: Any, ranges: Ranges | None = None, max_voxels: int | None = None, node_list: str = ''
    ) -> None:
        """Read the file.

        Args:
            given: see `Proof`.
            ranges: that it was exported with, where it has any.
            max_voxels: see `libspconv_contract.check`.
            node_list: stored node list of the reference exporter that it has to equal, a JSON file.
        """
        self.ranges, self.max_voxels, self.node_list = ranges, max_voxels, node_list
        super().__init__(*given)

    @property
    def subject(self) -> Subject:
        """The file, and what it has to be."""
        return self.files[0]

    def read(self, path: str) -> Subject:
        return subject_of(self.deployment, path, self.ranges)

    def facts(self) -> dict[str, Any]:
        subject, options = self.subject, self.subject.asked_for
        return dict(
            file_sha256=sha256_file(subject.path),
            form=options.target,
            options=dict(options.to_json(), cfg_options=self.deployment.cfg_options),
            order=options.order,
            precision=subject.precision,
            grid='x'.join(map(str, subject.expected.spatial_shape)),
            output='x'.join(map(str, subject.expected.output_shape)),
        )

    def graph(self, file: Subject) -> GraphResult:
        return compare_graph(file)

    def checks(self, file: Subject) -> list[Check]:
        if file.asked_for.target == 'libspconv':
            checks, notes = sparse_structure.check_dialect(file.path, file.model, self.max_voxels)
            self.verdict.notes += notes
        else:
            checks = sparse_structure.check_portable(file.model)
        if has_precision(file.asked_for):
            self.verdict.notes.append(
                'layers are compared in float32: what int8 does to the values is measured by '
                f'{tool("calibrate")}'
            )
        overrides = file.options.get('cfg_options') or {}
        checks += [
            settings_check(self.deployment.unbuilt_cfg or self.deployment.cfg, overrides),
            says_check(file),
        ]
        checks += [file.ranges] * (file.ranges is not None)
        if self.node_list:
            wanted, name = read_json(self.node_list), Path(self.node_list).name
            checks += sparse_structure.compare_node_lists(to_node_list(file.model), wanted, name)
        return checks

    def preprocessing(self) -> PreprocessingResult:
        """Compare the voxels by the rule in the file with those of the model's own layer."""
        layer = self.deployment.family.voxel_layer(self.deployment.model)
        rule = stored_fact(self.subject.model, self.subject.path, 'voxels')
        settings = self.deployment.settings
        return compare_voxels(layer, settings.order, settings.in_channels, rule)

    def start(self, stack: contextlib.ExitStack) -> None:
        """See `Proof.start`; a file that cannot be run is a reason, and nothing is."""
        self.candidate, self.milliseconds = None, {}
        dialect = self.subject.asked_for.target == 'libspconv'
        kind = sparse_files.DialectFile if dialect else sparse_files.PortableFile
        found = attempt(lambda: kind(self.subject, int(self.engine.get('threads', 0))))
        if isinstance(found, Exception):
            self.verdict.reasons.append(f'the file cannot be run: {one_line(found)[:300]}')
        else:
            self.candidate = found

    def inputs(self) -> list[VoxelSet]:
        settings = self.deployment.settings
        sets = [*proof_sets(settings.spatial_shape, settings.in_channels), *self.samples]
        return sets if self.candidate else []

    def cases(self, one: VoxelSet) -> tuple[list[Case], list[Pair]]:
        """See `Proof.cases`: every layer and the dense map."""
        reference = sparse_files.run_reference(self.subject, one)
        coordinates = in_order(one.coordinates, self.subject.same_order)
        start = time.perf_counter()
        rows = dense = attempt(lambda: self.candidate.run(one.features, coordinates))
        milliseconds = (time.perf_counter() - start) * 1e3
        if not isinstance(dense, Exception):
            rows = attempt(lambda: self._rows(reference, dense, coordinates))
        if isinstance(rows, Exception):
            reason = f'the {self.candidate.what_failed}: {one_line(rows)[:200]}'
            return [_case(one, [failed_row('dense map', reason, reference.dense)])], []
        if len(one.features) < DRAWN_VOXELS:
            return [_case(one, rows)], []
        title = f'{one.name}, {len(one.features)} voxels'
        pair = Pair(title, None, reference.dense[0], dense[0], self.candidate.title)
        self.milliseconds = {'spconv, one thread': reference.milliseconds, self.candidate.timed: milliseconds}
        return [_case(one, rows)], [pair]

    def _rows(self, reference: Reference, dense: np.ndarray, coordinates: np.ndarray) -> list[TensorRow]:
        rows, given = [], (self.subject.same_order, self.candidate.rtol)
        for layer in self.candidate.layers(coordinates) if len(coordinates) else ():
            rows += sparse_files.layer_rows(reference, layer, *given)
        maps = {'dense map': reference.dense}, {'dense map': dense}
        rows += compare_named(*maps, self.candidate.rtol, 'scn')
        return rows + self.candidate.more_rows(reference)

    def timing(self) -> dict[str, float]:
        """See `Proof.timing`: of the last input that is worth it."""
        return self.milliseconds

    def conclude(self) -> None:
        """See `Proof.conclude`; the last input is the first to look at."""
        self.pictures.reverse()
        super().conclude()


def _case(voxels: VoxelSet, rows: Sequence[TensorRow]) -> Case:
    shape = 'x'.join(map(str, voxels.features.shape))
    return Case(voxels.name, shape, voxels.traced, tuple(rows))
