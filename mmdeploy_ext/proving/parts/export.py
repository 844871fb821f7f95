"""Export of parts: record, refuse, export, write a folder."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.base.config import config_sha256, load_config
from mmdeploy_ext.base.errors import ConfigError, ExportError, Mm2OnnxError, OpsetError, UsageError, one_line
from mmdeploy_ext.base.files import atomic_path, check_writable, sha256_file
from mmdeploy_ext.base.source_code import model_classes, versions
from mmdeploy_ext.exporting.copy import copied, prepare
from mmdeploy_ext.exporting.export import default_opset, export_module, save
from mmdeploy_ext.exporting.torch_patches import constant_linspace
from mmdeploy_ext.families.base import DETECTOR, claiming_family
from mmdeploy_ext.graphs.io.index import opsets_of
from mmdeploy_ext.graphs.passes.precision import half
from mmdeploy_ext.graphs.passes.simplify import simplify
from mmdeploy_ext.graphs.run import Runner
from mmdeploy_ext.proving.explain import rounding_of
from mmdeploy_ext.proving.parts import arrays
from mmdeploy_ext.proving.parts.folder import MANIFEST, RESULTS, CutFolder, part_json
from mmdeploy_ext.proving.parts.graph import PartForm, PartModule, checked_form, modules_among, run_part
from mmdeploy_ext.proving.parts.part import parse_parts
from mmdeploy_ext.proving.parts.record import PartCall, Recording, record
from mmdeploy_ext.proving.parts.results import filled, kept_results
from mmdeploy_ext.proving.parts.samples import run_test_path
from mmdeploy_ext.spec.comparison import compare_named
from mmdeploy_ext.spec.options import OPSETS
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL
from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.models.building import build_without_weights, registered_class
from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint, load_strict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


# The model of any mmcv config, without a family.


@dataclasses.dataclass
class ModelFactory:
    """A config and its weights; `make` returns fresh models.

    Attributes:
        config: path of the config.
        checkpoint: path of the weights.
        cfg: mmcv's config.
        cfg_options: overrides of the config.
    """

    config: str
    checkpoint: str
    cfg: Any
    cfg_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    _can_be_copied: bool = True

    @functools.cached_property
    def pristine(self) -> torch.nn.Module:
        """The model to copy; it never runs."""
        return self._build()

    def make(self) -> torch.nn.Module:
        """Return a fresh model with its weights, in evaluation mode.

        Copied, or rebuilt if it cannot be copied: queues, locks.
        """
        if self._can_be_copied:
            pristine = self.pristine
            try:
                return copied(pristine)
            except Exception:
                self._can_be_copied = False
        return self._build()

    def make_prepared(self) -> torch.nn.Module:
        """Return a model in forms for the exporters."""
        return prepare(self.make())

    def build(self) -> torch.nn.Module:
        """Return the model without its weights, in evaluation mode."""
        model = build_without_weights(copy.deepcopy(self.cfg), _builder(self.cfg))
        model.eval()
        return model

    def _build(self) -> torch.nn.Module:
        model, family = self.build(), claiming_family(self.cfg, DETECTOR)
        model.requires_grad_(False)  # the tracer refuses argument weights with gradients
        checkpoint = load_checkpoint(self.checkpoint).renamed(model, self.cfg.model.get('type', ''))
        if family is None or self.cfg.get('fork'):
            load_strict(model, checkpoint)
        else:  # sparse kernels of any layout
            family.load_weights(model, checkpoint)
        return model

    def facts(self) -> dict[str, Any]:
        """Return the hashes of config, checkpoint and the user's classes for proofs."""
        return dict(
            config=Path(self.config).name,
            config_sha256=config_sha256(self.cfg),
            checkpoint_sha256=sha256_file(self.checkpoint),
            classes=[entry.to_json() for entry in model_classes(self.pristine)],
        )


def read_model(config: str, checkpoint: str, cfg_options: Mapping[str, Any] | None = None) -> ModelFactory:
    """Read a config and its imports; ConfigError: unreadable, or no model."""
    compat.apply()
    cfg = load_config(str(config), dict(cfg_options or {}))
    if not cfg.get('model'):
        raise ConfigError(f'{config}: has no `model`; expected a detector config')
    import mmdeploy_ext.families.common.upstream_layers  # noqa: F401, it adds to PREPARATIONS

    return ModelFactory(str(config), str(checkpoint), cfg, dict(cfg_options or {}))


