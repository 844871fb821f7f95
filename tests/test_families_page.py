"""The table of families in docs/architecture.md is that of the registry."""

import sys

from test_guards import REPOSITORY


def test_the_table_of_families_is_that_of_today(monkeypatch):
    monkeypatch.setattr(sys, 'path', [str(REPOSITORY / 'docs/_pages'), *sys.path])
    import families

    text = families.PAGE.read_text(encoding='utf-8')
    assert families.page(text) == text, 'python docs/_pages/families.py'
    assert all(f'\n| {name} | ' in text for name in ('dense', 'yolact', 'streampetr'))
