"""The first tensor in which an ONNX file differs from PyTorch."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmdeploy_ext.base.errors import Mm2OnnxError, UsageError, one_line
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.families.base import exported_options
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.host_programs import hosted
from mmdeploy_ext.graphs.diff import findings
from mmdeploy_ext.graphs.diff.align import align
from mmdeploy_ext.graphs.diff.files import engine_notes
from mmdeploy_ext.graphs.diff.findings import regions
from mmdeploy_ext.graphs.diff.program import Constants, NodeRunner, Program
from mmdeploy_ext.graphs.diff.structure import changes
from mmdeploy_ext.graphs.diff.walk import ReferenceTensor, compare, walk
from mmdeploy_ext.graphs.io import files
from mmdeploy_ext.proving import file_checks
from mmdeploy_ext.proving.difference.pair import RecordIndex
from mmdeploy_ext.proving.difference.record import record_stages
from mmdeploy_ext.proving.difference.split import split_lines, split_of
from mmdeploy_ext.proving.inputs.inputs import proof_inputs
from mmdeploy_ext.proving.pictures import run_case
from mmdeploy_ext.proving.references import options_besides_form, references
from mmdeploy_ext.spec.metadata import Metadata
from mmdeploy_ext.spec.tensors import Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.graphs.diff.walk import Walk
    from mmdeploy_ext.proving.difference.split import Split
    from mmdeploy_ext.spec.verdict import Verdict

MAX_PAIRED_BY_PLACE = 24
"""Most walks of a graph that pair tensors behind an error by module or place."""
JITTER = 0.2
"""Deviation of the noise on traced inputs, relative to theirs; absolute for constant inputs."""


NEAR = 100.0
"""Times the tolerance: a larger difference is no rounding."""


@dataclasses.dataclass
class Subject:
    """The modules that a file was exported from, and the inputs of the comparison."""

    stages: Sequence[Stage]
    feeds: dict[str, np.ndarray]
    fresh_export: file_checks.Export | None
    title: str
    beside: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def first_difference(
    detector: Detector,
    path: str,
    side: GraphSide,
    feeds: Mapping[str, np.ndarray] | None = None,
    bars: findings.DiffBars | None = None,
    fresh: bool = True,
    against_float64: bool = False,
) -> findings.Comparison:
    """Compare a file with its PyTorch model, tensor by tensor.

    - `side`: the modules and inputs of PyTorch's side.
    - `feeds`: name -> array of every input, instead.
    - `bars`: None: the bars of the file's precision.
    - `fresh`: export the modules again, to tell which tensor is which.
    - `against_float64`: note how much of the difference is rounding of either side, and how much the export.
    """
    model = files.load(path)
    metadata = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props}, path)
    metadata.require(path, detector.family.name)
    subject = subject_of(detector, metadata, side, feeds)
    bars = bars or findings.diff_bars_of(metadata.options.get('precision'))
    search = Search(subject, bars)
    comparison = search.compare(model, fresh)
    comparison.subject = dict(
        kind='checkpoint',
        file=str(path),
        family=metadata.family,
        form=metadata.form,
        config=detector.config,
        checkpoint=detector.checkpoint,
        input=subject.title,
        inputs=findings.shape_texts(subject.feeds),
        **comparison.subject,
    )
    outputs = {value.name for value in model.graph.output}
    comparison.missing = [name for name in metadata.spec.output_names if name not in outputs]
    if fresh:
        if metadata.edits:
            commands = ', '.join(metadata.edits)
            comparison.notes.append(f'edited by {commands}: not compared with a fresh export')
        else:
            graph = file_checks.compare_with_fresh_export(model, subject.fresh_export)
            comparison.graph = '' if graph.passed else graph.text
    comparison.notes += side.upstream_notes(detector, metadata, subject, search, bars)
    if against_float64:
        comparison.notes += split_lines(*search.split())
    if feeds is None and comparison.equal:
        comparison.results = side.differing_results(detector, metadata, path)
    if metadata.checkpoint_sha256 != detector.checkpoint_sha256:
        comparison.notes.append('the file was exported from another checkpoint')
    return comparison


def near_lines(detector: Detector, path: str, side: GraphSide, verdict: Verdict) -> list[str]:
    """Return whose the difference of a file is that fails by less than `NEAR` times the tolerance, or []."""
    failed = [finding.figures for finding in verdict.with_figure('tensor') if finding.passed is False]
    ratios = [row['max_abs'] / row['tolerance'] for row in failed if row['max_abs'] and row['tolerance']]
    if not verdict.bars.is_float32 or not ratios or max(ratios) >= NEAR:
        return []
    model = files.load(path)
    metadata = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props}, path)
    search = Search(subject_of(detector, metadata, side), findings.diff_bars_of('fp32'))
    search.compare(model)
    return split_lines(*search.split())


def subject_of(
    detector: Detector,
    metadata: Metadata,
    side: GraphSide,
    feeds: Mapping[str, np.ndarray] | None = None,
) -> Subject:
    """Return the modules that a file was exported from, and the inputs of the comparison."""
    subject = side.subject(detector, metadata)
    if feeds is not None:
        subject = dataclasses.replace(subject, feeds=dict(feeds), title='given inputs')
    metadata.spec.check_feeds(subject.feeds)
    return subject


def unseen(example: np.ndarray, seed: int) -> np.ndarray:
    """Return noisy values like `example`; booleans and integers other than pixels stay."""
    if example.dtype.kind != 'f' and example.dtype != np.uint8:
        return example.copy()
    rng = np.random.default_rng([7, seed])
    spread = float(example.std()) or 1.0
    values = example + JITTER * spread * rng.standard_normal(example.shape)
    return (np.abs(values) if example.min() >= 0 else values).astype(example.dtype)


class Search:
    """PyTorch's side of a comparison, run once; several graphs can be compared with it."""

    def __init__(self, subject: Subject, bars: findings.DiffBars) -> None:
        self.subject, self.bars = subject, bars
        self.constants, self.runner = Constants(), NodeRunner()
        self.records = _record(subject, bars)
        self.named = self.records.named()

    def compare(self, model: onnx.ModelProto, fresh: bool = True) -> findings.Comparison:
        program = Program(model, self.constants)
        references, graph_changes, notes = dict(self.named), [], []
        export = self._export if fresh else 'not asked for'
        inherited: set[str] = set()
        if isinstance(export, str):
            notes.append(f'no fresh export to compare with: {export}')
        else:
            clean, clean_walk, wrong = export
            pairs = align(program, clean)
            graph_changes = changes(program, clean, pairs)
            references.update(_references_from(pairs.tensors, clean_walk, wrong))
            inherited = {name for name, mate in pairs.tensors.items() if mate in wrong}
        self.walked = result = self._walk(program, references)
        module = functools.cache(functools.partial(self.records.module_path, program))
        notes += engine_notes(model, self.subject.feeds, result, self.bars)
        subject = dict(modules=len(self.records.recorder.calls), recorded=len(self.records.records))
        structure = [change for change in graph_changes if change.kind != 'metadata']
        comparison = findings.comparison_of(result, self.bars, structure, subject, notes, module)
        comparison.guessed = isinstance(export, str)
        for difference in comparison.differences:
            if difference.tensor in inherited:
                difference.evidence.append(
                    'a fresh export has it too: it comes from the export, not from a later change'
                )
        return comparison

    def split(self) -> tuple[list[Split], list[str]]:
        """Return the parts of the differences of the last file, see `split_of`."""
        return split_of(self.subject.stages, self.subject.feeds, self.records.records, self.walked)

    @functools.cached_property
    def _export(self) -> tuple[Program, Walk, set[str]] | str:
        try:
            program = Program(self.subject.fresh_export(), self.constants)
        except Mm2OnnxError as error:
            return one_line(error)
        result = self._walk(program, dict(self.named))
        wrong = {tensor for region in regions(result, self.bars.born) for tensor in region.tensors}
        return program, result, wrong

    def _walk(self, program: Program, references: dict[str, ReferenceTensor]) -> Walk:
        for _ in range(MAX_PAIRED_BY_PLACE):
            result = walk(program, self.subject.feeds, references, self.runner, self.records.lookup)
            paired = self.records.by_module(result)
            if not paired:
                for region in regions(result, self.bars.born):
                    paired = self.records.by_place(result, region.tensors[: -1 if region.ends else None])
                    if paired:
                        break
            if not paired:
                break
            references.update(paired)
        return result


