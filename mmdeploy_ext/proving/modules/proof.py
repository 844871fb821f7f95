"""`prove_module`: is an ONNX file the same function as a PyTorch module?"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mmdeploy_ext.contract.spec import DEFAULT_RTOL, GraphSpec
from mmdeploy_ext.core.arrays import to_array
from mmdeploy_ext.core.cli import tracked
from mmdeploy_ext.core.errors import Mm2OnnxError, UsageError
from mmdeploy_ext.core.files import sha256_file
from mmdeploy_ext.core.printable import one_line, shape_text
from mmdeploy_ext.core.versions import versions
from mmdeploy_ext.exporting.code_warnings import CodeWarning, recorded_warnings
from mmdeploy_ext.graph.diff.align import align
from mmdeploy_ext.graph.diff.program import Alignment, Constants, Program
from mmdeploy_ext.graph.diff.structure import Change, changes
from mmdeploy_ext.graph.io.files import load
from mmdeploy_ext.graph.io.operators import opsets_of
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.graph.signature import count_nodes, differences
from mmdeploy_ext.proving.levels.structure import check_not_random, check_valid, unreached_inputs
from mmdeploy_ext.proving.modules.calls import (
    FileTensor,
    FlatModule,
    ModuleCall,
    as_fed,
    forward_of,
    module_title,
    pair_names,
    read_call,
)
from mmdeploy_ext.proving.modules.generated import (
    STEP,
    calls_with_another,
    dynamic_axes,
    other_sizes,
    other_values,
    resized,
)
from mmdeploy_ext.proving.modules.location import locate
from mmdeploy_ext.proving.modules.row_order import in_order_of
from mmdeploy_ext.proving.modules.verdict import ModuleVerdict
from mmdeploy_ext.proving.results import Case, Check
from mmdeploy_ext.proving.tensors import (
    ArrayDistance,
    compare_named,
    compare_tensors,
    failed_row,
    same_bits,
)
from mmdeploy_ext.proving.untraced import export_switches, warning_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx

    from mmdeploy_ext.proving.tensors import TensorRow

SAME_NODES = ('attribute', 'initializer')
"""Kinds of changes after which a graph still has the same nodes, joined in the same way."""
CHANGED = (*SAME_NODES, 'wiring', 'node', 'input', 'output', 'opset', 'function', 'domain')
"""Kinds of changes that can change what a graph computes."""
COMMUTATIVE = ('Add', 'Mul', 'Max', 'Min', 'Sum', 'Mean', 'And', 'Or', 'Xor', 'Equal')
"""Operators that compute the same with their operands in another order."""
ROUNDING = 1e-5
"""Largest relative difference of constants that counts as rounding, as in exports of another machine."""
ACROSS_SAMPLES = 0.1
"""Part of the tolerance that holds for the largest value of an output on any sample.