def _builder(cfg: Any) -> Any:
    from mmdet.models import build_detector
    from mmdet.models.builder import DETECTORS

    if registered_class(DETECTORS, cfg.model.type) is not None and 'mmdet3d.models' not in sys.modules:
        return build_detector
    try:
        from mmdet3d.models import build_model
    except ImportError:
        return build_detector
    return build_model


PREFIX = 'mm2onnx.'
"""Prefix of `metadata_props` entries about a part."""
DEFAULTS = dict(opset=0, exporter='torchscript', precision='fp32', simplify=False, seeded=False)
"""Options of an export of parts.

Opset 0 is the part's lowest, at least 17; `seeded` makes random numbers constants.
"""
OTHER = 0.05
"""Relative change of numbers for a second run."""
INSIDE = 'it is not written. Export parts inside it'


class RigError(ExportError):
    """A graph is correct only for the traced arrays of metas.

    Attributes:
        keys: of the metas.
    """

    def __init__(self, message: str, keys: Sequence[str]) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


@dataclasses.dataclass(frozen=True)
class RecordedPart:
    """A part with its calls, checked, ready for export."""

    form: PartForm
    calls: list[PartCall]
    paths: dict[str, str]

    def export(
        self,
        model: torch.nn.Module,
        options: Mapping[str, Any],
        names: Mapping[str, str],
        make: Callable[[], torch.nn.Module] | None = None,
    ) -> onnx.ModelProto:
        """Return the graph of a part.

        Args:
            model: a model prepared for exports, see `ModelFactory.make_prepared`.
            options: see `DEFAULTS`; `opset` is decided.
            names: path of a tensor -> its name in the file.
            make: makes a fresh model, to run the graph on other arguments.

        Raises:
            ExportError: the exporter failed, or outputs differ from PyTorch's.
            RigError: they differ only for other arrays of metas.
        """
        form, call = self.form, self.calls[0]
        module = PartModule(model, form, call, self.paths).eval()
        with constant_linspace():
            graph = export_module(
                module,
                list(form.inputs_of(call).values()),
                exporter=options['exporter'],
                opset=options['opset'],
                input_names=[names.get(name, name) for name in form.inputs],
                output_names=[names.get(name, name) for name in form.outputs],
                dynamic={names.get(name, name): axes for name, axes in form.dynamic.items()},
            )
        if make is not None:
            self._run_again(graph, names, make)
        if options['simplify']:
            graph = simplify(graph)
        if options['precision'] == 'fp16':
            graph, _ = half(graph, 'fp32', ())
        return graph

    def _run_again(
        self, graph: onnx.ModelProto, names: Mapping[str, str], make: Callable[[], torch.nn.Module]
    ) -> None:
        """Compare a graph with PyTorch on the last call, then with other numbers in the arrays of metas.

        A single call also gets other numbers.
        """
        try:
            runner = Runner(graph, optimization='all')
        except Mm2OnnxError as error:
            raise ExportError(f'{one_line(error)[:300]}; {INSIDE}') from error
        call, inputs = self.calls[-1], self.form.inputs_of(self.calls[-1])
        title = f'on the arguments of {call.title}'
        self._compare(runner, call, {}, names, make, title)
        if len(self.calls) == 1:
            floats = {name: tensor for name, tensor in inputs.items() if tensor.is_floating_point()}
            changed = {name: _other(tensor) for name, tensor in floats.items()}
            self._compare(runner, call, changed, names, make, f'{title} with other numbers')
        failures = {}
        for key in self.form.keys:
            changed = {key: _other(inputs[key])}
            try:
                self._compare(runner, call, changed, names, make, f'{title} with other numbers in {key}')
            except ExportError as error:
                failures[key] = str(error)
        if failures:
            raise RigError(next(iter(failures.values())), list(failures))

    def of_one_rig(self, model: torch.nn.Module, keys: Sequence[str]) -> RecordedPart:
        """Return the part with the arrays of some keys as constants; ConfigError: they change."""
        form = self.form
        fixed = (*form.fixed, *keys)
        form = checked_form(model, form.part, self.calls, self.paths, form.seeded, fixed)
        return dataclasses.replace(self, form=form)

    def _compare(
        self,
        runner: Runner,
        call: PartCall,
        changed: Mapping[str, torch.Tensor],
        names: Mapping[str, str],
        make: Callable[[], torch.nn.Module],
        title: str,
    ) -> None:
        inputs, reference, model = (
            {**self.form.inputs_of(call), **changed},
            self.form.outputs_of(call),
            make(),
        )
        run = functools.partial(run_part, model, self.form, call, inputs, self.paths)
        if changed:
            try:
                reference = run()
            except Exception:  # PyTorch fails on such numbers
                return
        taken = {value.name for value in runner.index.graph.input}
        feeds = {names.get(name, name): to_array(tensor) for name, tensor in inputs.items()}
        try:
            results = runner.run({name: array for name, array in feeds.items() if name in taken})
        except Mm2OnnxError as error:
            raise ExportError(f'the graph does not run {title}: {one_line(error)[:300]}; {INSIDE}') from error
        outputs = {name: results[names.get(name, name)] for name in reference}
        # random numbers differ in float64
        rounding = None if self.form.seeded else rounding_of(model, reference, run)
        rows = compare_named(*filled(reference, outputs), DEFAULT_RTOL, rounding=rounding)
        wrong = [f'{row.tensor}: {row.reason}' for row in rows if not row.passed]
        if wrong:
            raise ExportError(f'the graph and PyTorch return different results {title}: {wrong[0]}; {INSIDE}')


