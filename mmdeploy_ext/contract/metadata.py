"""Everything needed to use a file, kept in its `metadata_props`; read by ONNX Runtime or onnx."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Self

from mmdeploy_ext.contract.metadata_entries import (
    GRAPH_RULES,
    PREFIX,
    Facts,
    check_names,
    checked_facts,
    damaged,
    entries_of,
    read_entry,
)
from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import LoadError, ModelFileError, UsageError
from mmdeploy_ext.core.files import check_onnx_size, check_regular
from mmdeploy_ext.core.printable import shortened
from mmdeploy_ext.preprocess import cameras
from mmdeploy_ext.preprocess.fusion import FusionRule
from mmdeploy_ext.preprocess.pictures import PreprocessRule
from mmdeploy_ext.preprocess.points import VoxelRule

Rule = PreprocessRule | cameras.MultiViewRule | VoxelRule | FusionRule
"""How an image, or the images of all cameras, or points become an input."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The metadata of an exported file.

    Attributes:
        family: model family, e.g. 'dense'.
        form: what the graph contains of the post-processing: 'full', 'decode' or 'raw'; of a streaming model,
            which graph of its contract it is.
        spec: names, shapes and tolerances of its tensors.
        preprocess: how samples become its input.
        classes: class names, by label.
        postprocess: what the post-processing that the graph leaves out has to know.
        options: the export options (opset, exporter, dynamic, batch size ...).
        config: file name of the config.
        config_sha256: hash of the model and test pipeline of the config.
        checkpoint_sha256: hash of the checkpoint file.
        versions: versions of the packages that made the file.
        model_classes: classes of the model that no installed library has, each with `name`, `file` (relative
            to the folder it was imported from), `sha256` of its source, and whether it is `ours`.
        rules: number of the graph rules that the file was written by, see `GRAPH_RULES`.
        edits: commands that changed the graph after the export, in order: each a dict of `command`,
            `arguments` and the `versions` of packages that did it.
    """

    family: str
    form: str
    spec: GraphSpec
    preprocess: Rule
    classes: tuple[str, ...]
    postprocess: dict[str, Any]
    options: dict[str, Any]
    config: str
    config_sha256: str
    checkpoint_sha256: str
    versions: dict[str, str]
    model_classes: tuple[dict[str, Any], ...] = ()
    rules: int = GRAPH_RULES
    edits: tuple[dict[str, Any], ...] = ()

    @property
    def precision(self) -> str:
        """What the file computes in: 'fp32', 'fp16', or 'int8' after it was quantised."""
        if any(edit['command'].startswith('quantize') for edit in self.edits):
            return 'int8'
        return str(self.options.get('precision') or 'fp32')

    @property
    def samples(self) -> str:
        """What goes in: 'images', 'frames' of cameras, 'sweeps' of a LiDAR, or 'fused' frames of both."""
        if isinstance(self.preprocess, PreprocessRule):
            return 'images'
        if isinstance(self.preprocess, cameras.MultiViewRule):
            return 'frames'
        return 'sweeps' if hasattr(self.preprocess, 'voxel_size') else 'fused'

    def to_props(self) -> dict[str, str]:
        """Return the `metadata_props` entries: one JSON value per field."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values.update(spec=self.spec.to_json(), preprocess=self.preprocess.to_json())
        return {PREFIX + name: json.dumps(value) for name, value in values.items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], path: object = 'the file') -> Self:
        """Rebuild from `metadata_props`; ModelFileError: not written by mm2onnx, or damaged metadata."""
        check_names(props, path)
        values = {field.name: read_entry(props, field.name, path) for field in dataclasses.fields(cls)}
        try:
            rule = _rule_from_json(values['preprocess'])
        except (ValueError, TypeError, OverflowError) as error:  # of numbers that do not go together
            raise damaged(path, 'preprocess', error) from error
        values.update(
            edits=tuple(values['edits']),
            model_classes=tuple(values['model_classes']),
            spec=GraphSpec.from_json(values['spec']),
            classes=tuple(values['classes']),
            preprocess=rule,
            postprocess=checked_facts(values['postprocess'], values['family'], path),
            options=Facts(values['options'], f'{path}: {PREFIX}options'),
        )
        return cls(**values)

    def require(self, path: object, family: str, forms: tuple[str, ...] = ()) -> None:
        """Refuse a file of another family or form; ModelFileError says what the file is."""
        if self.family != family:
            raise ModelFileError(f'{path}: is a model of family {self.family!r}, expected {family!r}')
        if forms and self.form not in forms:
            raise ModelFileError(
                f'{path}: its post-processing form is {self.form!r}, expected {" or ".join(forms)}'
            )


