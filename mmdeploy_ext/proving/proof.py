"""Shared parts of proofs: files with metadata, their checks, and the judgement of results."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.config import disagreements
from mmdeploy_ext.base.errors import InferenceError, ModelFileError, one_line
from mmdeploy_ext.base.files import sha256_file
from mmdeploy_ext.base.source_code import changed_files, other_copies, versions, versions_with_places
from mmdeploy_ext.base.user_modules import libraries_not_run
from mmdeploy_ext.engines import BACKENDS
from mmdeploy_ext.engines.base import record_runs
from mmdeploy_ext.engines.registry import CPU
from mmdeploy_ext.exporting.int8.dense import QUANTISE, is_quantised
from mmdeploy_ext.exporting.precision_plan import has_ranges, plan_of
from mmdeploy_ext.graphs.io import files as graph_files
from mmdeploy_ext.graphs.io.files import is_sparse
from mmdeploy_ext.graphs.io.index import count_nodes
from mmdeploy_ext.graphs.io.types import skeleton
from mmdeploy_ext.graphs.passes.fp16 import LOWER
from mmdeploy_ext.proving.file_checks import check_dialect, check_structure, not_compared
from mmdeploy_ext.proving.loop import compare
from mmdeploy_ext.proving.not_shown import add_code, unreached, untraced_methods
from mmdeploy_ext.proving.provenance import (
    asked_checks,
    class_name_notes,
    hash_checks,
    override_notes,
    provenance,
    weights_checks,
)
from mmdeploy_ext.runtime.tasks import place_text
from mmdeploy_ext.spec import digest
from mmdeploy_ext.spec.matching import accept_rest
from mmdeploy_ext.spec.metadata import BF16, Metadata, read_metadata
from mmdeploy_ext.spec.results import EDITED, Check, accept_masks, accept_rate
from mmdeploy_ext.spec.verdict import Finding, Results, Verdict, library_findings
from mmdeploy_ext.upstream.compat import replaced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import onnx

    from mmdeploy_ext.engines.base import Clock
    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.proving.subject import Claims, Subject
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.results import GraphResult, PreprocessingResult
    from mmdeploy_ext.spec.tensors import GraphSpec

INTERFACE_EDITS = {'fp16', 'set-shape'}
"""Commands that change input or output types or sizes."""
ONLY_OUTPUTS = 'pass --edited to compare only the outputs'
BY_OTHERS = f'{QUANTISE} by another tool'
"""Edit of an INT8 file whose tool left mm2onnx's metadata as they were."""
MAX_MESSAGE_LENGTH = 500
"""Length limit of an engine's message."""
ROUNDED = (
    'sparse files have float16 weights, as their engine requires; PyTorch ran with the same weights. A row '
    'of its own shows their effect on the output map. The rounding of the engine is not tested here'
)

ROUNDED_FP16 = (
    "ONNX Runtime's CPU computes float16 in float32: here every value that the file stores in float16 is "
    'rounded, as on a GPU'
)
NO_RANGES = (
    'the scales of its activations are not compared: the file has no ranges of its calibration (of an older '
    'mm2onnx); quantize the float32 file again'
)


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    path: str
    model: onnx.ModelProto
    metadata: Metadata
    name: str = ''

    @property
    def facts(self) -> dict[str, Any]:
        options = self.options
        return dict(
            options=options,
            opset=options['opset'],
            exporter=options['exporter'],
            exported_with=self.metadata.versions,
        )

    @property
    def options(self) -> Mapping[str, Any]:
        return self.metadata.options

    @property
    def edits(self) -> Sequence[str]:
        return self.metadata.edits

    @property
    def hashes(self) -> dict[str, str]:
        return dict(checkpoint=self.metadata.checkpoint_sha256, config=self.metadata.config_sha256)

    @property
    def model_classes(self) -> Sequence[Mapping[str, Any]]:
        return self.metadata.model_classes


