"""The proof of a sparse backbone's file: structure, every layer and the dense map against spconv."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.cli import tracked
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.base.files import read_json, sha256_onnx
from mmdeploy_ext.engines.base import attempt
from mmdeploy_ext.exporting.sparse.libspconv import to_node_list
from mmdeploy_ext.families.backbone_files import has_precision
from mmdeploy_ext.proving import sparse_file
from mmdeploy_ext.proving.inputs.voxel_sets import in_order, proof_sets
from mmdeploy_ext.proving.preprocessing.voxels import compare_voxels
from mmdeploy_ext.proving.proof import add_checks, check_graph, check_model, compare_again, finish, start
from mmdeploy_ext.proving.provenance import settings_check
from mmdeploy_ext.proving.sparse_layers import (
    DialectRunner,
    PortableRunner,
    layer_rows,
    run_reference,
)
from mmdeploy_ext.spec.comparison import compare_named, failed_row
from mmdeploy_ext.spec.matching import total_reasons
from mmdeploy_ext.spec.results import Case, Pair

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.exporting.sparse.ranges import Ranges
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.claims import Claims
    from mmdeploy_ext.proving.inputs.voxel_sets import VoxelSet
    from mmdeploy_ext.proving.proof import Proof
    from mmdeploy_ext.proving.sparse_file import SparseFile
    from mmdeploy_ext.proving.sparse_layers import SparseReference
    from mmdeploy_ext.spec.results import TensorRow
    from mmdeploy_ext.spec.verdict import Verdict

    Runner = DialectRunner | PortableRunner

DRAWN_VOXELS = 500
"""Fewest voxels of an input in the report."""
MAX_DRAWN = 16
"""Most inputs in the report."""


def prove_backbone(
    detector: Detector,
    paths: Sequence[str],
    samples: Sequence[VoxelSet],
    engine: Mapping[str, Any],
    claims: Claims,
    **settings: Any,
) -> Verdict:
    """Prove one 'libspconv' or 'portable' file on synthetic and real voxels."""
    proof = check_backbone(detector, paths, samples, engine, claims, **settings)
    (file,), results, timing = proof.files, proof.results, {}
    dialect = file.export_options.target == 'libspconv'
    runner_class = DialectRunner if dialect else PortableRunner
    runner = attempt(lambda: runner_class(file, int(proof.engine.get('threads', 0))))
    if isinstance(runner, Exception):
        results.reasons.append(f'ONNX Runtime cannot run the file: {one_line(runner)[:300]}')
        return finish(proof)

    settings = detector.settings
    sets = [*proof_sets(settings.spatial_shape, settings.in_channels), *samples]
    for voxels in tracked(sets, len(sets), 'proving'):
        case, pairs, times = run_voxels(file, runner, voxels)
        results.cases.append(case)
        proof.pairs += pairs
        timing = times or timing
    compare_again(proof, lambda: run_voxels(file, runner, sets[0])[0])
    if claims.timed:
        proof.verdict.timing_ms = timing
    if not results.reasons:
        results.reasons += total_reasons(results.cases, proof.verdict.bars)
    proof.verdict.pairs = proof.pairs[::-1][:MAX_DRAWN]
    return finish(proof)


def check_backbone(
    detector: Detector,
    paths: Sequence[str],
    samples: Sequence[VoxelSet],
    engine: Mapping[str, Any],
    claims: Claims,
    *,
    ranges: Ranges | None = None,
    max_voxels: int | None = None,
    node_list: str = '',
) -> Proof:
    """Read the file, make its expected graphs, check it."""
    file = sparse_file.read_sparse_file(detector, paths[0], ranges)
    options = file.export_options
    facts = dict(
        file_sha256=sha256_onnx(file.path),
        form=options.target,
        options=dict(options.to_json(), cfg_options=detector.cfg_options),
        order=options.order,
        precision=file.precision,
        grid='x'.join(map(str, file.expected.spatial_shape)),
        output='x'.join(map(str, file.expected.output_shape)),
    )
    proof = start(detector, [file], options, engine, claims, facts)
    notes, checks = proof.verdict.notes, []
    if options.target == 'libspconv':
        checks, warnings = sparse_file.check_dialect(file.path, file.model, max_voxels)
        notes += warnings
    else:
        checks = sparse_file.check_portable(file.model)
    if has_precision(options):
        notes.append(
            f'layers are compared in float32; to measure the effect of int8, use {tool("calibrate")}'
        )
    overrides = file.options.get('cfg_options') or {}
    checks += [
        settings_check(detector.unbuilt_cfg or detector.cfg, overrides),
        sparse_file.metadata_check(file),
        *([] if file.ranges is None else [file.ranges]),
    ]
    if node_list:
        expected, name = read_json(node_list), Path(node_list).name
        checks += sparse_file.compare_node_lists(to_node_list(file.model), expected, name)
    add_checks(proof, file, checks)
    check_graph(proof, file, lambda: sparse_file.compare_graph(file))
    check_model(proof)
    rule, settings = sparse_file.read_fact(file.model, file.path, 'voxels'), detector.settings
    layer = detector.family.voxel_layer(detector.model)
    proof.results.preprocessing = compare_voxels(layer, settings.order, settings.in_channels, rule.to_json())
    return proof


def run_voxels(
    file: SparseFile, runner: Runner, sample: VoxelSet
) -> tuple[Case, list[Pair], dict[str, float]]:
    """Run both sides on voxels; return case, pairs to draw, and times by side."""
    reference = run_reference(file, sample)
    coordinates = in_order(sample.coordinates, file.same_order)
    start_s = time.perf_counter()
    dense = attempt(lambda: runner.run(sample.features, coordinates))
    milliseconds = (time.perf_counter() - start_s) * 1e3
    rows = dense
    if not isinstance(dense, Exception):
        rows = attempt(lambda: _tensor_rows(file, runner, reference, dense, coordinates))
    is_failure = isinstance(rows, Exception)
    if is_failure:
        reason = f'the {runner.failure}: {one_line(rows)[:200]}'
        rows = [failed_row('dense map', reason, reference.dense)]
    shape = 'x'.join(map(str, sample.features.shape))
    case = Case(sample.name, shape, sample.traced, tuple(rows))
    if is_failure or len(sample.features) < DRAWN_VOXELS:
        return case, [], {}
    title = f'{sample.name}, {len(sample.features)} voxels'
    pair = Pair(title, None, reference.dense[0], dense[0], runner.title)
    return case, [pair], {'spconv, one thread': reference.milliseconds, runner.timed: milliseconds}


def _tensor_rows(
    file: SparseFile,
    runner: Runner,
    reference: SparseReference,
    dense: np.ndarray,
    coordinates: np.ndarray,
) -> list[TensorRow]:
    rows = []
    for layer in runner.layers(coordinates) if len(coordinates) else ():
        rows += layer_rows(reference, layer, file.same_order, runner.rtol)
    rows += compare_named({'dense map': reference.dense}, {'dense map': dense}, runner.rtol, 'scn')
    return rows + runner.more_rows(reference)