An engine's error does not shrink with the values of an output: ONNX Runtime's Sigmoid differs from PyTorch's
by up to 1.8e-7 between -30 and 30, by 1.3e-7 also where its value is below 1e-5. So scores of YuNet, of which
the largest is 0.997 on photographs, differ by 1e-7 on a black picture, too, on which the largest is 1.2e-5.
Generated inputs do not count: where extremes of all values meet an output may be larger by any factor.
"""
Arrays = dict[str, np.ndarray]
"""Name of an input or output of the file -> array."""


def prove_module(
    module: Callable[..., Any],
    path: str | Path,
    inputs: Iterable[Any],
    spec: GraphSpec | None = None,
    *,
    rtol: float = DEFAULT_RTOL,
    state: Mapping[str, str] | None = None,
    rows: Sequence[str] = (),
    generate: bool = True,
    fresh: bool = True,
    seed: int = 0,
) -> ModuleVerdict:
    """Prove that an ONNX file computes what a PyTorch module computes.

    Both run on every sample, and on generated inputs: other sizes of the file's dynamic axes, zeros, the
    extremes and random numbers within the range of the samples, and each input alone replaced by another.
    For each comparison both sides run twice: the module has to repeat its results, and both runs of the file
    have to equal them. The file needs no metadata; it runs on the CPU in ONNX Runtime.

    Args:
        module: an `nn.Module` in evaluation mode, or any function of tensors, on the CPU. Results may be
            nested.
        path: path of the ONNX file.
        inputs: samples: a tensor, a tuple of arguments, or a dict of arguments by name, on the CPU. Those of
            a model with a state are the frames of one sequence, in order; the first has the initial state;
            what the others have in its place is replaced. A single frame does not show the state.
        spec: names all outputs of the file and their tolerances, all of them compared by their values; None:
            every output has the tolerance `rtol`.
        rtol: allowed difference of floats, 0 or more and below 1, relative to the largest absolute value of
            an output in the reference on this input; or a tenth of it relative to its largest value on any
            sample, if that is more. Whole numbers and booleans have to be equal. With a `spec` it decides
            only whether the module repeats its results, and which `rows` are the same.
        state: input of the file -> output of the file that is its value in the next frame; None: no state.
        rows: outputs whose rows (first axis) belong together and may come in any order, such as boxes, scores
            and labels.
        generate: whether to compare on generated inputs as well.
        fresh: whether to export the module again, and compare its graph with that of the file, if PyTorch
            wrote it.
        seed: seed of the generated inputs, 0 or more.

    Returns:
        The verdict: `proven`, `title` ('PROVEN', 'PROVEN ON N INPUTS', 'NOT PROVEN') and `to_json()`.

    Raises:
        UsageError: samples or names that do not fit the module or the file; a tolerance or seed out of range;
            a module in training mode, or one that raises or returns no tensor, or not all of the state, on a
            sample.
        ModelFileError: the file is missing, damaged, or nothing that ONNX Runtime loads.
    """
    proof = ModuleProof(module, str(path), list(inputs), spec, rtol, dict(state or {}), tuple(rows), seed)
    proof.check_structure()
    proof.compare_graph(fresh)
    proof.compare_samples()
    if generate:
        proof.compare_generated()
    else:
        proof.verdict.not_compared.append('generated inputs: not asked for')
    return proof.conclude()


@dataclasses.dataclass(frozen=True)
class CallComparison:
    """Module and file on one call.

    Attributes:
        call: the arguments of the module.
        feeds: the inputs of the file.
        reference: output of the file -> the result of the module for it; results that are paired with no
            output are left out.
        runs: the outputs of the file, of its second run, too, if their bits differ; () if it could not run.
        rows: the comparison of the outputs of all runs; one failing row if it could not run.
    """

    call: ModuleCall
    feeds: Arrays
    reference: Arrays
    runs: tuple[Arrays, ...]
    rows: list[TensorRow]

    @property
    def outputs(self) -> Arrays:
        """The outputs of the first run; {} if there is none."""
        return self.runs[0] if self.runs else {}

    @property
    def passed(self) -> bool:
        """Whether all outputs are equal within the tolerances, also if there is none to compare."""
        return all(row.passed for row in self.rows)


class ModuleProof:
    """One proof of a module and a file; `prove_module` calls its methods.

    Attributes:
        file_outputs: names of the outputs of the file.
        file_inputs: input of the file without a default -> what the file states of it.
        model, runner: the ONNX model, and what runs it.
        calls: the calls that the samples stand for, in their order.
        verdict: the results so far.
        inputs: input of the file -> name of the module's tensor.
        outputs: output of the file -> name of the module's result.
        compared: outputs that had values on at least one input so far on which the file ran; those that are
            empty in the same way on both sides have none.
        first: `CallComparison.reference` of the first call on which the file ran; {} before it.
        results_differ: whether the module gave other results than `first` for a later call on which the file
            ran.
        failing: position among the cases -> comparison, of those with a failing row; `judge` removes those
            that `smallest_tolerances` let pass.
        scales: output of floats -> its largest absolute finite value in the results of the module on any
            sample so far.
    """

    def __init__(
        self,
        module: Callable[..., Any],
        path: str,
        samples: Sequence[Any],
        spec: GraphSpec | None,
        rtol: float,
        state: Mapping[str, str],
        rows: Sequence[str],
        seed: int,
    ) -> None:
        """Open the file and pair its tensors with those of the module, see `pair_names`.

        Arguments and errors are those of `prove_module`; `samples` are its `inputs`.
        """
        self.module, self.path, self.spec, self.rtol, self.seed = module, path, spec, rtol, seed
        self.state, self.rows = state, rows
        if not 0 <= rtol < 1:
            raise UsageError(f'tolerance {rtol:g}: expected 0 or more and below 1, such as {DEFAULT_RTOL:g}')
        if seed < 0:
            raise UsageError(f'seed {seed}: expected 0 or more')
        for tensor in spec.outputs if spec else ():
            if tensor.compare != 'values':
                raise UsageError(f"spec: {tensor.name!r} has compare={tensor.compare!r}, expected 'values'")
        _check_evaluating(module)
        self.model = load(path)
        self.runner = Runner(self.model, optimization='all')
        defaults = {tensor.name for tensor in self.model.graph.initializer}
        self.file_inputs = {
            value.name: FileTensor.of(value, path)
            for value in self.model.graph.input
            if value.name not in defaults
        }
        self.file_outputs = [FileTensor.of(value, path).name for value in self.model.graph.output]
        if not samples:
            raise UsageError(f'{path}: no sample to compare on; give at least one')
        self.calls = [
            read_call(module, sample, f'sample {index}', list(self.file_inputs))
            for index, sample in enumerate(samples)
        ]
        first = self.calls[0]
        for call in self.calls[1:]:
            dtypes, expected = ({n: t.dtype for n, t in side.tensors.items()} for side in (call, first))
            if dtypes != expected:
                raise UsageError(
                    f'{call.title}: holds {dtypes}; expected the tensors of sample 0: {expected}'
                )
        results = self._reference(first)
        self.inputs = pair_names(
            list(self.file_inputs),
            list(self.calls[0].tensors),
            f'the inputs of {path}',
            f'the arguments of {module_title(module)}',
        )
        self.outputs = pair_names(
            self.file_outputs,
            list(results),
            f'the outputs of {path}',
            f'the results of {module_title(module)}',
        )
        self._check_names()
        self.compared: set[str] = set()
        self.first: Arrays = {}
        self.results_differ = False
        self.failing: dict[int, CallComparison] = {}
        self.scales: dict[str, float] = {}
        self.verdict = ModuleVerdict(self._subject())
        self.verdict.not_compared += [
            f'result {name} of the module: is no output of the file'
            for name in results
            if name not in self.outputs.values()
        ]

    def _subject(self) -> dict[str, Any]:
        try:
            source = inspect.getsourcefile(inspect.unwrap(forward_of(self.module)))
        except TypeError:  # a built-in function
            source = None
        return dict(
            file=self.path,
            file_sha256=sha256_file(self.path),
            module=module_title(self.module),
            source=source or '',
            source_sha256=sha256_file(source) if source and os.path.isfile(source) else '',  # a notebook
            inputs=self.inputs,
            outputs=self.outputs,
            samples=len(self.calls),
            rtol=self.rtol,
            opset=opsets_of(self.model).get('', 0),
            producer=f'{self.model.producer_name} {self.model.producer_version}'.strip(),
            proven_with=versions(),
            python=platform.python_version(),
        )

    def _check_names(self) -> None:
        """Refuse names of outputs and of a state that the file does not have."""
        for name in (*self.rows, *self.state.values()):
            if name not in self.outputs:
                raise UsageError(
                    f'{name!r}: {self.path} has no such output; it has {", ".join(self.outputs)}'
                )
        for name in self.state:
            if name not in self.inputs:
                raise UsageError(f'{name!r}: {self.path} has no such input; it has {", ".join(self.inputs)}')

    def check_structure(self) -> None:
        """Check the file without running it, and inputs and arguments that it ignores or does not have."""
        model, verdict = self.model, self.verdict
        verdict.structure = [check_valid(model), check_not_random(model)]
        outputs = [value.name for value in model.graph.output]
        for name in unreached_inputs(model, self.inputs, outputs):
            verdict.structure.append(self._unused(self.inputs[name], f'input {name} reaches an output'))
        for name in [name for name in self.calls[0].tensors if name not in self.inputs.values()]:
            verdict.structure.append(self._unused(name, f'argument {name} is an input of the file'))

    def _unused(self, name: str, title: str) -> Check:
        """Check that an argument that the file ignores does not change the results of the module, either."""
        results, varied = self.calls[0].run(self.module), False
        for call in calls_with_another(name, self.calls, self.seed):
            with contextlib.suppress(Exception):
                if not same_bits(call.run(self.module), results):
                    return Check(title, False, f'frozen: the results of the module depend on {name}')
                varied = True
        if not varied:
            return Check(title, False, f'the module takes no other {name}: nothing shows that it is unused')
        self.verdict.notes.append(f'argument {name}: neither the module nor the file uses it')
        return Check(title, True)

    def compare_graph(self, fresh: bool) -> None:
        """Compare the graph of the file with a fresh export of the module, by the exporter that made it.

        If `fresh` is False, PyTorch did not write the file or the export fails, the verdict only says that
        the graph was not compared. Another graph is no failure by itself, see `_compare_nodes`.
        """
        verdict = self.verdict
        if not fresh or self.model.producer_name != 'pytorch':
            made_by = self.model.producer_name or 'an unknown program'
            reason = f'the file was written by {made_by}' if fresh else 'not asked for'
            verdict.not_compared.append(f'the graph with a fresh export: {reason}')
            return
        warnings: list[CodeWarning] = []
        try:
            with recorded_warnings(warnings):
                model = self._export()
        except Mm2OnnxError as error:
            verdict.not_compared.append(f'the graph with a fresh export: {one_line(error)[:300]}')
            return
        verdict.untraced += warning_lines(warnings)
        if isinstance(self.module, torch.nn.Module):
            verdict.untraced += export_switches(self.module)
        if not differences(self.model, model):
            verdict.graph = f'equal to a fresh export ({count_nodes(self.model):,} nodes)'
            verdict.graph_equal = True
            return
        verdict.graph, wrong = _compare_nodes(self.model, model)
        verdict.reasons += wrong

    def _is_by_dynamo(self) -> bool:
        """Return whether PyTorch's dynamo exporter wrote the file."""
        nodes = self.model.graph.node[:1]
        return any(entry.key.startswith('pkg.torch') for node in nodes for entry in node.metadata_props)

    def _export(self) -> onnx.ModelProto:
        from mmdeploy_ext.exporting.export import export_module

        call, is_dynamo = self.calls[0], self._is_by_dynamo()
        dynamic: dict[str, dict[int, str]] = {}
        values = (*self.model.graph.input, *self.model.graph.output)
        for tensor in (FileTensor.of(value, self.path) for value in values):
            axes = {
                axis: size for axis, size in enumerate(tensor.axes or ()) if isinstance(size, str) and size
            }
            if axes and (not is_dynamo or tensor.name in self.inputs):
                dynamic[tensor.name] = axes
        return export_module(
            FlatModule(self.module, call, self.inputs, self.outputs).eval(),
            [call.tensors[name].clone() for name in self.inputs.values()],
            exporter='dynamo' if is_dynamo else 'torchscript',
            opset=opsets_of(self.model).get('', 0),
            input_names=list(self.inputs),
            output_names=list(self.outputs),
            dynamic=dynamic,
        )

    def compare_samples(self) -> None:
        """Compare on the samples: one by one, or as the frames of a sequence.

        UsageError: the module raises, or returns no tensor or not all of the state, for one of them, or an
        input has another kind of dtype than the file takes.
        """
        if self.state:
            self._run_sequence()
            return
        for call in tracked(self.calls, len(self.calls), 'samples'):
            self._add_sample(self._compare(call))

    def compare_generated(self) -> None:
        """Compare on generated inputs.

        One for which the module raises, or gives no tensor, NaN or infinity, is only noted. Inputs of a state
        are generated like others.
        """
        calls = [*self._resized(), *other_values(self.calls, list(self.inputs.values()), self.seed)]
        for call in tracked(calls, len(calls), 'generated inputs'):
            refusal = self._refusal(call)
            if refusal:
                self.verdict.not_compared.append(f'{call.title}: the module gives {refusal}')
            else:
                self.add(self._compare(call))
        if not any(
            isinstance(size, str) for tensor in self.file_inputs.values() for size in tensor.axes or ()
        ):
            self.verdict.notes.append(
                'the file has no dynamic axis: it is proven at the sizes of the samples'
            )

    def _dynamic_axes(self) -> tuple[dict[str, list[tuple[str, int]]], dict[str, int]]:
        tensors = {self.file_inputs[name]: module_name for name, module_name in self.inputs.items()}
        return dynamic_axes(tensors, self.calls[0])

    def _resized_everywhere(self) -> ModuleCall | None:
        """Return the first sample with another size of every dynamic axis of which the module takes one.

        None if there is no such axis.
        """
        call = first = self.calls[0]
        places, sizes = self._dynamic_axes()
        for letter, axes in places.items():
            larger = [resized(call, 'other sizes', axes, sizes[letter] + step) for step in (1, STEP)]
            call = next((resized_call for resized_call in larger if not self._refusal(resized_call)), call)
        return None if call is first else call

    def _resized(self) -> Iterator[ModuleCall]:
        """Yield the first sample at other sizes of each dynamic axis."""
        first = self.calls[0]
        places, sizes = self._dynamic_axes()
        for letter, axes in places.items():
            next_size = sizes[letter] + 1
            for size in other_sizes(sizes[letter], axes[0][1]):
                call = resized(first, f'{letter} = {size}', axes, size)
                if size == next_size and self._refusal(call):
                    step_size = sizes[letter] + STEP
                    call = resized(first, f'{letter} = {step_size}', axes, step_size)
                yield call

    def _refusal(self, call: ModuleCall) -> str:
        """Return why the module has no results for a generated input that could be compared, or ''."""
        try:
            results = call.run(self.module)
        except Exception as error:
            return f'{type(error).__name__}: {one_line(error)[:200]}'
        if not results:
            return 'no tensor'
        odd = [
            name
            for name, array in results.items()
            if array.dtype.kind == 'f' and not np.isfinite(array).all()
        ]
        return f'NaN or infinity in {", ".join(odd)}' if odd else ''

    def _run_sequence(self) -> None:
        """Run the samples as frames three times.

        First the file gets the module's state before each frame, then each side keeps its own, and then once
        more from the beginning.
        """
        if len(self.calls) == 1:
            reason = 'a single sample has no next frame; give two or more'
            self.verdict.not_compared.append(f'the state: {reason}')
        runs = (('teacher-forced', True), ('free-running', False), ('free-running after a reset', False))
        for mode, is_forced in runs:
            memory: Arrays = {}
            own_memory: Arrays = {}
            for index, sample in enumerate(tracked(self.calls, len(self.calls), mode)):
                remembered = {
                    self.inputs[name]: torch.from_numpy(array.copy()) for name, array in memory.items()
                }
                call = sample.replace(f'frame {index}, {mode}', remembered)
                comparison = self._compare(call, {} if is_forced else own_memory)
                self._add_sample(comparison)
                reference, outputs = comparison.reference, comparison.outputs
                for name, output in self.state.items():
                    if output not in reference:
                        raise UsageError(
                            f'{call.title}: {module_title(self.module)} returns no {self.outputs[output]}, '
                            f'which is the {name} of the next frame'
                        )
                memory = {name: reference[output] for name, output in self.state.items()}
                own_memory = {
                    name: outputs[output] for name, output in self.state.items() if output in outputs
                }

    def _reference(self, call: ModuleCall) -> Arrays:
        """Return the results of the module for a call; UsageError if it raises, or returns no tensor."""
        try:
            results = call.run(self.module)
        except UsageError as error:
            raise UsageError(f'{call.title}: {error}') from error
        except Exception as error:
            reason = f'{type(error).__name__}: {one_line(error)[:300]}'
            raise UsageError(f'{call.title}: {module_title(self.module)} raises {reason}') from error
        if not results:
            raise UsageError(f'{call.title}: {module_title(self.module)} returns no tensor')
        return results

    def _compare(self, call: ModuleCall, state: Arrays | None = None) -> CallComparison:
        """Compare both sides on one call, each run twice; `state` replaces inputs of the file only."""
        results, again = self._reference(call), self._reference(call)
        if not same_bits(results, again) and not all(
            row.passed for row in compare_named(results, again, self.rtol)
        ):
            self.verdict.reasons.append(
                f'{call.title}: the module gives other results for equal inputs: it draws random numbers'
            )
        reference = {name: results[result] for name, result in self.outputs.items() if result in results}
        arrays = {name: to_array(call.tensors[result]) for name, result in self.inputs.items()}
        feeds = {name: as_fed(array, self.file_inputs[name], call.title) for name, array in arrays.items()}
        feeds |= state or {}
        try:
            outputs = self.runner.run(feeds)
            repeated = self.runner.run(feeds)
        except Mm2OnnxError as error:
            row = failed_row('all outputs', one_line(error)[:300])
            return CallComparison(call, feeds, reference, (), [row])
        runs = (outputs,) if same_bits(outputs, repeated) else (outputs, repeated)
        rows = [row for run in runs for row in self._rows(reference, run)]
        return CallComparison(call, feeds, reference, runs, rows)

    def _add_sample(self, comparison: CallComparison) -> None:
        """Add the comparison of a sample, and the largest values of its results."""
        for name, array in comparison.reference.items():
            if array.dtype.kind in 'fc':
                scale = ArrayDistance(array, array).scale
                self.scales[name] = max(self.scales.get(name, 0.0), scale)
        self.add(comparison)

    def add(self, comparison: CallComparison) -> None:
        """Add a comparison to the verdict, and what `conclude` has to know of it."""
        reference, outputs = comparison.reference, comparison.outputs
        shapes = ', '.join(shape_text(array.shape) for array in comparison.feeds.values())
        self.verdict.cases.append(Case(comparison.call.title, shapes, False, tuple(comparison.rows)))
        if not comparison.passed:
            self.failing[len(self.verdict.cases) - 1] = comparison
        if not outputs:
            return
        self.compared |= reference.keys() - _empty_outputs(reference, outputs)
        self.results_differ |= bool(self.first) and not same_bits(self.first, reference)
        self.first = self.first or reference

    @property
    def smallest_tolerances(self) -> dict[str, float]:
        """Output of floats -> difference that is allowed at least, on every input, if there is no `spec`.

        The samples so far count: {} before the first. The values of an input may allow more. See
        `ACROSS_SAMPLES`.
        """
        return {name: ACROSS_SAMPLES * self.rtol * scale for name, scale in self.scales.items()}

    def _rows(
        self, reference: Arrays, outputs: Arrays, smallest: Mapping[str, float] | None = None
    ) -> list[TensorRow]:
        """Compare the outputs of one run, but for those that are empty on both sides, which are equal.

        `smallest` is the difference that is allowed however small the values of an output are.
        """
        if self.rows:
            outputs = in_order_of(reference, outputs, self.rows, self.rtol, smallest)
        empty = _empty_outputs(reference, outputs)
        sides = (
            {name: array for name, array in side.items() if name not in empty}
            for side in (reference, outputs)
        )
        if self.spec is None:
            return compare_named(*sides, self.rtol, self.path, smallest)
        return [row for row in compare_tensors(*sides, self.spec) if row.tensor not in empty]

    def judge(self) -> ModuleVerdict:
        """Judge all cases together, and return the verdict without the place of a difference.

        To be called once, after all comparisons: it adds reasons to the verdict.
        """
        verdict = self.verdict
        if self.spec is None:
            self._judge_by_scales_of_samples()
        if unseen := [name for name in self.outputs if name not in self.compared]:
            verdict.reasons.append(f'{", ".join(unseen)}: empty on every input, nothing of it was compared')
        if len(verdict.cases) > 1 and not self.results_differ:
            verdict.reasons.append(
                'the module gives the same results for all inputs: nothing shows that inputs are used; '
                'give samples that differ'
            )
        return verdict

    def conclude(self) -> ModuleVerdict:
        """Judge all cases together, locate the difference in the first that fails, and return the verdict."""
        verdict = self.judge()
        for failing in list(self.failing.values())[:1]:
            flat = FlatModule(self.module, failing.call, self.inputs, self.outputs).eval()
            try:
                verdict.location = locate(flat, self.model, failing.feeds)
            except Exception as error:
                verdict.notes.append(f'the first difference could not be located: {one_line(error)[:200]}')
        return verdict

    def _judge_by_scales_of_samples(self) -> None:
        """Judge the cases that fail once more, now that the largest value of each output is clear.

        The relative error of what is held to that value is relative to it, too.
        """
        smallest = self.smallest_tolerances
        for position, comparison in list(self.failing.items()):
            if not comparison.runs:
                continue
            rows = []
            for row in (
                row for run in comparison.runs for row in self._rows(comparison.reference, run, smallest)
            ):
                scale = self.scales.get(row.tensor)  # 0 of an output that is always 0
                if scale and row.passed and row.tolerance == smallest[row.tensor]:
                    row = dataclasses.replace(row, max_rel=row.max_abs / scale)
                rows.append(row)
            case = dataclasses.replace(self.verdict.cases[position], tensors=tuple(rows))
            self.verdict.cases[position] = case
            if case.passed:
                del self.failing[position]