def _other(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor with other numbers; a common factor would not change projections."""
    if not tensor.is_floating_point():
        rolled = tensor.flatten().roll(1).reshape(tensor.shape)  # indices stay in range
        return tensor + 1 if torch.equal(rolled, tensor) else rolled
    turns = torch.arange(tensor.numel(), dtype=tensor.dtype, device=tensor.device).reshape(tensor.shape)
    return tensor * (1 + OTHER * torch.sin(1.7 * turns))


def record_parts(
    factory: ModelFactory,
    texts: Sequence[str],
    samples: Sequence[Any],
    is_seeded: bool = False,
    fixed: Mapping[str, Sequence[str]] | None = None,
) -> tuple[list[RecordedPart], Recording]:
    """Record parts on samples and check that each is one graph; else ConfigError, UsageError.

    `is_seeded`: random numbers use one seed; `fixed`: see `CutFolder`.
    """
    model = factory.make()
    parts = parse_parts(list(texts), model)
    recording = record(model, parts, samples, run_test_path, is_seeded)
    fresh = factory.make()
    recorded = []
    for part, calls in recording.calls.items():
        paths = modules_among(calls[0], model)
        form = checked_form(fresh, part, calls, paths, is_seeded, (fixed or {}).get(part.text, ()))
        recorded.append(RecordedPart(form, calls, paths))
    return recorded, recording


def export_folder(
    factory: ModelFactory,
    texts: Sequence[str],
    samples: Sequence[Any],
    output: str | Path,
    options: Mapping[str, Any] | None = None,
    names: Mapping[str, str] | None = None,
) -> tuple[CutFolder, list[RecordedPart], Recording]:
    """Export parts into a folder, all or none.

    Args:
        factory: config and checkpoint.
        texts: parts as typed.
        samples: keyword arguments of the test path, in order.
        output: the folder.
        options: see `DEFAULTS`.
        names: path of a tensor, or 'PART: path', -> its name in the files.

    Raises:
        ConfigError: a part cannot be one graph, by name.
        ExportError: the exporter failed; the message has operator and user line.
    """
    check_writable(Path(output) / MANIFEST)
    chosen = {**DEFAULTS, **(options or {})}
    recorded, recording = record_parts(factory, texts, samples, chosen['seeded'])
    model = factory.make_prepared()
    facts = dict(factory.facts(), versions=versions(), samples=len(samples))
    graphs, entries = [], []

    def export(part: RecordedPart) -> tuple[RecordedPart, onnx.ModelProto]:
        try:
            return exported_part(part, model, chosen, names or {}, factory.make)
        except ExportError as error:
            raise ExportError(f'--parts {part.form.part.text}: {with_place(error, part, model)}') from error

    pairs = [export(part) for part in recorded]
    chosen['opset'] = max(opsets_of(graph)[''] for _, graph in pairs)
    for index, (part, graph) in enumerate(pairs):
        if opsets_of(graph)[''] < chosen['opset']:
            part, graph = export(part)
        recorded[index], own_names = part, names_for(part.form, names or {})
        entry = part_json(part.form, part.calls[0], own_names)
        described = {key: entry[key] for key in ('part', 'constants')} | dict(versions=facts['versions'])
        props = {f'{PREFIX}{key}': json.dumps(value) for key, value in described.items()}
        onnx.helper.set_model_props(graph, props)
        graphs.append(graph)
        entries.append(entry)
    folder = CutFolder(Path(output), facts, chosen, entries)
    for path in (folder.path / RESULTS, *map(folder.file, entries)):
        check_writable(path)
    folder.path.mkdir(parents=True, exist_ok=True)
    for graph, entry in zip(graphs, entries, strict=True):
        save(graph, folder.file(entry))
        entry['sha256'] = sha256_file(folder.file(entry))
    with atomic_path(folder.path / RESULTS) as temporary, open(temporary, 'wb') as stream:
        np.savez(stream, **kept_results(samples, recording.results))
    folder.write()
    return folder, recorded, recording


def exported_part(
    part: RecordedPart,
    model: torch.nn.Module,
    options: Mapping[str, Any],
    names: Mapping[str, str],
    make: Callable[[], torch.nn.Module],
) -> tuple[RecordedPart, onnx.ModelProto]:
    """Return a part and its graph, for one rig if it fails on others; arguments as in `export`.

    Opset 0: the part's lowest.
    """
    exporter, opset = options['exporter'], options['opset'] or default_opset(model, options['exporter'])
    highest = options['opset'] or OPSETS.get(exporter, (0, 0))[1]
    while True:
        try:
            return part, part.export(model, {**options, 'opset': opset}, names_for(part.form, names), make)
        except RigError as error:
            part = part.of_one_rig(make(), error.keys)
        except OpsetError:
            if opset >= highest:
                raise
            opset += 1


def names_for(form: PartForm, names: Mapping[str, str]) -> dict[str, str]:
    """Return path -> name in the file of a part's tensors; UsageError: duplicate names."""
    chosen = {}
    for path in (*form.inputs, *form.outputs):
        chosen[path] = names.get(f'{form.part.text}: {path}', names.get(path, path))
    final = list(chosen.values())
    if repeated := sorted({name for name in final if final.count(name) > 1}):
        raise UsageError(
            f'--parts {form.part.text}: {", ".join(repeated)} would be the name of two tensors; rename '
            f'one with --names FILE.json: {{"PATH": "NAME"}}'
        )
    return chosen


def read_names(path: str) -> dict[str, str]:
    """Return the names of a JSON file, path -> name; UsageError: other content."""
    from mmdeploy_ext.base.files import read_json

    content = read_json(path)
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise UsageError(f'--names {path}: expected {{"PATH": "NAME"}}')
    return content


def with_place(error: ExportError, part: RecordedPart, model: torch.nn.Module) -> str:
    """Return a failed export's message, with the user's line that calls the operator."""
    operator = re.search(r"operator '?(?:aten|prims|mmcv)::(\w+)", str(error))
    if operator is None:
        return str(error)
    places: dict[str, str] = {}

    class Places(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function._schema.name.partition('::')[2]
            places[name] = arrays.users_place()
            return function(*args, **(kwargs or {}))

    module = PartModule(model, part.form, part.calls[0], part.paths)
    with Places(), torch.no_grad():
        module(*part.form.inputs_of(part.calls[0]).values())
    place = places.get(operator[1]) or places.get(f'_{operator[1]}') or ''
    return f'{error}; called at {place}' if place else str(error)
