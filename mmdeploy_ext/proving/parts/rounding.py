"""Rounding of a whole test path: results in float64, and integers chosen within rounding."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mmdeploy_ext.base.arrays import to_array
from mmdeploy_ext.proving.float64 import rounding_of
from mmdeploy_ext.proving.parts.results import flat_arrays, match_results
from mmdeploy_ext.proving.parts.samples import run_test_path
from mmdeploy_ext.spec.comparison import same_bits
from mmdeploy_ext.spec.slices import DRAWS, MOST_ROUNDING, ROUNDINGS
from mmdeploy_ext.spec.tensors import DEFAULT_RTOL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.proving.parts.model import ModelFactory
    from mmdeploy_ext.spec.results import TensorRow

CHOICE = 'choice '
"""Prefix of a choice's number, unlike names of results."""


class _Choices(TorchFunctionMode):
    """Keeps the values of `argmax` and `max` along an axis, (n, values), and the indices (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[np.ndarray, np.ndarray]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        axis = kwargs.get('dim', args[1] if len(args) > 1 else None)
        if getattr(func, '__name__', '') in ('argmax', 'max') and isinstance(axis, int):
            values = to_array(args[0]) if args else to_array(kwargs['input'])
            indices = to_array(results if isinstance(results, torch.Tensor) else results.indices)
            if values.dtype.kind == 'f':
                values = np.moveaxis(values, axis, -1)
                self.found.append((values.reshape(-1, values.shape[-1]), indices.ravel()))
        return results


@dataclasses.dataclass
class WholeRounding:
    """How far two correct results of the last sample may differ.

    Attributes:
        title: of the results.
        reference: PyTorch's results of the last sample.
        factory: makes the fresh model.
        samples: keyword arguments of the test path up to that sample.
        ties: lines on integers that rounding decides.
    """

    title: str
    reference: Any
    factory: ModelFactory
    samples: Sequence[Any]
    ties: list[str] = dataclasses.field(default_factory=list)

    @functools.cached_property
    def _distances(self) -> Any:
        model = self.factory.make()
        run = functools.partial(self._run, model)
        named = {f'{CHOICE}{index}': values for index, (values, _) in enumerate(self._last[1])}
        return rounding_of(model, {**self._arrays(self.reference), **named}, run)

    @functools.cached_property
    def _last(self) -> tuple[Sequence[Any], list[tuple[np.ndarray, np.ndarray]]]:
        """The samples that affect the results (only the last if it suffices), and the choices."""
        expected = flat_arrays(self.reference)
        result, choices = self._results(self.factory.make(), self.samples[-1:])
        if same_bits(flat_arrays(result), expected):
            return self.samples[-1:], choices
        return self.samples, self._results(self.factory.make(), self.samples)[1]

    def _results(
        self, model: torch.nn.Module, samples: Sequence[Any]
    ) -> tuple[Any, list[tuple[np.ndarray, np.ndarray]]]:
        for sample in samples:
            with torch.no_grad(), _Choices() as choices:
                result = run_test_path(model, sample)
        return result, choices.found

    def _run(self, model: torch.nn.Module) -> dict[str, np.ndarray]:
        result, choices = self._results(
            copy.deepcopy(model), self._last[0]
        )  # a run changes the model's memory
        named = {f'{CHOICE}{index}': values for index, (values, _) in enumerate(choices)}
        return {**self._arrays(result), **named}

    def _arrays(self, result: Any) -> dict[str, np.ndarray]:
        return match_results(self.title, self.reference, result).arrays

    def distances(self, draws: int) -> Mapping[str, np.ndarray]:
        """See `spec.comparison.Rounding`."""
        return self._distances(draws)

    def judge(self, row: TensorRow, reference: np.ndarray, candidate: np.ndarray) -> TensorRow:
        """Pass a row of integers if every difference is a choice within rounding."""
        if row.passed or reference.dtype.kind not in 'iu' or reference.shape != candidate.shape:
            return row
        expected, got = reference.ravel().astype(np.int64), candidate.ravel().astype(np.int64)
        places = np.flatnonzero(expected != got)
        for index, (values, indices) in enumerate(self._last[1]):
            if not np.array_equal(indices, expected) or not 0 <= got.min() <= got.max() < values.shape[1]:
                continue
            gaps = values[places, expected[places]] - values[places, got[places]]
            most = MOST_ROUNDING * DEFAULT_RTOL * np.abs(values[places]).max(axis=1)
            if (gaps > most).any():
                continue
            for draws in range(DRAWS + 1):
                rounding = self.distances(draws).get(f'{CHOICE}{index}', np.zeros_like(values))
                if (gaps <= ROUNDINGS * 2 * rounding[places].max(axis=1)).all():
                    self.ties.append(f'{row.tensor}: {len(places)} of {expected.size} values')
                    return dataclasses.replace(row, passed=True, reason='')
        return row