def _empty_outputs(reference: Arrays, outputs: Arrays) -> set[str]:
    """Return the names of outputs that are empty on both sides, in the same shape and dtype."""
    return {
        name
        for name, array in reference.items()
        if array.size == 0
        and name in outputs
        and outputs[name].shape == array.shape
        and outputs[name].dtype == array.dtype
    }


def _swapped_operands(
    program: Program, expected: Program, pairs: Alignment, differences: Sequence[Change]
) -> set[int]:
    """Return the positions of nodes that read the tensors of their counterpart in another order.

    Nodes whose operator does not depend on the order are not among them.
    """
    swapped = set()
    for position in {change.left for change in differences if change.kind == 'wiring'} & pairs.nodes.keys():
        node, mate = program.index.nodes[position], expected.index.nodes[pairs.nodes[position]]
        sides = []
        for graph, names in ((program, node.input), (expected, mate.input)):
            constants = graph.constants  # equal ones are one object
            sides.append([id(constants[name]) if name in constants else name for name in names])
        mapped = {**pairs.tensors, '': ''}
        operands = [entry if isinstance(entry, int) else mapped.get(entry) for entry in sides[0]]
        is_permuted = operands != sides[1] and sorted(map(str, operands)) == sorted(map(str, sides[1]))
        if is_permuted and node.op_type not in COMMUTATIVE:
            swapped.add(position)
    return swapped


