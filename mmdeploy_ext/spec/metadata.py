"""All facts needed to use a file, as JSON in `metadata_props` under `mm2onnx.*`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import ConfigError, LoadError, ModelFileError, shape_text
from mmdeploy_ext.base.files import AnyPath, check_onnx_file, unreadable_onnx
from mmdeploy_ext.base.plain_pickle import metadata_of
from mmdeploy_ext.base.typed_json import Mismatch, parse_json, plain, read
from mmdeploy_ext.spec.facts import Facts
from mmdeploy_ext.spec.preparation import FusionRule, MultiViewRule, PreprocessRule, VoxelRule
from mmdeploy_ext.spec.registry import find_registration
from mmdeploy_ext.spec.tensors import GraphSpec

if TYPE_CHECKING:
    from typing import Self

PREFIX = 'mm2onnx.'
GRAPH_RULES = 7
"""Increased when a model's graph or metadata change; files with another number are refused."""
Rule = PreprocessRule | MultiViewRule | VoxelRule | FusionRule
ENTRIES = dict(
    family=str,
    form=str,
    spec=GraphSpec,
    preprocess=Rule,
    voxels=VoxelRule,
    classes=tuple[str, ...],
    postprocess=Mapping[str, Any],
    options=Mapping[str, Any],
    config=str,
    config_sha256=str,
    checkpoint_sha256=str,
    versions=Mapping[str, str],
    model_classes=tuple[Mapping[str, Any], ...],
    rules=int,
    edits=tuple[str, ...],
    digest=Mapping[str, Any],
    ranges=Mapping[str, Any],
    scn=Mapping[str, Any],
    scn_modules=Mapping[str, str],
)
"""Entry without prefix -> type."""
COMMON_ENTRIES = (
    'family', 'form', 'options', 'config', 'config_sha256', 'checkpoint_sha256', 'versions', 'model_classes',
    'rules', 'edits',
)  # fmt: skip
OF_SPARSE_GRAPHS = ('scn', 'scn_modules')
FILE_ENTRIES = dict.fromkeys((*COMMON_ENTRIES, 'spec', 'preprocess', 'classes', 'postprocess'), True)
FILE_ENTRIES |= dict.fromkeys(('digest', *OF_SPARSE_GRAPHS), False)
"""Entry of a detector's file -> whether it is required."""
BACKBONE_ENTRIES = dict.fromkeys((*COMMON_ENTRIES, 'voxels'), True)
BACKBONE_ENTRIES |= dict.fromkeys(('digest', 'ranges', *OF_SPARSE_GRAPHS), False)
"""Entry of a sparse backbone's file -> whether it is required."""


