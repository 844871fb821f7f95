"""What proofs of files with `Metadata` share, which sparse backbones have not: fresh export, provenance."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import Metadata, read_metadata
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.proof import half
from mmdeploy_ext.proof.levels.base import Proof
from mmdeploy_ext.proof.levels.graph_level import judge
from mmdeploy_ext.proof.levels.structure import check_structure
from mmdeploy_ext.proof.provenance import hashes_of, override_notes, provenance

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.proof.fresh import Reference
    from mmdeploy_ext.proof.levels.graph_result import GraphResult
    from mmdeploy_ext.proof.results import Check


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """One file and what it says about itself.

    Attributes:
        path: of it.
        model: its content.
        metadata: what it says.
        name: of the graph, '' where the model is one file.
    """

    path: str
    model: onnx.ModelProto
    metadata: Metadata
    name: str = ''


def open_file(path: str) -> ExportedFile:
    """Read an ONNX file and what it says about itself.

    Raises:
        ModelFileError: missing, corrupt, weights cut short or not there, or not written by mm2onnx.
    """
    from mmdeploy_ext.graph.io import files

    metadata = read_metadata(path)
    return ExportedFile(path, files.load(path), metadata)


class ExportedProof(Proof):
    """A proof of files with `Metadata`.

    Attributes:
        metadata: of every file.
    """

    def read(self, path: str) -> ExportedFile:
        """See `Proof.read`."""
        file, family = open_file(path), self.deployment.family.name
        if file.metadata.family != family:
            raise ModelFileError(
                f'{path}: is a model of family {file.metadata.family!r}; {self.deployment.config} is '
                f'{family!r}'
            )
        return file

    @property
    def metadata(self) -> list[Metadata]:
        """What every file says of itself."""
        return [file.metadata for file in self.files]

    def facts(self) -> dict[str, Any]:
        """See `Proof.facts`."""
        last = self.metadata[-1]
        return dict(
            options=last.options,
            opset=last.options['opset'],
            exporter=last.options['exporter'],
            exported_with=last.versions,
        )

    def options(self, file: ExportedFile) -> Mapping[str, Any]:
        """See `Proof.options`."""
        return file.metadata.options

    def hashes(self, file: ExportedFile) -> dict[str, str]:
        """See `Proof.hashes`."""
        return hashes_of(file.metadata)

    def graph(self, file: ExportedFile) -> GraphResult:
        """See `Proof.graph`."""
        return judge(file.model, file.metadata, self.fresh(file), file.name)

    def structure(self, file: ExportedFile) -> list[Check]:
        """See `Proof.structure`."""
        return check_structure(file.model, file.metadata)

    def provenance(self, file: ExportedFile) -> list[Check]:
        """See `Proof.provenance`."""
        return provenance(self.deployment, file.metadata, *self.promised(file))

    @abc.abstractmethod
    def fresh(self, file: ExportedFile) -> Reference:
        """Return what the graph of a file is compared with."""

    @abc.abstractmethod
    def promised(self, file: ExportedFile) -> tuple[Any, GraphSpec | None]:
        """Return how samples become the input, and the contract of a file with these options."""

    @property
    def engine_kind(self) -> str:
        """Registered name of the engine."""
        return str(self.engine.get('engine', 'OnnxRuntimeBackend'))

    def show_half(self) -> None:
        """Let the engine show what float16 does to these files."""
        self.engine = half.proof_engine(self.metadata[-1], self.engine_kind, self.engine)

    def notes(self) -> list[str]:
        """See `Proof.notes`."""
        files = 'the files were' if self.deployment.family.files else 'the file was'
        return override_notes(self.deployment, self.metadata[-1], files)
