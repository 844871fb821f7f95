"""The files of an export, written and read: one .onnx file, or a folder of graphs."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from mmdeploy_ext.base.errors import ConfigError, ModelFileError, UsageError
from mmdeploy_ext.base.files import (
    check_replaceable,
    check_replaceable_file,
    check_writable,
    replaced_folder,
    will_write,
)
from mmdeploy_ext.base.source_code import versions
from mmdeploy_ext.base.typed_json import Mismatch, plain, read
from mmdeploy_ext.exporting import export
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.exporting.export import recorded_warnings
from mmdeploy_ext.families.base import FAMILIES, Family, exported_options
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector import Detector, rule_of
from mmdeploy_ext.families.host_programs import hosted
from mmdeploy_ext.families.images import check_fed, traced_feeds
from mmdeploy_ext.graphs.io.files import check_pair
from mmdeploy_ext.graphs.passes.precision import check_patterns, in_precision
from mmdeploy_ext.runtime.exported import check_same_export, files_of_family, model_files
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
from mmdeploy_ext.spec.metadata import Metadata, read_metadata
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.registry import registration_of
from mmdeploy_ext.spec.tensors import Graph


def check_output(output: str, options: Options, family: Family, option: str = '--out ') -> None:
    """Check and register the output path of an export; `option` is its name in messages.

    Raises:
        UsageError: a name in .onnx, or a file, for a folder of graphs; another name for one file of a family
            with folders; a mount point; a path that cannot be written, or that this run reads.
    """
    contract = contract_of(family, options)
    one_file = contract.one_file
    if output.endswith('.onnx') != one_file and family.files:
        expected = (
            'one file, expected a name in .onnx' if one_file else 'a folder, expected a name without .onnx'
        )
        raise UsageError(f'{option}{output}: the {options.contract} contract is {expected}')
    paths = [Path(output)]
    if not one_file:
        if Path(output).is_file():
            raise UsageError(f'{option}{output}: is a file, expected a folder')
        check_replaceable(output)
        paths = [Path(output) / f'{name}.onnx' for name in contract.files]
        for path in paths:
            check_replaceable_file(path)
    for path in paths:
        check_writable(path)
    will_write(option.strip(' ='), paths)


def check_facts(name: str, facts: Any) -> None:
    """Raise ConfigError unless the family's registered class of facts can read `facts`."""
    registration, returned = registration_of(name), type(facts)
    try:
        read(registration.load_facts(), plain(facts))
    except Mismatch as error:
        cause = (
            f'{registration.facts} is registered ({error})' if registration.facts else 'none is registered'
        )
        raise ConfigError(
            f'family {name!r}: facts() returns {returned.__name__}, and {cause}: register_family({name!r}, '
            f"..., facts='{returned.__module__}:{returned.__name__}')"
        ) from error


def make_metadata(detector: Detector, options: Options, graph: Graph | None = None) -> Metadata:
    """Return the metadata of a graph's file; `options` are resolved, `graph` defaults to the last."""
    family = detector.family
    facts = family.facts(detector.model)
    check_facts(family.name, facts)
    graph = graph or contract_of(family, options).graphs(detector.model, options)[-1]
    graph = hosted(family, graph, options, detector.rule, detector.model)
    return Metadata(
        family=family.name,
        form=graph.name,
        spec=graph.spec,
        preprocess=rule_of(detector, options),
        classes=detector.classes,
        postprocess=facts,
        options=dict(options.to_json(), cfg_options=plain_options(detector.cfg_options)),
        config=Path(detector.config).name,
        config_sha256=detector.config_sha256,
        checkpoint_sha256=detector.checkpoint_sha256,
        versions=versions(),
        model_classes=tuple(entry.to_json() for entry in detector.model_classes),
    )


def plain_options(value: Any) -> Any:
    """Return config overrides as JSON values: keys are strings, tuples become lists."""
    if isinstance(value, dict):
        return {str(key): plain_options(item) for key, item in value.items()}
    return [plain_options(item) for item in value] if isinstance(value, list | tuple) else value


def export_graph(
    graph: Graph,
    options: Options,
    keep_fp32: Sequence[str] = (),
    example: Mapping[str, torch.Tensor] | None = None,
) -> onnx.ModelProto:
    """Export one graph with the names, types, opset and precision of its spec and the resolved options.

    `keep_fp32` adds patterns of nodes, as in the options. `example` (input name -> tensor) defaults to the
    graph's own. A graph with a `model` is not exported again.

    Raises:
        ExportError: as `export.export_stages`, or a constant exceeds float16.
    """
    model = graph.model
    if model is None:
        model = export.export_stages(graph.stages, example or graph.example, graph.spec, options)
    return in_precision(model, graph.spec, options, keep_fp32)


