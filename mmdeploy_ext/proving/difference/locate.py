"""The first tensor where an ONNX file differs from the PyTorch model that it was exported from.

PyTorch runs the modules that the graph is made of under observation (`record`), the graph is walked node by
node (`mmdeploy_ext/graph/diff/walk.py`), and tensors are paired by name, by values and by place (`pair`). A
fresh export of the same modules tells which tensor is which where values cannot.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

import numpy as np
import torch

from mmdeploy_ext.contract.metadata import Metadata
from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.core.errors import Mm2OnnxError
from mmdeploy_ext.graph.diff import findings
from mmdeploy_ext.graph.diff.align import align
from mmdeploy_ext.graph.diff.compare import engine_notes
from mmdeploy_ext.graph.diff.findings import regions
from mmdeploy_ext.graph.diff.program import Constants, NodeRunner, Program
from mmdeploy_ext.graph.diff.structure import changes
from mmdeploy_ext.graph.diff.walk import ReferenceTensor, compare, walk
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.proving.difference.pair import Pairing
from mmdeploy_ext.proving.difference.record import record_stages
from mmdeploy_ext.proving.difference.subject import Subject, subject_of
from mmdeploy_ext.proving.levels.graph_level import judge

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.graph.diff.walk import Walk

MAX_PAIRED_BY_PLACE = 24
"""Regions that are paired by their place before the search ends; the first one is what is asked for."""


def first_difference(
    deployment: Deployment,
    path: str,
    images: Sequence[tuple[str, np.ndarray]] = (),
    feeds: Mapping[str, np.ndarray] | None = None,
    bars: findings.Bars | None = None,
    fresh: bool = True,
) -> findings.Comparison:
    """Compare a file with its PyTorch model, tensor by tensor.

    Args:
        deployment: config and checkpoint.
        path: the file.
        images: (title, BGR picture); the first stands for the traced one.
        feeds: inputs to use instead of what the images give.
        bars: what counts as a difference; None: by the file's precision.
        fresh: export the modules again and use it to tell which tensor is which.

    Raises:
        ModelFileError: the file cannot be read, or says that it is another model's.
        UsageError: see `subject_of`.
    """
    model = files.load(path)
    metadata = Metadata.from_props({entry.key: entry.value for entry in model.metadata_props}, path)
    metadata.require(path, deployment.family.name)
    subject = subject_of(deployment, metadata, images, feeds)
    bars = bars or (findings.HALF if metadata.options.get('precision') == 'fp16' else findings.Bars())
    search = Search(subject, bars)
    found = search.compare(model, fresh)
    found.subject = dict(
        kind='checkpoint',
        file=str(path),
        family=metadata.family,
        form=metadata.form,
        config=deployment.config,
        checkpoint=deployment.checkpoint,
        input=subject.title,
        inputs=findings.shapes(subject.feeds),
        **found.subject,
    )
    made = {value.name for value in model.graph.output}
    found.missing = [name for name in metadata.spec.output_names if name not in made]
    if fresh:
        graph = judge(model, metadata, subject.reference)
        found.graph = '' if graph.passed else graph.text
        found.notes += [graph.text] * bool(graph.note or graph.by_inputs)
    found.notes += _upstream_notes(deployment, metadata, subject, search, bars)
    if metadata.checkpoint_sha256 != deployment.checkpoint_sha256:
        found.notes.append('the file says that it was made from another checkpoint')
    return found


class Search:
    """PyTorch's side of a comparison, run once; several graphs can be compared with it.

    Attributes:
        subject: what runs.
        bars: what counts.
        pairing: what PyTorch recorded; that of a search with the same modules and feeds saves the run.
        named: what PyTorch's side knows by name, stage outputs among it.
    """

    def __init__(self, subject: Subject, bars: findings.Bars, pairing: Pairing | None = None) -> None:
        self.subject, self.bars = subject, bars
        self.constants, self.runner = Constants(), NodeRunner()
        self.pairing = pairing or _record(subject, bars)
        self.named = self.pairing.named()

    def compare(self, model: onnx.ModelProto, fresh: bool = True) -> findings.Comparison:
        """Compare a graph; see `first_difference`."""
        program = Program(model, self.constants)
        references, found, notes = dict(self.named), [], []
        other = self._export if fresh else 'not asked for'
        inherited: set[str] = set()
        if isinstance(other, str):
            notes.append(f'no fresh export to compare with: {other}')
        else:
            clean, clean_walk, wrong = other
            pairs = align(program, clean)
            found = changes(program, clean, pairs)
            references.update(_references_from(pairs.tensors, clean_walk, wrong))
            inherited = {name for name, mate in pairs.tensors.items() if mate in wrong}
        result = self._walk(program, references)
        module = functools.cache(functools.partial(self.pairing.module_path, program))
        entries = findings.entries_of(result, self.bars, module)
        differences = findings.differences_of(result, self.bars, findings.explain_by(found), module)
        for difference in differences:
            if difference.tensor in inherited:
                difference.evidence.append('a fresh export has it, too: it is born in the export, not later')
        notes += engine_notes(model, self.subject.feeds, result, self.bars)
        return findings.Comparison(
            dict(modules=len(self.pairing.recorder.calls), recorded=len(self.pairing.records)),
            entries,
            differences,
            findings.outputs_of(program, entries),
            [dataclasses.asdict(change) for change in found if change.kind != 'metadata'],
            notes,
            self.bars,
            guessed=isinstance(other, str),
        )

    @functools.cached_property
    def _export(self) -> tuple[Program, Walk, set[str]] | str:
        """A fresh export, walked, and its tensors that are wrong or unproven; or why there is none."""
        try:
            program = Program(self.subject.reference.export(), self.constants)
        except Mm2OnnxError as error:
            return one_line(error)
        result = self._walk(program, dict(self.named))
        wrong = {tensor for region in regions(result, self.bars.born) for tensor in region.tensors}
        return program, result, wrong

    def _walk(self, program: Program, references: dict[str, ReferenceTensor]) -> Walk:
        """Walk a graph; where an error hides what comes after it, pair by place and walk on."""
        for _ in range(MAX_PAIRED_BY_PLACE):
            result = walk(program, self.subject.feeds, references, self.runner, self.pairing.lookup)
            found = self.pairing.by_module(result)
            for region in () if found else regions(result, self.bars.born):
                found = self.pairing.by_place(result, region.tensors[: -1 if region.ends else None])
                if found:
                    break
            if not found:
                break
            references.update(found)
        return result


def _record(subject: Subject, bars: findings.Bars) -> Pairing:
    """Run the modules of a subject under observation."""
    parameters = (parameter for stage in subject.stages for parameter in stage.module.parameters())
    device = next((parameter.device for parameter in parameters), torch.device('cpu'))
    inputs = {name: torch.from_numpy(array).to(device) for name, array in subject.feeds.items()}
    recorder = record_stages(subject.stages, inputs)
    weights = {}
    for stage in subject.stages:
        state = stage.module.state_dict()
        weights.update({name: value.detach().cpu().numpy() for name, value in state.items()})
    return Pairing(recorder, weights, bars.born)


def _references_from(tensors: Mapping[str, str], clean: Walk, wrong: set[str]) -> dict[str, ReferenceTensor]:
    """Return references of a graph's tensors: those of their counterparts in a fresh export."""
    found = {}
    for name, mate in tensors.items():
        row = clean.rows.get(mate)
        if row is None:
            continue
        if row.reference is not None:
            value = clean.good.get(mate, row.reference.value)
            how = {'value': 'values'}.get(row.reference.how, row.reference.how)
            found[name] = dataclasses.replace(row.reference, value=value, how=how)
        elif mate not in wrong and isinstance(clean.good.get(mate), np.ndarray):
            found[name] = ReferenceTensor(clean.good[mate], '', '', 'export')
    return found


def _upstream_notes(
    deployment: Deployment, metadata: Metadata, subject: Subject, search: Search, bars: findings.Bars
) -> list[str]:
    """Compare the exported modules with the unpatched model: an error there is in no node of the graph."""
    family = deployment.family
    valued = [tensor.name for tensor in metadata.spec.outputs if tensor.compare == 'values']
    if family.samples != 'images' or not valued:
        return []
    chosen = {name: value for name, value in family.written(metadata.options).items() if name != 'form'}
    feeds = {**subject.beside, **subject.feeds}
    expected = family.reference_tensors(deployment.model, feeds, metadata.form, **chosen)
    outputs, notes = {name for stage in subject.stages for name in stage.outputs}, []
    for name in valued:
        if name not in expected or name not in outputs:
            continue
        error, reason = compare(search.named[name].value, expected[name])
        if error is not None and error > bars.free:
            notes.append(
                f'output {name}: the exported modules themselves leave the unpatched model '
                f'(relative error {error:.2e}{"; " + reason if reason else ""}); look there first'
            )
    return notes
