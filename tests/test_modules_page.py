"""The table of models that nobody here wrote is that of the results that are kept."""

import json

import pytest

from docs._pages.modules import table


def test_the_pages_have_the_results_that_are_kept(tmp_path):
    pages = {tmp_path / page: table.DOCS / page for page in table.HEADS}
    for copy, page in pages.items():
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(page.read_text(encoding='utf-8'), encoding='utf-8')
    table.write_pages(json.loads(table.RESULTS.read_text(encoding='utf-8')), tmp_path)
    for copy, page in pages.items():
        assert copy.read_text(encoding='utf-8') == page.read_text(encoding='utf-8')


@pytest.mark.parametrize('name', json.loads(table.RESULTS.read_text(encoding='utf-8')))
def test_no_fault_of_a_model_is_proven(name):
    faults = json.loads(table.RESULTS.read_text(encoding='utf-8'))[name]['faults']
    assert len(faults) == 10 and 'PROVEN' not in faults.values()


def test_a_model_of_which_no_file_is_proven_has_a_row_without_faults(monkeypatch):
    monkeypatch.setattr(table, 'export', lambda model, module, exporter, path: '')
    monkeypatch.setattr(table, 'simplify', lambda source, path: 'Error: no')
    failed = dict(verdict='NOT PROVEN', error=1.0)
    monkeypatch.setattr(table, 'prove', lambda *_, **__: failed)
    result = table.measure(table.Model('toy', lambda: None, lambda seed: ()), [])
    assert result['faults'] == {} and table.faults_cell(result['faults']) == ''
    assert table.cell(result['dynamo']) == '**NOT PROVEN**'


def test_published_models_are_refused_without_their_files(capsys):
    with pytest.raises(SystemExit):
        table.main(['yunet'])
    assert 'need --checkout and --files' in capsys.readouterr().err
