"""PyTorch behind the same interface: the stages of an export, run eagerly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from mmdeploy_ext.engines.base import Backend

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.spec.tensors import GraphSpec, Stage


class TorchBackend(Backend):
    """`spec` is set from the start; `deactivate` frees nothing."""

    engine = 'torch'

    def __init__(self, stages: Sequence[Stage], spec: GraphSpec, device: str = 'cpu') -> None:
        self.stages, self.spec, self.device = list(stages), spec, torch.device(device)

    def activate(self) -> None:
        for stage in self.stages:
            stage.module.eval().to(self.device)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        complete = self.spec.with_defaults(feeds)
        # torch takes no reversed axes, such as a picture with swapped channels
        arrays = {name: np.asarray(array, order='C') for name, array in complete.items()}
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        with torch.no_grad():
            for stage in self.stages:
                outputs = stage.module(*(tensors[name] for name in stage.inputs))
                outputs = outputs if isinstance(outputs, tuple | list) else (outputs,)
                tensors.update(zip(stage.outputs, outputs, strict=True))
        return {name: tensors[name].cpu().numpy() for name in self.spec.output_names}
