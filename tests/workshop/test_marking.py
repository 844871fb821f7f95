"""Cases that a `suite` mark names stay in the suite; the others are of the matrix."""

import types

import pytest

import marking


class Item:
    """Stands for a collected case of a test whose mark names the cases 'a' and 'b'."""

    def __init__(self, case):
        self.nodeid, self.added = f'tests/test_x.py::test_y[{case}]', []

    def get_closest_marker(self, name):
        return pytest.mark.suite('a', 'b').mark if name == 'suite' else None

    def add_marker(self, mark):
        self.added.append(mark.name)


def marked(cases, *words):
    """Return case -> names of the marks that it gets, where pytest was called with these words."""
    items = {case: Item(case) for case in cases}
    session = types.SimpleNamespace(config=types.SimpleNamespace(args=words))
    marking.pytest_collection_modifyitems(session, list(items.values()))
    return {case: item.added for case, item in items.items()}


def test_cases_that_the_mark_does_not_name_are_of_the_matrix():
    assert marked('abc', 'tests') == dict(a=[], b=[], c=['matrix'])


def test_a_case_that_is_named_and_not_there_is_an_error_unless_single_cases_were_asked_for():
    with pytest.raises(pytest.UsageError, match=r'test_y\[b\].*names cases that are not there'):
        marked('ac', 'tests')
    assert marked('ac', 'tests/test_x.py::test_y[c]') == dict(a=[], c=['matrix'])
