"""What proofs of files with `Metadata` share, which sparse backbones lack: fresh export, provenance."""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import Metadata, read_metadata
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.graph.io import files
from mmdeploy_ext.graph.io.checks import is_sparse
from mmdeploy_ext.proving import half
from mmdeploy_ext.proving.levels.base import Proof
from mmdeploy_ext.proving.levels.graph_level import judge
from mmdeploy_ext.proving.levels.sparse_structure import check_dialect
from mmdeploy_ext.proving.levels.structure import check_structure
from mmdeploy_ext.proving.provenance import override_notes, provenance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.proving.fresh import Reference
    from mmdeploy_ext.proving.results import Check, GraphResult

ROUNDED = (
    'sparse files have float16 weights, as their engine takes them: PyTorch ran with the same, and what they '
    'do to its map is a row of its own; what the engine itself rounds is not shown here'
)


@dataclasses.dataclass(frozen=True)
class ExportedFile:
    """See `Proof.read`; with all that it says about itself."""

    path: str
    model: onnx.ModelProto
    metadata: Metadata
    name: str = ''

    @property
    def options(self) -> Mapping[str, Any]:
        """Options that the file was exported with."""
        return self.metadata.options

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the checkpoint and the config that it was made of."""
        return dict(checkpoint=self.metadata.checkpoint_sha256, config=self.metadata.config_sha256)

    @property
    def model_classes(self) -> Sequence[Mapping[str, Any]]:
        """Classes of the model that no installed library has, as the export found them."""
        return self.metadata.model_classes


def open_file(path: str) -> ExportedFile:
    """Read an ONNX file and what it says about itself.

    Raises:
        ModelFileError: missing, corrupt, weights cut short or not there, or not written by mm2onnx.
    """
    metadata = read_metadata(path)
    return ExportedFile(path, files.load(path), metadata)


class ExportedProof(Proof):
    """A proof of files with `Metadata`."""

    def __init__(self, *given: Any) -> None:
        """See `Proof`; the engine shows what float16 does to the files."""
        super().__init__(*given)
        if self.metadata[-1].precision == 'fp16':
            self.engine = half.proof_engine(self.kind, self.engine)

    @property
    def kind(self) -> str:
        """Registered name of the engine."""
        return str(self.engine.get('engine', 'OnnxRuntimeBackend'))

    @property
    def metadata(self) -> list[Metadata]:
        """Of every file."""
        return [file.metadata for file in self.files]

    def read(self, path: str) -> ExportedFile:
        file, family = open_file(path), self.deployment.family.name
        if file.metadata.family != family:
            raise ModelFileError(
                f'{path}: is a model of family {file.metadata.family!r}; {self.deployment.config} is '
                f'{family!r}'
            )
        return file

    def facts(self) -> dict[str, Any]:
        options, last = self.files[-1].options, self.metadata[-1]
        named = {name: options[name] for name in ('opset', 'exporter')}
        return dict(options=options, **named, exported_with=last.versions)

    @abc.abstractmethod
    def expected(self, file: ExportedFile) -> tuple[Reference, Any, GraphSpec | None]:
        """Return what the graph of a file is compared with, how samples become its input, its contract."""

    def graph(self, file: ExportedFile) -> GraphResult:
        return judge(file.model, file.metadata, self.expected(file)[0], file.name)

    def checks(self, file: ExportedFile) -> list[Check]:
        promised = self.expected(file)[1:]
        if is_sparse(file.model):
            checks, notes = check_dialect(file.path, file.model)
            known = self.verdict.notes
            known += [note for note in (*notes, ROUNDED) if note not in known]
        else:
            checks = check_structure(file.model, file.metadata)
        return [*checks, *provenance(self.deployment, file.metadata, *promised)]

    def notes(self) -> list[str]:
        files = 'the files were' if self.deployment.family.files else 'the file was'
        return override_notes(self.deployment, self.metadata[-1], files)
