"""The table of models that nobody here wrote is that of the results that are kept."""

import json

import pytest

from docs._pages.modules import table


def test_the_page_has_the_results_that_are_kept(tmp_path, monkeypatch):
    before = table.PAGE.read_text(encoding='utf-8')
    monkeypatch.setattr(table, 'PAGE', tmp_path / 'page.md')
    table.PAGE.write_text(before, encoding='utf-8')
    table.write_page(json.loads(table.RESULTS.read_text(encoding='utf-8')))
    assert table.PAGE.read_text(encoding='utf-8') == before


@pytest.mark.parametrize('name', json.loads(table.RESULTS.read_text(encoding='utf-8')))
def test_no_fault_of_a_model_is_proven(name):
    faults = json.loads(table.RESULTS.read_text(encoding='utf-8'))[name]['faults']
    assert len(faults) == 10 and 'PROVEN' not in faults.values()