@dataclasses.dataclass
class Proof:
    """State of a proof.

    Attributes:
        detector: config and checkpoint.
        files: `ExportedFile` or `SparseFile`.
        options: of their export.
        engine: `engine`, the class's registered name, and options.
        results: comparisons so far.
        changed_files: files of user classes that changed since the export.
    """

    detector: Detector
    files: Sequence[Any]
    options: Options
    engine: dict[str, Any]
    claims: Claims
    verdict: Verdict
    results: Results = dataclasses.field(default_factory=Results)
    changed_files: list[str] = dataclasses.field(default_factory=list)

    def add_notes(self, notes: Iterable[str]) -> None:
        self.verdict.notes += [note for note in notes if note not in self.verdict.notes]


def open_file(path: str) -> ExportedFile:
    """Read an ONNX file and its metadata; ModelFileError: missing, corrupt, or not by mm2onnx."""
    metadata, model = read_metadata(path), graph_files.load(path)
    is_known = any(edit.startswith(QUANTISE) for edit in metadata.edits) or digest.state(path) == digest.WHOLE
    if is_quantised(model) and not is_known:
        metadata = dataclasses.replace(metadata, edits=(*metadata.edits, BY_OTHERS))
    return ExportedFile(path, model, metadata)


def engine_class(engine: Mapping[str, Any]) -> str:
    return str(engine.get('engine', 'OnnxRuntimeBackend'))