def locate(module: torch.nn.Module, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> str:
    """Return where a file first differs from a module: node, part of the module, and line of its code.

    `module` has the file's inputs and outputs in its order, on the CPU; `feeds` (input -> array) show the
    difference.
    """
    stage = Stage('', module, tuple(feeds), tuple(value.name for value in model.graph.output))
    search = Search(Subject([stage], dict(feeds), None, ''), findings.DiffBars())
    first = search.compare(model, fresh=False).first
    if first is None:
        return ''
    parts = [f'node {first.node} ({first.op_type}), tensor {first.tensor}']
    if part := first.module.removeprefix('module').removeprefix('.'):
        parts.append(f'module {part}')
    records = search.records.records
    if 0 <= first.record < len(records) and (line := records[first.record].line):
        parts.append(line)
    error = first.born if first.born is not None else first.error
    if error is not None:
        parts.append(f'relative error {error:.2e}')
    return ', '.join([*parts, *first.evidence[:1]])


def _record(subject: Subject, bars: findings.DiffBars) -> RecordIndex:
    parameters = (parameter for stage in subject.stages for parameter in stage.module.parameters())
    device = next((parameter.device for parameter in parameters), torch.device('cpu'))
    inputs = {name: torch.tensor(array, device=device) for name, array in subject.feeds.items()}  # copies
    recorder = record_stages(subject.stages, inputs)
    weights = {}
    for stage in subject.stages:
        state = stage.module.state_dict()
        weights.update({name: value.detach().cpu().numpy() for name, value in state.items()})
    return RecordIndex(recorder, weights, bars.born)


def _references_from(tensors: Mapping[str, str], clean: Walk, wrong: set[str]) -> dict[str, ReferenceTensor]:
    references = {}
    for name, mate in tensors.items():
        row = clean.rows.get(mate)
        if row is None:
            continue
        if row.reference is not None:
            value = clean.good.get(mate, row.reference.value)
            how = {'value': 'values'}.get(row.reference.how, row.reference.how)
            references[name] = dataclasses.replace(row.reference, value=value, how=how)
        elif mate not in wrong and isinstance(clean.good.get(mate), np.ndarray):
            references[name] = ReferenceTensor(clean.good[mate], '', '', 'export')
    return references


class GraphSide:
    """PyTorch's side of a graph of frames, sweeps or voxels: seeded numbers like the trace's."""

    def prepare(self, detector: Detector, metadata: Metadata) -> None:
        """Set a loaded model as the file's metadata say."""

    def subject(self, detector: Detector, metadata: Metadata) -> Subject:
        options = exported_options(detector.family, metadata.options)
        graphs = {
            graph.name: graph
            for graph in contract_of(detector.family, options).graphs(prepared(detector.model), options)
        }
        graph = graphs.get(metadata.form)
        if graph is None or graph.module is None:
            comparable = ', '.join(name for name, graph in graphs.items() if graph.module) or 'none'
            raise UsageError(
                f'the graph {metadata.form!r} cannot be compared with PyTorch tensor by tensor; for this '
                f'model, use {comparable}'
            )
        stage = Stage('', graph.module, tuple(graph.spec.input_names), tuple(graph.spec.output_names))
        examples = enumerate(graph.example.items())
        feeds = {name: unseen(tensor.cpu().numpy(), index) for index, (name, tensor) in examples}
        fresh = functools.partial(file_checks.of_graphs(detector, options), metadata.form)
        return Subject([stage], feeds, fresh, 'random numbers with the shapes of the traced inputs')

    def upstream_notes(
        self,
        detector: Detector,
        metadata: Metadata,
        subject: Subject,
        search: Search,
        bars: findings.DiffBars,
    ) -> list[str]:
        """Return notes on outputs in which the exported modules leave the unpatched model."""
        return []

    def differing_results(self, detector: Detector, metadata: Metadata, path: str) -> str:
        """Run the user's test path; return the first result that the file lacks, or ''."""
        return ''


class PictureSide(GraphSide):
    """PyTorch's side of a graph of pictures: the last input of `proof_inputs`.

    `images` are (title, (h, w, 3) uint8 BGR).
    """

    def __init__(self, images: Sequence[tuple[str, np.ndarray]]) -> None:
        self.images = images

    def prepare(self, detector: Detector, metadata: Metadata) -> None:
        detector.normalise_with(metadata.preprocess.mean, metadata.preprocess.std)

    def subject(self, detector: Detector, metadata: Metadata) -> Subject:
        family, options = detector.family, exported_options(detector.family, metadata.options)
        inputs = proof_inputs(detector, options, self.images)
        unseen_input = [case for case in inputs if not case.traced and not case.left_out][-1]
        arrays = family.feeds(unseen_input.images, rescale=True)
        arrays |= family.reference(detector.model).inner_inputs(arrays, options.form)
        (graph,) = family.graphs(prepared(detector.model), options)
        feeds = {name: arrays[name] for name in metadata.spec.input_names if name in arrays}
        return Subject(
            hosted(family, graph, options, detector.rule, detector.model).stages,
            metadata.spec.rounded(metadata.spec.with_required(feeds)),
            file_checks.of_images(detector, options, self.images[0][1], (options.height, options.width)),
            f'{unseen_input.name} ({unseen_input.sources[0][0]})',
            arrays,
        )

    def upstream_notes(
        self,
        detector: Detector,
        metadata: Metadata,
        subject: Subject,
        search: Search,
        bars: findings.DiffBars,
    ) -> list[str]:
        family = detector.family
        output_names = [tensor.name for tensor in metadata.spec.outputs if tensor.compare == 'values']
        if not output_names:
            return []
        options = options_besides_form(detector, metadata)
        feeds = {**subject.beside, **subject.feeds}
        expected = family.reference(detector.model).tensors(feeds, metadata.form, **options)
        stage_outputs, notes = {name for stage in subject.stages for name in stage.outputs}, []
        for name in output_names:
            if name not in expected or name not in stage_outputs:
                continue
            error, reason = compare(search.named[name].value, expected[name])
            if error is not None and error > bars.free:
                notes.append(
                    f'output {name}: the exported modules already differ from the unpatched model '
                    f'(relative error {error:.2e}{"; " + reason if reason else ""}); look there first'
                )
        return notes

    def differing_results(self, detector: Detector, metadata: Metadata, path: str) -> str:
        """Run the user's test path; return the first result that the file lacks, or ''."""
        options = exported_options(detector.family, metadata.options, path)
        with build_backend('OnnxRuntimeBackend', path=path) as backend:
            for reference in references(detector, options, self.images[:1]):
                case, _ = run_case(reference, backend)
                if case.failures:
                    return case.failures[0]
        return ''