BF16 = 'precision --to bf16'
"""Edit that makes a bfloat16 file; exports write none."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """The metadata of an exported file.

    Attributes:
        form: post-processing in the graph ('full', 'decode', 'raw'), or the name of the graph.
        classes: class names by label.
        postprocess: see `Family.facts`.
        options: option of the export -> value.
        config_sha256: hash of its model and test pipeline.
        model_classes: `base.source_code.ModelClass` entries.
        rules: see `GRAPH_RULES`.
        edits: later commands that changed the graph, in order.
    """

    family: str
    form: str
    spec: GraphSpec
    preprocess: Rule
    classes: tuple[str, ...]
    postprocess: Facts
    options: dict[str, Any]
    config: str
    config_sha256: str
    checkpoint_sha256: str
    versions: dict[str, str]
    model_classes: tuple[dict[str, Any], ...] = ()
    rules: int = GRAPH_RULES
    edits: tuple[str, ...] = ()

    @property
    def precision(self) -> str:
        """'fp32', 'fp16', 'bf16' or 'int8' (quantised)."""
        if any(edit.startswith('quantize') for edit in self.edits):
            return 'int8'
        if BF16 in self.edits:
            return 'bf16'
        return str(self.options.get('precision') or 'fp32')

    @property
    def samples(self) -> str:
        """'images', camera 'frames', LiDAR 'sweeps' or 'fused'."""
        if isinstance(self.preprocess, PreprocessRule):
            return 'images'
        if isinstance(self.preprocess, MultiViewRule):
            return 'frames'
        return 'sweeps' if hasattr(self.preprocess, 'voxel_size') else 'fused'

    def to_props(self) -> dict[str, str]:
        values = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        try:
            return {PREFIX + name: json.dumps(value) for name, value in values.items()}
        except TypeError as error:
            raise ConfigError(
                f'family {self.family!r}: its metadata cannot be written ({error}): what Family.facts '
                f'returns, for example'
            ) from error

    @classmethod
    def from_props(cls, props: Mapping[str, str], path: object = 'the file') -> Self:
        """Rebuild from `metadata_props`; `options` become `Entries`."""
        check_entry_names(props, path)
        values = {field.name: read_entry(props, field.name, path) for field in dataclasses.fields(cls)}
        values['postprocess'] = _read_facts(props, path)
        values['options'] = Entries(values['options'], f'{path}: {PREFIX}options')
        return cls(**values)

    def require(self, path: object, family: str, forms: tuple[str, ...] = ()) -> None:
        """Raise ModelFileError for another family or form; () allows all forms."""
        if self.family != family:
            raise ModelFileError(f'{path}: is a model of family {self.family!r}, expected {family!r}')
        if forms and self.form not in forms:
            raise ModelFileError(
                f'{path}: its post-processing form is {self.form!r}, expected {" or ".join(forms)}'
            )


class Entries(dict):
    """Missing keys raise ModelFileError '{name} has no KEY'."""

    def __init__(self, values: Any, name: str = 'the metadata') -> None:
        super().__init__(values)
        self.name = name

    def __missing__(self, key: str) -> Any:
        raise ModelFileError(f'{self.name} has no {key!r}; export it again')

    def __reduce__(self) -> tuple[Any, ...]:
        return Entries, (dict(self), self.name)


def damaged(path: object, name: str, error: object) -> ModelFileError:
    return ModelFileError(
        f'{path}: its mm2onnx metadata is damaged ({PREFIX}{name}: {error}); export it again'
    )


def entries_of(metadata_props: Iterable[Any]) -> dict[str, str]:
    return {entry.key: entry.value for entry in metadata_props}


def check_entry_names(
    props: Mapping[str, str], path: object, entries: Mapping[str, bool] = FILE_ENTRIES
) -> None:
    """Raise ModelFileError for wrong graph rules, missing or unknown entries."""
    if f'{PREFIX}family' not in props:
        is_sparse = entries is not FILE_ENTRIES
        advice = f'export it with {tool("export --backbone" if is_sparse else "export")}'
        if not is_sparse:
            advice += f', or prove an export of your own with {tool("prove-module")}'
        raise ModelFileError(f'{path}: has no mm2onnx metadata ({PREFIX}family is missing); {advice}')
    rules = read_entry(props, 'rules', path) if f'{PREFIX}rules' in props else 'not stated'
    if rules != GRAPH_RULES:
        raise ModelFileError(
            f'{path}: its {PREFIX}rules are {rules}, expected {GRAPH_RULES}: another version wrote it; '
            f'export it again'
        )
    if missing := [name for name, needed in entries.items() if needed and PREFIX + name not in props]:
        raise damaged(path, missing[0], 'is missing')
    names = [key.removeprefix(PREFIX) for key in props if key.startswith(PREFIX)]
    if unknown := [name for name in names if name not in entries]:
        raise damaged(path, unknown[0], f'no export writes it; expected {", ".join(entries)}')


def read_entry(props: Mapping[str, str], name: str, path: object, annotation: Any = None) -> Any:
    """Read an entry (name without prefix) as its type in `ENTRIES` or `annotation`."""
    try:
        return read(annotation or ENTRIES[name], parse_json(props.get(PREFIX + name, '')))
    except Mismatch as error:
        raise damaged(path, name, error) from error
    except ValueError as error:
        raise damaged(path, name, f'is not JSON: {error}') from error


def check_entries(props: Mapping[str, str], path: object) -> None:
    """Check all entries of a file, even unused ones."""
    check_entry_names(props, path, FILE_ENTRIES if f'{PREFIX}preprocess' in props else BACKBONE_ENTRIES)
    for name in ENTRIES:
        if PREFIX + name in props:
            read_entry(props, name, path)


def _read_facts(props: Mapping[str, str], path: object) -> Facts:
    registration = find_registration(read_entry(props, 'family', path))
    if registration is None:
        return Facts()
    return read_entry(props, 'postprocess', path, registration.load_facts())


def check_graph(
    spec: GraphSpec, inputs: Mapping[str, tuple[str, Sequence[Any]]], outputs: Mapping[str, Any], path: object
) -> None:
    """Raise ModelFileError unless spec and graph agree in names, dtypes and sizes.

    `inputs` and `outputs`: name -> (dtype, axes), dynamic axes as text or None. LoadError: optional inputs
    are lost.
    """
    absent = [tensor for tensor in spec.inputs if tensor.name not in inputs]
    if absent and all(tensor.default is not None for tensor in absent):
        raise LoadError(
            f'{path}: the graph has lost its optional inputs '
            f'{", ".join(tensor.name for tensor in absent)}, because a simplifier turned inputs with a '
            f'default into constants: export with --simplify, or use {tool("graph")} simplify, which '
            'keeps them'
        )
    for kind, tensors, graph_tensors in (('inputs', spec.inputs, inputs), ('outputs', spec.outputs, outputs)):
        names = [tensor.name for tensor in tensors]
        if set(names) != set(graph_tensors):
            raise damaged(
                path, 'spec', f'{kind} are {", ".join(names)}, the graph has {", ".join(graph_tensors)}'
            )
        for tensor in tensors:
            dtype, axes = graph_tensors[tensor.name]
            spec_sizes = [axis if isinstance(axis, int) else None for axis in tensor.axes]
            graph_sizes = [axis if isinstance(axis, int) else None for axis in axes]
            sizes_differ = len(spec_sizes) != len(graph_sizes) or any(
                spec_size != graph_size and (kind == 'inputs' or None not in (spec_size, graph_size))
                for spec_size, graph_size in zip(spec_sizes, graph_sizes, strict=True)
            )
            if tensor.dtype != dtype or (sizes_differ and (graph_sizes or kind == 'inputs')):
                shape = shape_text(axes)
                expected = f'{tensor.dtype} {tensor.shape_text()}'
                raise damaged(
                    path,
                    'spec',
                    f'{kind} says {tensor.name!r} is {expected}, the graph has {dtype} {shape}',
                )


def read_metadata(path: AnyPath) -> Metadata:
    return Metadata.from_props(read_props(path), path)


def least_precision(files: Iterable[Metadata]) -> str:
    """First precision below float32 of one export's files, or 'fp32'."""
    return next((metadata.precision for metadata in files if metadata.precision != 'fp32'), 'fp32')


def read_props(path: AnyPath) -> dict[str, str]:
    """Read `metadata_props` without onnx; ModelFileError: missing or corrupt."""
    check_onnx_file(path)
    try:
        return metadata_of(path)
    except (LookupError, OSError, ValueError) as error:
        raise unreadable_onnx(path, error) from error