def engine_options(
    exported_files: Iterable[ExportedFile], kind: str, engine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the engine's options; below float32 ONNX Runtime on the CPU gets `round_fp16`.

    `kind` is a key of `BACKENDS`.
    """
    is_half = any(
        BF16 in file.edits or {file.metadata.precision, file.options.get('precision')} & LOWER.keys()
        for file in exported_files
    )
    providers = engine.get('providers') or CPU
    on_cpu = providers == CPU or tuple(providers) == (CPU,)
    computes_in_float32 = 'round_fp16' in BACKENDS[kind].keys and on_cpu
    return {'round_fp16': True, **engine} if is_half and computes_in_float32 else dict(engine)


def check(
    detector: Detector,
    files: Sequence[Any],
    options: Options,
    engine: Mapping[str, Any],
    claims: Claims,
    facts: Mapping[str, Any],
    *,
    level_1: Callable[[Any], tuple[Sequence[Check], Sequence[str], Callable[[], GraphResult]]],
    prepared: Callable[[], PreprocessingResult],
) -> Proof:
    """Check read files, their model, and the preparation of samples; return the proof.

    `facts` are for the verdict's subject; `level_1` returns checks of a file, notes, and what compares its
    graph; `prepared` compares prepared samples.
    """
    paths = [file.path for file in files]
    subject = dict(
        file=paths[0] if len(paths) == 1 else str(Path(paths[-1]).parent),
        **data_hashes(paths),
        family=detector.family.name,
        task=detector.family.task,
        **facts,
        config=detector.config,
        checkpoint=detector.checkpoint,
        config_sha256=detector.config_sha256,
        checkpoint_sha256=detector.checkpoint_sha256,
        proven_with=versions_with_places(),
        python=platform.python_version(),
        libraries_not_run=libraries_not_run(detector.cfg),
        ignored_keys=list(detector.ignored_keys),
    )
    proof = Proof(detector, [*files], options, dict(engine), claims, Verdict(subject))
    for place, file in enumerate(proof.files):
        prefix = f'{file.name}: ' if file.name else ''
        checks, notes, compare_graph = level_1(file)
        proof.add_notes(notes)
        proof.results.checks += [dataclasses.replace(one, name=f'{prefix}{one.name}') for one in checks]
        checks = check_graph(proof, file, compare_graph)
        proof.results.checks += [dataclasses.replace(one, name=f'{prefix}{one.name}') for one in checks]
        if isinstance(file, ExportedFile):  # large weights make room for the engines' own
            proof.files[place] = dataclasses.replace(file, model=skeleton(file.model))
    family, model = detector.family, detector.model
    methods = untraced_methods(family, model, detector.cfg, getattr(family.facts(model), 'traced', ()))
    add_code(proof.verdict, detector.model_classes, detector.code_warnings, methods)
    proof.results.checks += [*weights_checks(detector), *asked_checks(files[-1].options, claims.asked)]
    proof.add_notes(
        f'{package} {versions()[package]} was imported from {folder}, not from the installed distribution'
        for package, folder in other_copies().items()
    )
    proof.add_notes(detector.replaced_kernels)
    if ignored := ', '.join(detector.ignored_keys):
        proof.add_notes([f'weights of the checkpoint that --ignore-keys skipped: {ignored}'])
    proof.results.preprocessing = prepared()
    return proof


def data_hashes(paths: Iterable[str | Path]) -> dict[str, dict[str, str]]:
    data_files = {
        Path(os.path.relpath(file, Path(path).parent)).as_posix(): file
        for path in paths
        for file in graph_files.external_files(graph_files.read(path), Path(path).parent).values()
    }
    hashes = {name: sha256_file(file) for name, file in sorted(data_files.items())}
    return {'data_sha256': hashes} if hashes else {}


def check_graph(proof: Proof, file: Any, compare: Callable[[], GraphResult]) -> list[Check]:
    """Compare a file's graph with `compare`; return checks of its hashes."""
    nodes, claims = count_nodes(file.model), proof.claims
    try:
        planned = plan_of(file.model, file.edits) is not None
    except ModelFileError as error:
        raise ModelFileError(f'{file.path}: {error}') from error
    settings = dict(edited=claims.edited, written=claims.written, planned=planned)
    graph = not_compared(file.name, nodes, file.edits, **settings)
    graph = graph or compare()
    if claims.edited and not graph.passed:
        graph = dataclasses.replace(graph, left_out=EDITED, error='')
    proof.results.graphs.append(graph)
    if planned and QUANTISE in file.edits and not graph.left_out and not has_ranges(file.model):
        proof.add_notes([f'{file.path}: {NO_RANGES}'])
    state, checks = digest.state(file.path), []
    if state in (digest.WHOLE, digest.DAMAGED) and not claims.edited:
        detail = '' if state == digest.WHOLE else digest.DAMAGE
        checks.append(Check('whole, by its digest', state == digest.WHOLE, detail))
    elif state != digest.UNKNOWN and state != digest.WHOLE:
        is_equivalent = not graph.passed and all(check.passed for check in proof.results.checks)
        advice = f'; {ONLY_OUTPUTS}' if is_equivalent else ''
        reason = digest.DAMAGE if state == digest.DAMAGED else f'{digest.REWRITE}{advice}'
        proof.add_notes([f'{file.path}: {reason}'])
    hashes, notes = hash_checks(proof.detector, file.hashes, graph.equal)
    proof.add_notes(notes)
    proof.changed_files += changed_files(file.model_classes, proof.detector.model_classes)
    return [*checks, *hashes]


def contents_of(
    detector: Detector, claims: Claims, file: ExportedFile, rule: Any, contract: GraphSpec | None
) -> tuple[list[Check], list[str]]:
    """Check a file, and its metadata against contract, config and options; return checks and notes."""
    if INTERFACE_EDITS & {*file.edits}:
        contract = file.metadata.spec
    if is_sparse(file.model):
        checks, notes = check_dialect(file.path, file.model)
        notes.append(ROUNDED)
    else:
        checks, notes = check_structure(file.model, file.metadata, claims.edited), []
    return [*checks, *provenance(detector, file.metadata, rule, contract)], notes


def compare_samples(proof: Proof, subject: Subject) -> Clock:
    """Run the loop, and compare the ranges of an INT8 file by another tool with the values on its inputs."""
    results = proof.results
    is_recorded = any(graph.undone for graph in results.graphs)
    with record_runs() if is_recorded else contextlib.nullcontext([]) as runs:
        cases, reasons, clock = compare(subject)
    results.cases, results.reasons = [*results.cases, *cases], [*results.reasons, *reasons]
    for place, (file, graph) in enumerate(zip(proof.files, results.graphs, strict=False)):
        feeds = [run.inputs for run in runs if graph.undone and os.path.samefile(run.path, file.path)]
        if not feeds or not graph.equal:
            continue
        try:
            found = tuple(graph.undone.measured(feeds))
        except InferenceError as error:
            proof.add_notes([f'{file.path}: its ranges of activations are not compared: {one_line(error)}'])
            continue
        results.graphs[place] = dataclasses.replace(graph, equal=not found, differences=found)
    return clock


def judge_results(proof: Proof) -> None:
    """Judge all results: the end to end rest; below float32 a rate decides."""
    results, verdict = proof.results, proof.verdict
    if not verdict.bars.is_float32:
        bars = verdict.bars
        results.cases, reason = accept_rate(accept_masks(results.cases, bars), bars)
        results.reasons += filter(None, [reason])
        places = place_text(str(verdict.subject.get('task')), bars)
        verdict.notes.append(f'{verdict.precision}: judged with wider bars than float32: {bars.text(places)}')
        if proof.engine.get('round_fp16'):
            verdict.notes.append(ROUNDED_FP16)
        return
    results.cases, alone = accept_rest(results.cases)
    verdict.notes += [f'without a partner end to end: {line}' for line in alone]
    rows = [row for case in results.cases for row in (*case.detections, *case.parts)]
    proof.add_notes(f'{row.image}: at a tie: {line}' for row in rows for line in getattr(row, 'excused', ()))


def not_loaded(proof: Proof, error: Exception) -> Verdict:
    proof.verdict.add_failures([one_line(error)[:MAX_MESSAGE_LENGTH]])
    return finish(proof)


def conclude(
    proof: Proof,
    subject: Any,
    limits: Mapping[str, Any],
    option: str,
    clock: Clock | None = None,
    unit: str = '',
) -> Verdict:
    """Note what the export and the samples leave open, and return the verdict; `option` chooses samples.

    The subject has `unread`, `watch` and `pairs`; `clock` times a `unit` of it.
    """
    verdict, results, detector = proof.verdict, proof.results, proof.detector
    written = 'the files were' if detector.family.files else 'the file was'
    verdict.notes += override_notes(detector, proof.files[-1].metadata, written)
    verdict.notes += [*class_name_notes(detector), *disagreements(detector.cfg)]
    verdict.notes += getattr(getattr(subject, 'reference', None), 'notes', ())
    results.reasons += subject.unread.reasons
    verdict.unreached += unreached(limits, results.cases, option)
    verdict.unreached += subject.watch.lines(subject.settings, option)
    verdict.pairs = [*subject.pairs]
    if clock is not None and proof.claims.timed:
        titles = f'PyTorch ({unit})', f'{verdict.subject["engine"]} ({unit})'
        medians = clock.medians('reference', 'free' if 'free' in clock.seconds else 'file').values()
        verdict.timing_ms = dict(zip(titles, medians, strict=False))
    return finish(proof)


def finish(proof: Proof) -> Verdict:
    verdict, claims = proof.verdict, proof.claims
    verdict.subject['replaced'] = replaced.facts()
    verdict.findings += library_findings(verdict.subject['libraries_not_run'], claims.library == 'installed')
    proof.results.add_to(verdict)
    if claims.strict:
        verdict.findings += (Finding('surroundings', 'untraced', False, text) for text in verdict.untraced)
    if proof.changed_files and not verdict.passed:
        changed = ', '.join(dict.fromkeys(proof.changed_files))
        verdict.notes.append(f'changed since the export: {changed}')
    return verdict
