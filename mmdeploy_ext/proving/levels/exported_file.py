"""A file with `Metadata` in a proof: its graph, its checks, and notes on it.

`sparse_file.py` has the same of files of sparse backbones, which have other metadata.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import Metadata, read_metadata
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.io.files import is_sparse
from mmdeploy_ext.proving import half_bars
from mmdeploy_ext.proving.file_checks import check_structure
from mmdeploy_ext.proving.levels.sparse_file import check_dialect
from mmdeploy_ext.proving.provenance import class_name_notes, override_notes, provenance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.exporting.model import Model
    from mmdeploy_ext.proving.results import Check

ROUNDED = (
    'sparse files have float16 weights, as their engine takes them: PyTorch ran with the same, and what they '
    'do to its map is a row of its own; what the engine itself rounds is not shown here'
)


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """A file with `Metadata`.

    Attributes:
        path: its path.
        model: its content, with its weights.
        metadata: what the export, and commands that changed it later, wrote into it, already checked.
        name: name of its graph, for a model of frames or sweeps; else ''.
    """

    path: str
    model: onnx.ModelProto
    metadata: Metadata
    name: str = ''

    @property
    def facts(self) -> dict[str, Any]:
        """Entries of the verdict's subject about the export of the file."""
        return dict(
            options=self.options,
            opset=self.options['opset'],
            exporter=self.options['exporter'],
            exported_with=self.metadata.versions,
        )

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of its export; converting it to float16 and fixing its sizes change them, INT8 does not."""
        return self.metadata.options

    @property
    def edits(self) -> Sequence[str]:
        """Commands that changed it after its export."""
        return self.metadata.edits

    @property
    def hashes(self) -> dict[str, str]:
        """'checkpoint' and 'config' -> hash of that which it was made of, see `Metadata`."""
        return dict(checkpoint=self.metadata.checkpoint_sha256, config=self.metadata.config_sha256)

    @property
    def model_classes(self) -> Sequence[Mapping[str, Any]]:
        """Classes of the model that no installed library has, at the export: `ModelClass.to_json` of each."""
        return self.metadata.model_classes


def open_file(path: str) -> ExportedFile:
    """Read an ONNX file and its metadata.

    Raises:
        ModelFileError: missing, corrupt, weights cut short or not there, or not written by mm2onnx.
    """
    metadata = read_metadata(path)
    return ExportedFile(path, files.load(path), metadata)


def engine_options(
    exported_files: Iterable[ExportedFile], kind: str, engine: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the options of an engine for files: those of `half_bars.proof_engine` if one has float16.

    A file counts that was exported in float16 or converted to it, also if it was quantised afterwards: what
    is not in INT8 is float16 then. `kind` is the registered name of the engine, `engine` are the options that
    were given.
    """
    is_half = any(file.options.get('precision') == 'fp16' for file in exported_files)
    return half_bars.proof_engine(kind, engine) if is_half else dict(engine)


INTERFACE_EDITS = {'fp16', 'set-shape'}
"""Commands that change types or sizes of inputs and outputs, and with them the contract in the metadata."""


def check_file(
    deployment: Model, file: ExportedFile, rule: Any, contract: GraphSpec | None
) -> tuple[list[Check], list[str]]:
    """Check that a file is valid, and that its metadata agree with contract, config and options.

    Args:
        deployment: the config and checkpoint that the file claims to be of.
        file: the file.
        rule: the rule by which samples become its input.
        contract: that of its export; None if the model has no graph of its name.

    Returns:
        The checks, and notes for the reader of the verdict.
    """
    notes: list[str] = []
    if INTERFACE_EDITS & {*file.edits}:
        contract = file.metadata.spec
    if is_sparse(file.model):
        checks, warnings = check_dialect(file.path, file.model)
        notes = [*warnings, ROUNDED]
    else:
        checks = check_structure(file.model, file.metadata)
    return [*checks, *provenance(deployment, file.metadata, rule, contract)], notes


def notes_on_export(deployment: Model, metadata: Metadata) -> list[str]:
    """Return notes on an export and its model, none of which is a failure.

    `metadata` are those of its last file.
    """
    subject = 'the files were' if deployment.family.files else 'the file was'
    overrides = override_notes(deployment, metadata, subject)
    return [*overrides, *class_name_notes(deployment)]
