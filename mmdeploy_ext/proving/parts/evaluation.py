"""Evaluation of a config's data set in PyTorch and with sessions in place of parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.families.evaluate.loop import Network
from mmdeploy_ext.proving.metrics import compare_metrics
from mmdeploy_ext.proving.parts.swap import open_sessions, swapped

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from mmdeploy_ext.proving.parts.folder import CutFolder
    from mmdeploy_ext.proving.parts.model import ModelFactory
    from mmdeploy_ext.spec.results import MetricRow


class OneByOneDetector(Network):
    """A detector for single samples in data set order, as parts and memories require."""

    one_by_one = True

    def __init__(self, model: nn.Module) -> None:
        from mmcv.parallel import MMDataParallel

        device = next(model.parameters()).device
        ids = [device.index or 0] if device.type == 'cuda' else [-1]
        self.model = MMDataParallel(model, device_ids=ids)
        if device.type == 'cpu':
            self.model.device_ids = []

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        with torch.no_grad():
            return self.model(return_loss=False, rescale=True, **data)


class SwappedDetector(OneByOneDetector):
    """A detector with sessions in place of its parts."""

    def __init__(self, factory: ModelFactory, folder: CutFolder) -> None:
        self.own_model = factory.make()
        self.sessions = open_sessions(folder)
        super().__init__(self.own_model)

    def run(self, data: Mapping[str, Any], indices: Sequence[int]) -> list[Any]:
        with swapped(self.own_model, self.sessions):
            return super().run(data, indices)


def compare_on_dataset(factory: ModelFactory, folder: CutFolder, metrics: Sequence[str]) -> list[MetricRow]:
    """Evaluate `data.test` by both; the export's precision sets the bars."""
    networks = OneByOneDetector(factory.make()), SwappedDetector(factory, folder)
    return compare_metrics(factory.cfg, *networks, metrics, folder.options['precision'])
