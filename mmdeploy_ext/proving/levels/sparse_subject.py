"""Level 1 of a sparse backbone's proof: what a file claims to be, and what it says beside its graph."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mmdeploy_ext.contract.metadata import PREFIX, check_entries, entries_of, read_entry
from mmdeploy_ext.contract.metadata_schema import options_of_backbone
from mmdeploy_ext.contract.precision import written_precision
from mmdeploy_ext.core.errors import ModelFileError, UsageError
from mmdeploy_ext.exporting import sparse_backbone as deploy
from mmdeploy_ext.graph import edits
from mmdeploy_ext.graph.io.checks import is_sparse
from mmdeploy_ext.graph.io.files import load
from mmdeploy_ext.graph.io.files import read as load_model
from mmdeploy_ext.graph.signature import GraphDifference, count_nodes, differences
from mmdeploy_ext.proving.levels import sparse_structure
from mmdeploy_ext.proving.levels.graph_level import differing_facts, rules_text
from mmdeploy_ext.proving.results import Check, GraphResult
from mmdeploy_ext.quantize.calibrators import weight_amax
from mmdeploy_ext.quantize.sparse_calibration import checkpoint_ranges
from mmdeploy_ext.sparse.fold import fold
from mmdeploy_ext.sparse.order import reorder
from mmdeploy_ext.sparse.portable import to_onnx
from mmdeploy_ext.sparse.ranges import Ranges

if TYPE_CHECKING:
    import onnx

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.sparse.ir import SparseGraph


def stored_fact(model: onnx.ModelProto, path: str, name: str) -> Any:
    """Return the entry of a file's metadata with a name, e.g. 'family'; ModelFileError: it is damaged."""
    props = entries_of(model.metadata_props, path)
    return read_entry(props, name, path, check=options_of_backbone if name == 'options' else None)


def file_options(model: onnx.ModelProto, path: str) -> dict[str, Any]:
    """Return the options, `cfg_options` among them, that a file was exported with; check all entries."""
    check_entries(entries_of(model.metadata_props, path), path)
    return stored_fact(model, path, 'options')


def recorded_ranges(model: onnx.ModelProto, path: str) -> Ranges | None:
    """Return the ranges that a file was exported with, None where it was exported without."""
    if not any(entry.key == f'{PREFIX}ranges' for entry in model.metadata_props):
        return None
    try:
        return Ranges.from_json(stored_fact(model, path, 'ranges'), f'{path}: {PREFIX}ranges')
    except UsageError as error:
        raise ModelFileError(str(error)) from error


def weight_ranges_check(deployment: Deployment, traced: SparseGraph, ranges: Ranges) -> Check:
    """Compute the ranges of all weights again: of folded kernels or those before, or of the checkpoint."""
    before = {node.module: node.weight for node in traced.convolutions()}
    stored, wrong = checkpoint_ranges(deployment), []
    for node in fold(traced, 'fp32').convolutions():
        right = [weight_amax(kernel) for kernel in (node.weight, before.get(node.module, node.weight))]
        right += [stored.weight_amax(node.name)] if stored else []
        found = ranges.weight_amax(node.name)
        exact = [np.asarray(one, np.float32) for one in right]
        half = [one.astype(np.float16).astype(np.float32) for one in exact]
        if not any(np.array_equal(found, one) for one in (*exact, *half)):
            most, wanted = float(found.max()), float(exact[0].max())
            wrong.append(f'{node.name}: {most:.6g}, expected {wanted:.6g} at most')
    return Check('ranges of the weights follow from the weights', not wrong, '; '.join(wrong)[:300])


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is proven.

    Attributes:
        deployment: config and checkpoint.
        path: of the file.
        model: its content.
        asked_for: options that it was exported with, resolved.
        traced: the model's graph before folding.
        expected: the graph that the file should hold, weights in float32.
        exact: the same folded in float32, whatever the file's folding.
        ranges: whether the ranges of the weights follow from the weights; None where there are none, or were
            given beside the file.
    """

    deployment: Deployment
    path: str
    model: onnx.ModelProto
    asked_for: Options
    traced: SparseGraph
    expected: SparseGraph
    exact: SparseGraph
    ranges: Check | None = None
    name: ClassVar[str] = ''

    @property
    def options(self) -> dict[str, Any]:
        """Options that the file was exported with."""
        return stored_fact(self.model, self.path, 'options')

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the checkpoint and the config that it was made of."""
        titles = 'checkpoint', 'config'
        return {title: stored_fact(self.model, self.path, f'{title}_sha256') for title in titles}

    @property
    def model_classes(self) -> list[dict[str, Any]]:
        """Classes of the model that no installed library has, as the export found them."""
        return stored_fact(self.model, self.path, 'model_classes')

    @property
    def same_order(self) -> bool:
        """Whether the file's coordinates are in the module's own order."""
        return self.asked_for.order == self.deployment.settings.order

    @property
    def precision(self) -> str:
        """What the file is judged as: 'int8', 'fp16' as all other files of the dialect, or 'fp32'.

        The engine takes its weights in float16, and computes in INT8 where ranges say so.
        """
        if self.asked_for.target == 'libspconv':
            return 'int8' if deploy.has_int8(self.asked_for) else 'fp16'
        return written_precision(self.model)


