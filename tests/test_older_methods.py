"""Ranges of releases and refuted methods in what `docs/_pages/older_methods.py` writes."""

import importlib.util
import json
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
ORDER = ['2.6.0', '2.7.0', '2.9.0', '2.10.0', '2.9.0+toy', '2.10.0+toy']


@pytest.fixture(scope='module')
def older_methods():
    path = REPOSITORY / 'docs/_pages/older_methods.py'
    spec = importlib.util.spec_from_file_location('older_methods', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(('releases', 'text'), [
    (['2.6.0', '2.7.0', '2.9.0'], '2.6.0-2.9.0'), (['2.6.0', '2.9.0'], '2.6.0, 2.9.0'),
    (['2.10.0', '2.9.0+toy', '2.10.0+toy'], '2.10.0, 2.9.0+toy, 2.10.0+toy')])
def test_ranges_are_of_releases_alone(older_methods, releases, text):
    assert older_methods.ranges_of(releases, ORDER) == text


def test_the_next_releases_are_ordered_by_number_and_no_copies(older_methods):
    assert older_methods.next_ones_of('2.7.0', ORDER) == ['2.9.0', '2.10.0']
    assert older_methods.next_ones_of('2.9.0+toy', ORDER) == ['2.10.0']


def test_a_method_that_one_class_refutes_counts_in_none(older_methods, tmp_path, monkeypatch):
    def found(own, counted):
        methods = {kind: dict(get_bboxes=own) for kind in ('AHead', 'BHead')}
        return dict(dense=dict(methods=methods, followed={
            kind: dict(get_bboxes=digests) for kind, digests in counted.items()}))

    older = found('old', dict(AHead=['old', 'new'], BHead=['old']))  # of the cases of AHead none shows it
    newer = found('new', dict(AHead=['new'], BHead=['new']))
    (tmp_path / 'mmdeploy_ext/families/dense').mkdir(parents=True)
    monkeypatch.setattr(older_methods, 'ROOT', tmp_path)
    older_methods.write_tables(['dense'], {'2.6.0': older, '2.7.0': newer})
    table = json.loads((tmp_path / 'mmdeploy_ext/families/dense/older_methods.json').read_text())
    assert table['releases'] == ['2.6.0', '2.7.0']
    assert table['methods']['AHead']['get_bboxes'] == {'old': '2.6.0', 'new': '2.7.0'}
