"""Parameters of tests, of which a few are in the suite and the others in the matrix."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

needs_driving = pytest.mark.skipif(
    importlib.util.find_spec('mm2onnx_driving') is None, reason='needs mm2onnx-driving'
)


def in_suite(cases: Iterable[Any], *chosen: Any) -> list[Any]:
    """Return the cases as parameters; those that are not chosen are marked `matrix`."""
    cases = list(cases)
    missing = [case for case in chosen if case not in cases]
    assert not missing, f'{missing}: no such cases'
    return [
        case
        if case in chosen
        else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.matrix)
        for case in cases
    ]
