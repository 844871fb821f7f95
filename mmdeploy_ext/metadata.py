"""Everything needed to use a file, kept in its `metadata_props`; read by ONNX Runtime or onnx."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from mmdeploy_ext import preprocess_multiview
from mmdeploy_ext.errors import ModelFileError
from mmdeploy_ext.preprocess import PreprocessRule
from mmdeploy_ext.spec import GraphSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.preprocess_points import VoxelRule

PREFIX = 'mm2onnx.'
GRAPH_RULES = 2
"""Number of the rules by which graphs are written; a new one whenever the same model gives another graph.

1: files without a number; batch normalisation folded in float32. 2: folded in float64, see `fold`.
"""
LATER = dict(rules='1', edits='[]')
"""Fields that files of older versions lack -> what they stand for, as JSON."""
POSITIVE = dict(opset=1, batch=1, height=0, width=0, max_candidates=0)
"""Options that are sizes -> the least that an export has."""


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What an exported file says about itself.

    Attributes:
        family: model family, e.g. 'atss'.
        form: what the graph contains of the post-processing: 'full', 'decode' or 'raw'; of a streaming model,
            which graph of its contract it is.
        spec: names, shapes and tolerances of its tensors.
        preprocess: how an image, or the images of all cameras, or points become its input.
        classes: class names, by label.
        postprocess: what the post-processing that the graph leaves out has to know.
        options: the export options (opset, exporter, dynamic, batch size ...).
        config: file name of the config.
        config_sha256: hash of the model and test pipeline of the config.
        checkpoint_sha256: hash of the checkpoint file.
        versions: versions of the packages that made the file.
        rules: number of the graph rules that the file was written by, see `GRAPH_RULES`.
        edits: commands that changed the graph after the export, in order: each a dict of `command`,
            `arguments` and the `versions` of packages that did it.
    """

    family: str
    form: str
    spec: GraphSpec
    preprocess: PreprocessRule | preprocess_multiview.MultiViewRule | VoxelRule
    classes: tuple[str, ...]
    postprocess: dict[str, Any]
    options: dict[str, Any]
    config: str
    config_sha256: str
    checkpoint_sha256: str
    versions: dict[str, str]
    rules: int = GRAPH_RULES
    edits: tuple[dict[str, Any], ...] = ()

    def to_props(self) -> dict[str, str]:
        """Return the `metadata_props` entries: one JSON value per field."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values.update(spec=self.spec.to_json(), preprocess=self.preprocess.to_json())
        return {PREFIX + name: json.dumps(value) for name, value in values.items()}

    @classmethod
    def from_props(cls, props: Mapping[str, str], path: object = 'the file') -> Metadata:
        """Rebuild from `metadata_props`.

        Args:
            props: the entries of the file.
            path: the file, for the message.

        Raises:
            ModelFileError: the file was not written by mm2onnx, or its metadata was damaged.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in fields if PREFIX + name not in props and name not in LATER]
        if missing:
            raise ModelFileError(
                f'{path}: has no mm2onnx metadata ({PREFIX}{missing[0]} is missing); '
                f'export it with tools/deployment/pytorch2onnx.py'
            )
        try:
            values = {name: json.loads(props.get(PREFIX + name, LATER.get(name))) for name in fields}
            values.update(
                edits=tuple(values['edits']),
                spec=GraphSpec.from_json(values['spec']),
                classes=tuple(values['classes']),
                preprocess=_rule_from_json(values['preprocess']),
            )
            _check_options(values['options'])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ModelFileError(
                f'{path}: its mm2onnx metadata is damaged ({error}); export it again'
            ) from error
        return cls(**values)

    def require(self, path: object, family: str, forms: tuple[str, ...] = ()) -> None:
        """Refuse a file of another family or form.

        Raises:
            ModelFileError: the message says what the file is.
        """
        if self.family != family:
            raise ModelFileError(f'{path}: is a model of family {self.family!r}, expected {family!r}')
        if forms and self.form not in forms:
            raise ModelFileError(
                f'{path}: its post-processing form is {self.form!r}, expected {" or ".join(forms)}'
            )


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that lack what every export says of itself, or that have another type."""
    from mmdeploy_ext.family import ExportOptions
    from mmdeploy_ext.sequence.family import SequenceOptions

    kinds: dict[str, type] = {'cfg_options': dict}
    for kind in (ExportOptions, SequenceOptions):
        kinds.update({field.name: type(field.default) for field in dataclasses.fields(kind)})
    for name in dict.fromkeys(['opset', 'exporter', *options]):
        value, kind = options[name], kinds.get(name)
        kind = list if kind is tuple else kind
        if kind and type(value) is not kind:
            raise ValueError(f'options.{name} is {value!r}, expected {kind.__name__}')
        if name in POSITIVE and value < POSITIVE[name]:
            raise ValueError(f'options.{name} is {value}, expected at least {POSITIVE[name]}')


def _rule_from_json(
    content: Mapping[str, Any],
) -> PreprocessRule | preprocess_multiview.MultiViewRule | VoxelRule:
    if 'voxel_size' in content:
        from mmdeploy_ext.preprocess_points import VoxelRule

        return VoxelRule.from_json(content)
    several = content.get('kind') == preprocess_multiview.KIND
    return (preprocess_multiview.MultiViewRule if several else PreprocessRule).from_json(content)


def read_metadata(path: str) -> Metadata:
    """Read the metadata of an ONNX file, through the onnx package.

    Raises:
        ModelFileError: missing or corrupt file, or one without mm2onnx metadata.
    """
    return Metadata.from_props(read_props(path), path)


def read_props(path: object) -> dict[str, str]:
    """Return the `metadata_props` of an ONNX file, through the onnx package.

    Raises:
        ModelFileError: missing or corrupt file.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except FileNotFoundError as error:
        raise ModelFileError(f'{path}: no such ONNX file') from error
    except Exception as error:
        raise ModelFileError(f'{path}: is not a readable ONNX file ({type(error).__name__})') from error
    return {entry.key: entry.value for entry in model.metadata_props}