def check_graph(
    spec: GraphSpec, inputs: Mapping[str, tuple[str, Sequence[Any]]], outputs: Mapping[str, Any], path: object
) -> None:
    """Refuse a spec that is not of the graph in its file; ModelFileError names the tensor of the spec.

    A graph that has lost optional inputs is a LoadError: its metadata is right.
    `inputs` and `outputs` have the dtype and axes of the graph's by name, a letter or None where one is
    dynamic.
    """
    absent = [tensor for tensor in spec.inputs if tensor.name not in inputs]
    if absent and all(tensor.default is not None for tensor in absent):
        raise LoadError(
            f'{path}: the graph has lost its optional inputs {", ".join(tensor.name for tensor in absent)}, '
            f'which have their defaults for good; simplifiers take an input with a default for a constant: '
            f'export with --simplify, or use {tool("graph")} simplify, which keeps them'
        )
    for kind, tensors, given in (('inputs', spec.inputs, inputs), ('outputs', spec.outputs, outputs)):
        names = [tensor.name for tensor in tensors]
        if set(names) != set(given):
            raise damaged(path, 'spec', f'{kind} are {", ".join(names)}, the graph has {", ".join(given)}')
        for tensor in tensors:
            dtype, axes = given[tensor.name]
            fixed = [axis if isinstance(axis, int) else None for axis in tensor.axes]
            real = [axis if isinstance(axis, int) else None for axis in axes]
            unlike = len(fixed) != len(real) or any(
                axis != other and (kind == 'inputs' or None not in (axis, other))
                for axis, other in zip(fixed, real, strict=True)
            )
            if tensor.dtype != dtype or (unlike and (real or kind == 'inputs')):
                shape = 'x'.join(map(str, axes)) or 'scalar'
                says = f'{kind} says {tensor.name!r} is {tensor.dtype} {tensor.shape_text()}'
                raise damaged(path, 'spec', f'{says}, the graph has {dtype} {shape}')


def _rule_from_json(content: Mapping[str, Any]) -> Rule:
    if 'voxel_size' in content:
        return VoxelRule.from_json(content)
    if 'voxels' in content:
        return FusionRule.from_json(content)
    several = content.get('kind') == cameras.KIND
    return (cameras.MultiViewRule if several else PreprocessRule).from_json(content)


def read_metadata(path: str) -> Metadata:
    """Read the metadata of an ONNX file; ModelFileError: missing or corrupt, or without mm2onnx metadata."""
    return Metadata.from_props(read_props(path), path)


def read_props(path: object) -> dict[str, str]:
    """Return the `metadata_props` of a file; ModelFileError: missing, corrupt, or an entry is there twice."""
    import onnx

    try:
        check_regular(path)
        check_onnx_size(path)
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ModelFileError(f'{path}: no such ONNX file') from error
    except UsageError:
        raise
    except Exception as error:
        raise ModelFileError(f'{path}: is not a readable ONNX file ({type(error).__name__})') from error
    texts = (text for entry in model.metadata_props for text in (entry.key, entry.value))
    for text in texts:
        if isinstance(text, bytes):  # protobuf's answer where it is not UTF-8
            raise ModelFileError(
                f'{path}: its metadata has {shortened(text)}, which is not UTF-8; export it again'
            )
    for value in (*model.graph.input, *model.graph.output):
        if isinstance(value.name, bytes):
            raise ModelFileError(
                f'{path}: the name of an input or output is not UTF-8: {shortened(value.name)}; export it '
                f'again'
            )
    return entries_of(model.metadata_props, path)
