"""Parameters of tests, of which a few are in the suite and the others in the matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable


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


def pytest_configure(config: pytest.Config) -> None:
    mark = 'suite(*cases): ids of the cases that the suite has; the others are marked `matrix`'
    config.addinivalue_line('markers', mark)


@pytest.hookimpl(tryfirst=True)  # before those of the matrix are left out
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    """Mark the cases `matrix` that a `suite` mark of their test does not name."""
    chosen, seen = {}, set()
    for item in items:
        mark = item.get_closest_marker('suite')
        if mark:
            test = item.nodeid.partition('[')[0]
            case = item.nodeid[len(test) + 1 : -1]
            chosen[test] = mark.args
            seen.add((test, case))
            if case not in mark.args:
                item.add_marker(pytest.mark.matrix)
    missing = [
        f'{test}[{case}]' for test, cases in chosen.items() for case in cases if (test, case) not in seen
    ]
    if missing and not any('::' in word for word in session.config.args):
        raise pytest.UsageError(f'{missing}: a suite mark names cases that are not there')
