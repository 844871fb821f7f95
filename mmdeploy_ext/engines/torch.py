"""PyTorch behind the same interface: the chain of stages that an export would write, run eagerly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mmdeploy_ext.engines.base import Backend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.spec import GraphSpec, Stage


class TorchBackend(Backend):
    """A chain of stages in PyTorch: each has a module, and the names of its input and output tensors.

    `spec` is there from the start, and `deactivate` frees nothing: the modules are the caller's.
    """

    engine = 'torch'

    def __init__(self, stages: Sequence[Stage], spec: GraphSpec, device: str = 'cpu') -> None:
        """Keep the options.

        Args:
            stages: stages in the order of execution, as `ImageFamily.stages` returns them.
            spec: contract of the graph that an export of them would be.
            device: 'cpu', 'cuda', 'cuda:1' ...
        """
        self.stages, self.spec, self.device = list(stages), spec, torch.device(device)

    def activate(self) -> None:
        """Put the modules into evaluation mode and move them to the device."""
        for stage in self.stages:
            stage.module.eval().to(self.device)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the stages one after the other; optional inputs that are not fed take their defaults.

        An output that is an input passed on shares its memory. What a module raises is raised as it is.
        """
        complete = self.spec.with_defaults(feeds)
        # torch takes no reversed axes, such as those of a picture whose channels were turned round
        arrays = {name: np.asarray(array, order='C') for name, array in complete.items()}
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        with torch.no_grad():
            for stage in self.stages:
                outputs = stage.module(*(tensors[name] for name in stage.inputs))
                outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
                tensors.update(zip(stage.outputs, outputs, strict=True))
        return {name: tensors[name].cpu().numpy() for name in self.spec.output_names}
