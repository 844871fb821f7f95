"""The files of an export, written and read: one .onnx file, or a folder of graphs."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from mmdeploy_ext.contract.metadata import Metadata, read_metadata
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.registry import registration_of
from mmdeploy_ext.contract.spec import Graph
from mmdeploy_ext.core.errors import ConfigError, ModelFileError, UsageError
from mmdeploy_ext.core.files import check_writable, will_write
from mmdeploy_ext.core.folders import check_replaceable, replaced_folder
from mmdeploy_ext.core.source_code import versions
from mmdeploy_ext.core.typed_json import Mismatch, plain, read
from mmdeploy_ext.exporting import export
from mmdeploy_ext.exporting.copy import prepared
from mmdeploy_ext.exporting.export import recorded_warnings
from mmdeploy_ext.families.base import BACKBONE, FAMILIES, Family, exported_options
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.hosts import hosted
from mmdeploy_ext.families.model import Model, check_options, load_weights, rule_of
from mmdeploy_ext.graph.passes.precision import check_patterns, in_precision
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.runtime.exported import check_same_export, files_of_family, model_files


def default_output(family: Family, stem: str, options: Options) -> str:
    """Return the default name of the file or folder of an export of the config file `stem`."""
    if family.product == BACKBONE:
        target = '' if options.target == 'libspconv' else f'{options.target}.'
        return f'lidar.backbone.{target}{options.order}.onnx'
    if not contract_of(family, options).one_file:
        return stem
    return f'{stem}_{options.contract}.onnx' if family.files else 'tmp.onnx'


def check_output(output: str, options: Options, family: Family, option: str = '--output-file ') -> None:
    """Refuse a file or folder that the files of an export cannot be written to; else register it as output.

    Args:
        output: path of the file or the folder.
        options: options of the export; they decide whether the family writes one file.
        family: family of the model.
        option: name of the path in messages: an option with a space, or a key with '='.

    Raises:
        UsageError: a name in .onnx, or a file, for a folder of graphs; another name for one file of a family
            that has folders of graphs as well; the working folder or a mount point; a path that cannot be
            written, or that this run reads.
    """
    contract = contract_of(family, options)
    one_file = contract.one_file
    if output.endswith('.onnx') != one_file and family.files:
        expected = 'one file, expected a name in .onnx' if one_file else 'several graphs, expected a folder'
        raise UsageError(f'{option}{output}: the {options.contract} contract is {expected}')
    paths = [Path(output)]
    if not one_file:
        if Path(output).is_file():
            raise UsageError(f'{option}{output}: is a file, expected a folder')
        check_replaceable(output)
        paths = [Path(output) / f'{name}.onnx' for name in contract.files]
    for path in paths:
        check_writable(path)
    will_write(option.strip(' ='), paths)


def load_for(deployment: Model, options: Options, output: str) -> Options:
    """Check options and output of an export, load the weights of its built model; return resolved options."""
    options = check_options(options, deployment.unbuilt_cfg, deployment.family, deployment.model)
    check_output(output, options, deployment.family)
    load_weights(deployment)
    return options


def check_facts(name: str, facts: Any) -> None:
    """Raise ConfigError unless the registered class of facts reads these of a family of this name."""
    registered_facts, returned = registration_of(name).load_facts(), type(facts)
    try:
        read(registered_facts, plain(facts))
    except Mismatch as error:
        raise ConfigError(
            f'family {name!r}: facts() returns {returned.__name__}, {registered_facts.__name__} is '
            f'registered ({error}): register_family({name!r}, ..., '
            f"facts='{returned.__module__}:{returned.__name__}')"
        ) from error


def make_metadata(deployment: Model, options: Options, graph: Graph | None = None) -> Metadata:
    """Return the metadata of the file of a graph.

    Args:
        deployment: the model that was exported.
        options: options of the export, with opset and size resolved, see `deployment.resolve`.
        graph: by default the last one of the family, which gives the outputs.
    """
    family = deployment.family
    facts = family.facts(deployment.model)
    check_facts(family.name, facts)
    graph = graph or contract_of(family, options).graphs(deployment.model, options)[-1]
    graph = hosted(family, graph, options, deployment.rule)
    return Metadata(
        family=family.name,
        form=graph.name,
        spec=graph.spec,
        preprocess=rule_of(deployment, options),
        classes=deployment.classes,
        postprocess=facts,
        options=dict(options.to_json(), cfg_options=plain_options(deployment.cfg_options)),
        config=Path(deployment.config).name,
        config_sha256=deployment.config_sha256,
        checkpoint_sha256=deployment.checkpoint_sha256,
        versions=versions(),
        model_classes=tuple(entry.to_json() for entry in deployment.model_classes),
    )


def plain_options(value: Any) -> Any:
    """Return `value`, overrides of a config, as JSON has them: keys are strings, tuples become lists.

    Other values than dicts, lists and tuples are returned unchanged.
    """
    if isinstance(value, dict):
        return {str(key): plain_options(item) for key, item in value.items()}
    return [plain_options(item) for item in value] if isinstance(value, list | tuple) else value


def export_graph(
    graph: Graph,
    options: Options,
    keep_fp32: Sequence[str] = (),
    example: Mapping[str, torch.Tensor] | None = None,
) -> onnx.ModelProto:
    """Export one graph with the names and types of its spec, in the opset and precision of the options.

    Args:
        graph: one that has its ONNX model already (`graph.model`) is not exported again.
        options: options of the export, with the opset resolved.
        keep_fp32: patterns, as of the options, of nodes (of their names, operators, modules or outputs) that
            stay float32 in files of the family, in addition to the options' patterns.
        example: input name -> tensor that is traced; with None or an empty dict the graph's own example.

    Raises:
        ExportError: as `export.export_stages`, or a constant exceeds float16.
    """
    model = graph.model
    if model is None:
        model = export.export_stages(graph.stages, example or graph.example, graph.spec, options)
    return in_precision(model, graph.spec, options, keep_fp32)


def export_graphs(
    deployment: Model, options: Options, images: Sequence[PreparedImage] = ()
) -> list[tuple[onnx.ModelProto, Metadata]]:
    """Export all graphs of a model, in the order in which a sample goes through them.

    Args:
        deployment: the model.
        options: with opset and size resolved, see `deployment.resolve`.
        images: prepared pictures of the traced shape for families without examples of their own, at least
            one; the family repeats them to the size of its batch. Others take none.

    Returns:
        Graph and metadata of each file.

    Raises:
        ExportError: a graph cannot be exported.
        UsageError: a pattern of the option `keep_fp32` fits no node.
    """
    family, exported = deployment.family, []
    device = next(deployment.model.parameters()).device
    inputs = {}
    if family.samples == 'images':
        batch = [images[index % len(images)] for index in range(options.batch)]
        inputs = family.feeds(batch, rescale=True)
    for graph in contract_of(family, options).graphs(prepared(deployment.model), options):
        hosted_graph = hosted(family, graph, options, deployment.rule)
        example = graph.example
        if not example:  # optional inputs that no picture gives have their defaults
            spec = hosted_graph.spec
            arrays = {name: array for name, array in inputs.items() if name in spec.input_names}
            arrays = spec.rounded(spec.with_defaults(arrays))
            example = {name: torch.from_numpy(array) for name, array in arrays.items()}
        # modules compute in float32, also those of files with float16 inputs
        example = {name: one.float() if one.dtype == torch.float16 else one for name, one in example.items()}
        example = {name: tensor.to(device) for name, tensor in example.items()}
        for stage in hosted_graph.stages:
            stage.module.to(device)
        with recorded_warnings(deployment.code_warnings):
            model = export_graph(hosted_graph, options, registration_of(family.name).keep_fp32, example)
        exported.append((model, make_metadata(deployment, options, graph)))
    check_patterns([model for model, _ in exported], options.keep_fp32)
    return exported


def export_files(
    deployment: Model, options: Options, output: str, images: Sequence[PreparedImage] = ()
) -> tuple[list[str], float]:
    """Export a model and write its file, or its folder of graphs.

    Args:
        deployment: the model.
        options: with opset and size resolved, as `export_graphs` takes them.
        output: path of the file if the export is `Contract.one_file`, else of the folder, which may get one
            graph alone. Files of an older export of the family there are replaced at once.
        images: as `export_graphs` takes them.

    Returns:
        The paths of the graphs in the order in which a sample goes through them, and the seconds it took.

    Raises:
        ExportError, UsageError: as `export_graphs`, or onnx.checker refuses a graph; nothing was written.
        Mm2OnnxError: a file cannot be written; an older export stays.
    """
    start = time.perf_counter()
    exported = export_graphs(deployment, options, images)
    contract = contract_of(deployment.family, options)
    if contract.one_file:
        ((model, metadata),) = exported
        export.save(model, output, metadata)
        paths = [output]
    else:
        companions = contract.companions(deployment.model)
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
    """Files of one export.

    Attributes:
        paths: paths of the files, in the order in which a sample goes through them, which the family states.
        all_metadata: metadata of each file, in the same order.
    """

    paths: list[str]
    all_metadata: list[Metadata]

    @property
    def metadata(self) -> Metadata:
        """The metadata of the last file, which gives the outputs, but for the contract dl4agx."""
        return self.all_metadata[-1]


def read_files(path: str) -> ExportedFiles:
    """Read the metadata of the exported file, or of all .onnx files of the exported folder, at `path`.

    A folder that lacks a graph is read, too: it is refused when its graphs are opened.

    Raises:
        ModelFileError: there is no such file or no .onnx file, one was not exported by this package, files
            are of different exports, or files of a folder are not named after their graphs (the name of a
            single file does not count).
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
    """Refuse a folder with files that are not named after their graphs.

    `expected` is name of a file -> the name that an export gives it. ModelFileError: lists the wrong ones.
    """
    wrong = {name: expected_name for name, expected_name in expected.items() if name != expected_name}
    if not wrong:
        return
    exchanged = set(wrong) == set(wrong.values())
    reason = "files have each other's names" if exchanged else 'files do not have the names of their graphs'
    listed = ', '.join(f'{name} holds the graph of {expected_name}' for name, expected_name in wrong.items())
    raise ModelFileError(f'{folder}: {reason} ({listed}); rename them, or export again')