def _is_same_reshape(program: Program, expected: Program, pairs: Alignment, position: int) -> bool:
    """Return whether a node is a Reshape that gives the result of its counterpart wherever both run.

    Reshape keeps the number of elements: if both target shapes are the same but for one size, which the file
    infers (-1), that is the size of the counterpart. torch.export writes one or the other for a dynamic axis.
    """
    node, mate = program.index.nodes[position], expected.index.nodes[pairs.nodes[position]]
    if not node.op_type == mate.op_type == 'Reshape':
        return False
    target, reference = program.constants.get(node.input[1]), expected.constants.get(mate.input[1])
    if target is None or reference is None or target.shape != reference.shape or 0 in target:
        return False
    return list(target[target != reference]) in ([], [-1])


def _check_evaluating(module: Callable[..., Any]) -> None:
    """Refuse a module of which a part is in training mode: dropout and batch statistics are random there."""
    if not callable(module):
        raise UsageError(
            f'{type(module).__name__} is no module: expected an nn.Module or a function of tensors'
        )
    if isinstance(module, torch.nn.Module):
        training = [name or 'the module' for name, part in module.named_modules() if part.training]
        if training:
            raise UsageError(
                f'{module_title(module)}: {training[0]} is in training mode; return module.eval()'
            )


def _compare_nodes(model: onnx.ModelProto, fresh: onnx.ModelProto) -> tuple[str, list[str]]:
    """Compare a graph with a fresh export from which it differs.

    If both have the same nodes, connected in the same way, they come from the same exporter and options. Then
    an attribute or constant that differs by more than rounding is an error, even if no input shows it, and so
    are operands in another order.

    Returns:
        The sentence of the verdict about the graph, and reasons why it is wrong.
    """
    constants = Constants()
    program, expected = Program(model, constants), Program(fresh, constants)
    pairs = align(program, expected)
    relevant = [change for change in changes(program, expected, pairs) if change.kind in CHANGED]
    if not relevant:  # what differs is inside of a body or function, or the order of inputs or outputs
        return (
            f'another one than a fresh export ({differences(model, fresh)[0].text}): inputs alone decide',
            [],
        )
    swapped = _swapped_operands(program, expected, pairs, relevant)
    if any(change.kind not in SAME_NODES and change.left not in swapped for change in relevant):
        count = len({change.where for change in relevant})
        places = 'place differs' if count == 1 else 'places differ'
        return f'{count} {places} from a fresh export with default options: inputs alone decide', []
    wrong = [
        f'{change.where}: {change.detail}'
        for change in relevant
        if (change.size is None or change.size > ROUNDING)
        and not _is_same_reshape(program, expected, pairs, change.left)
    ]
    if not wrong:
        return 'equal to a fresh export up to rounding and to sizes that Reshape infers: inputs decide', []
    return f'the nodes of a fresh export, of which {len(wrong)} compute something else', wrong