def read_with_weights(path: str) -> onnx.ModelProto:
    """Read a file, with weights beside it where it is ordinary ONNX; the engine of the dialect reads none."""
    model = load_model(path)
    return model if is_sparse(model) else load(path)


def subject_of(deployment: Deployment, path: str, ranges: Ranges | None) -> Subject:
    """Read a file and make what it has to be.

    Raises:
        ModelFileError: damaged, or of another family.
    """
    model = read_with_weights(path)
    written = file_options(model, path)
    said = stored_fact(model, path, 'family')
    if said != deployment.family.name:
        raise ModelFileError(
            f'{path}: is a model of family {said!r}; {deployment.config} is {deployment.family.name!r}'
        )
    options = deployment.family.written(written, path)
    traced, given = deploy.trace(deployment), ranges is not None
    if not given and deploy.has_precision(options):
        ranges = recorded_ranges(model, path)
    expected = deploy.make_graph(traced, options, deployment.family, ranges)
    rounded = options.fold == 'fp16' or deploy.fp16_modules(options, deployment.family)
    exact = reorder(fold(traced, 'fp32'), options.order) if rounded else expected
    derived = None if given or ranges is None else weight_ranges_check(deployment, traced, ranges)
    return Subject(deployment, path, model, options, traced, expected, exact, derived)


def compare_graph(subject: Subject) -> GraphResult:
    """Compare the graph of a file with what its model gives."""
    done, rules = stored_fact(subject.model, subject.path, 'edits'), ''
    if subject.asked_for.target == 'libspconv':
        same = sparse_structure.dialect_differences(subject.path, subject.model, subject.expected)
        reason = 'a command of graph.py, none of which changes files of this dialect; export it again'
        same += [GraphDifference('metadata', f'edits: {edit["command"]}', '', reason) for edit in done]
    else:
        fresh = edits.repeat(to_onnx(subject.expected, form=subject.asked_for.form), done)
        same = differences(subject.model, fresh) or differing_facts(subject.model, fresh)
        rules = '' if same else rules_text(done)
    return GraphResult('', count_nodes(subject.model), not same, tuple(same), by_inputs=rules)


def says_check(subject: Subject) -> Check:
    """Check that the metadata of a file agree with config and options; runtimes rely on them for voxels."""
    facts = deploy.metadata_props(subject.deployment, subject.asked_for)
    told = {name: stored_fact(subject.model, subject.path, name) for name in ('form', 'voxels')}
    here = {name: json.loads(facts[PREFIX + name]) for name in told}
    wrong = [f'{name}: the file says {said}' for name, said in told.items() if said != here[name]]
    if subject.asked_for.int8_fp16_io and subject.asked_for.precision != 'int8':
        wrong.append('options: int8_fp16_io goes with precision int8')
    return Check('form and voxels as in the config', not wrong, '; '.join(wrong)[:300])
