"""The files of an export: a family's own, or another program's (`--contract`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.spec.registry import contract_class, program_loop

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from mmdeploy_ext.families.sequence import SequenceReference
    from mmdeploy_ext.runtime.frames import Stepper
    from mmdeploy_ext.spec.options import Options
    from mmdeploy_ext.spec.tensors import Graph, TensorSpec

PUBLISHED = dict(max_gap_s=None)
"""`settings` of loops with a memory: published models know no time gap."""


def contract_of(family: Any, options: Mapping[str, Any]) -> Contract:
    name = options.get('contract', '')
    return (contract_class(family.name, name) or Contract)(family, name)


class Contract:
    """The files of a family itself; base class of the contracts of programs (`register_contract`).

    Attributes:
        used_by: command for a proven file; '': the family's.
        replaces: classes of modules whose work the program does, so that no graph has their operators.
        settings: arguments of the program's loop in a proof.
    """

    used_by: ClassVar[str] = ''
    replaces: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, family: Any, name: str = '') -> None:
        self.family, self.name = family, name

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the graphs in the order of their use; () for one file."""
        return self.family.files

    @property
    def one_file(self) -> bool:
        """Whether an export is one file; otherwise it is a folder."""
        return not self.files

    @property
    def ignores_places(self) -> bool:
        """Whether the files give the same results anywhere on the map."""
        return self.family.ignores_places

    def check(self, cfg: Any) -> None:
        """Raise ConfigError if the program does not run the config's model; called after `Family.check`."""

    def graphs(self, model: torch.nn.Module, options: Options) -> list[Graph]:
        return self.family.graphs(model, options)

    def companions(self, model: torch.nn.Module) -> Mapping[str, str]:
        """Return file name -> text of the files beside the graphs."""
        return {}

    def reference(self, model: torch.nn.Module) -> SequenceReference:
        """Return PyTorch's model as a stepper, including the program's work outside of the graphs."""
        return self.family.reference(model)

    def runner(self, paths: Sequence[str], engine: Mapping[str, Any]) -> Stepper:
        """Return the files on an engine as a stepper; `engine` as in `SequenceFamily.runner`."""
        loop = program_loop(self.family.name, self.name)
        return loop(paths, **self.settings, **engine) if loop else self.family.runner(paths, engine)

    def runner_outputs(self, model: torch.nn.Module, options: Options) -> tuple[TensorSpec, ...]:
        """Return the specs of the tensors that the runner adds to the outputs."""
        return ()