def export_graphs(
    detector: Detector, options: Options, images: Sequence[PreparedImage] = ()
) -> list[tuple[onnx.ModelProto, Metadata]]:
    """Export all graphs with their metadata, in the order of use; `options` are resolved.

    `images`: at least one prepared picture of the traced shape for families without own examples.

    Raises:
        ExportError: a graph cannot be exported.
        UsageError: a pattern of `keep_fp32` matches no node.
    """
    family, exported = detector.family, []
    device = next(detector.model.parameters()).device
    inputs = traced_feeds(family, images, options.get('batch', 1))
    for graph in contract_of(family, options).graphs(prepared(detector.model), options):
        hosted_graph = hosted(family, graph, options, detector.rule, detector.model)
        example = graph.example
        if not example:
            if images:
                check_fed(family, graph.spec, inputs, any(any(image.border) for image in images))
            spec = hosted_graph.spec
            arrays = {name: array for name, array in inputs.items() if name in spec.input_names}
            arrays = spec.rounded(spec.with_defaults(arrays))
            example = {name: torch.from_numpy(array) for name, array in arrays.items()}
        # modules compute in float32, also those of files with float16 inputs
        example = {name: one.float() if one.dtype == torch.float16 else one for name, one in example.items()}
        example = {name: tensor.to(device) for name, tensor in example.items()}
        for stage in hosted_graph.stages:
            stage.module.to(device)
        with recorded_warnings(detector.code_warnings):
            model = export_graph(hosted_graph, options, registration_of(family.name).keep_fp32, example)
        exported.append((model, make_metadata(detector, options, graph)))
    check_patterns([model for model, _ in exported], options.keep_fp32)
    return exported


def export_files(
    detector: Detector, options: Options, output: str, images: Sequence[PreparedImage] = ()
) -> tuple[list[str], float]:
    """Export a model to one file or a folder of graphs; return paths in the order of use, and seconds.

    `output` is a file if the export is `Contract.one_file`, else a folder. Replaces older files at once;
    `options` and `images` as in `export_graphs`.

    Raises:
        ExportError, UsageError: as `export_graphs`, or onnx.checker refuses a graph; nothing was written.
        Mm2OnnxError: a file cannot be written; an older export stays.
    """
    start = time.perf_counter()
    contract = contract_of(detector.family, options)
    if export.has_large_weights(detector.model):
        if options.simplify:
            raise UsageError('--simplify: onnxslim supports models of up to 2 GiB, and this one is larger')
        if contract.one_file:
            check_pair(Path(output))
    exported = export_graphs(detector, options, images)
    if contract.one_file:
        ((model, metadata),) = exported
        export.save(model, output, metadata)
        paths = [output]
    else:
        companions = contract.companions(detector.model)
        paths = _write_folder(exported, Path(output), companions)
    return paths, time.perf_counter() - start


def _write_folder(
    exported: Sequence[tuple[onnx.ModelProto, Metadata]], folder: Path, companions: Mapping[str, str]
) -> list[str]:
    family = exported[-1][1].family
    with replaced_folder(folder, files_of_family(folder, family)) as staging:
        for model, metadata in exported:
            export.save(model, staging / f'{metadata.form}.onnx', metadata)
        for name, text in companions.items():
            (staging / name).write_text(text, encoding='utf-8')
    return [str(folder / f'{metadata.form}.onnx') for _, metadata in exported]


@dataclasses.dataclass(frozen=True)
class ExportedFiles:
    """Files of one export: paths and metadata, in the order of use."""

    paths: list[str]
    all_metadata: list[Metadata]

    @property
    def metadata(self) -> Metadata:
        """The metadata of the last file (dl4agx: another one)."""
        return self.all_metadata[-1]


def read_files(path: str) -> ExportedFiles:
    """Read the metadata of an exported file, or of all .onnx files of a folder, complete or not.

    Raises:
        ModelFileError: no such file or no .onnx file, not exported by this package, files of different
            exports, or files of a folder not named after their graphs.
    """
    metadata_of = {str(file): read_metadata(str(file)) for file in model_files(path)}
    check_same_export(metadata_of)
    first, metadata = next(iter(metadata_of.items()))
    family = FAMILIES.get(metadata.family)
    names: Sequence[str] = ()
    if family is not None and family.files:
        names = contract_of(family, exported_options(family, metadata.options, first)).files
    if names and Path(path).is_dir():
        check_file_names(path, {Path(file).name: f'{entry.form}.onnx' for file, entry in metadata_of.items()})
    positions = {name: position for position, name in enumerate(names)}
    order = sorted(metadata_of, key=lambda file: (positions.get(metadata_of[file].form, len(names)), file))
    return ExportedFiles(order, [metadata_of[file] for file in order])


def check_file_names(folder: str, expected: Mapping[str, str]) -> None:
    """Raise ModelFileError if files of a folder are not named as in `expected` (name -> exported name)."""
    wrong = {name: expected_name for name, expected_name in expected.items() if name != expected_name}
    if not wrong:
        return
    exchanged = set(wrong) == set(wrong.values())
    reason = "files have each other's names" if exchanged else 'files do not have the names of their graphs'
    listed = ', '.join(f'{name} holds the graph of {expected_name}' for name, expected_name in wrong.items())
    raise ModelFileError(f'{folder}: {reason} ({listed}); rename them, or export again')
