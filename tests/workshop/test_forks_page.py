"""The table of forks has what was measured, and its rows name where each figure is from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from docs._pages import forks

REPOSITORY = Path(__file__).resolve().parents[2]
ROW = dict(name='Toy', repository='owner/toy', commit='', config='configs/toy.py', cfg_options=['a=1'])
FIGURES = dict(imports='yes', patches=['numpy_aliases'], seconds=9, worst_iou=0.9999, worst_score=2e-6)


def test_a_row_says_once_what_both_modes_gave_and_names_the_mode_otherwise():
    proven = dict(FIGURES, verdict='PROVEN /tmp/m.onnx equals the PyTorch model: 5 inputs')
    refused = dict(imports='yes', patches=[], seconds=3, error='error: no')
    row = dict(ROW, commit='0123456789' * 4)
    title, imports, exported, verdict, worst, seconds, patches = forks.cells(row, dict(a=proven, b=proven))
    assert 'configs/toy.py' in title and (imports, exported, verdict) == ('yes', 'yes', 'PROVEN')
    assert (worst, seconds, patches) == ('0.999900, 2.0e-06', '9, 9', '`numpy_aliases`')
    exported = forks.cells(row, {'mm2onnx': proven, 'PYTHONPATH=.': refused})[2]
    assert exported == 'mm2onnx: yes; PYTHONPATH=.: error: no'


def test_a_checkout_at_another_commit_is_refused(tmp_path):
    (tmp_path / 'toy').mkdir()
    with pytest.raises(SystemExit, match=r'toy: is at .*; expected abc'):
        forks.measure(dict(ROW, commit='abc'), tmp_path, tmp_path)
    text = subprocess.run(
        [sys.executable, '-m', 'docs._pages.forks', '--help'],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert 'folder with the checkouts' in text


def test_an_export_that_fails_is_not_what_was_proven_of_the_first_way_to_start(tmp_path, monkeypatch):
    monkeypatch.setattr(forks, 'commit_of', lambda folder: '')
    (tmp_path / 'Toy.json').write_text('{"of": "an earlier run"}')

    def run(words, folder, path, log):
        if '-c' in words:
            return 0, json.dumps(dict(patches=[], mmdet='2.28.2')), 0.0
        if path:  # the second way to start
            return 1, 'error: no', 1.0
        output = Path(words[words.index('--output-file') + 1]) if '--output-file' in words else Path(words[5])
        output.write_text('a file')
        if '--json' in words:
            summary = dict.fromkeys(forks.PROVEN, 1.0)
            content = dict(summary=summary, cases=[], sequence=[])
            Path(words[words.index('--json') + 1]).write_text(json.dumps(content))
        return 0, 'PROVEN', 1.0

    monkeypatch.setattr(forks, 'run', run)
    first, second = forks.measure(ROW, tmp_path, tmp_path).values()
    assert 'verdict' in first
    assert second['error'] == 'error: no' and 'verdict' not in second


@pytest.mark.parametrize(
    ('words', 'message'), [([], 'give the folder'), (['.', 'nosuch'], 'nosuch: no row of')]
)
def test_rows_that_do_not_exist_and_a_missing_folder_are_refused(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['forks.py', *words])
    with pytest.raises(SystemExit):
        forks.main()
    assert message in capsys.readouterr().err


def test_a_model_that_is_refused_has_no_checkpoint_and_its_row_the_error_of_the_check(tmp_path, monkeypatch):
    def run(words, folder, path, log):
        if '-c' in words:
            return 0, json.dumps(dict(patches=[], mmdet='2.28.2')), 0.0
        return 2, 'error: no such head' if '--check' in words else 'error: no rule for a layer', 3.4

    monkeypatch.setattr(forks, 'commit_of', lambda folder: '')
    monkeypatch.setattr(forks, 'run', run)
    for figures in forks.measure(ROW, tmp_path, tmp_path).values():
        assert (figures['error'], figures['seconds']) == ('error: no such head', 3)


def test_files_that_go_to_other_paths_of_another_repository_are_copied_and_linked_where_they_are_from(
    tmp_path, monkeypatch
):
    source, base = tmp_path / 'source', tmp_path / 'base'
    for path in (source / 'detection/own.py', source / 'net.py', base / 'mmdet/here.py'):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    git = ['git', '-C', str(base), '-c', 'user.name=a', '-c', 'user.email=a@b']
    for words in (['init', '-q'], ['add', '.'], ['commit', '-qm', 'base']):
        subprocess.run([*git, *words], check=True)
    over = dict(
        repository='owner/base', commit='HEAD', copies={'detection': 'configs/own', 'net.py': 'mmdet/net.py'}
    )
    joined = forks.joined(source, base, over, tmp_path / 'joined')
    files = {str(path.relative_to(joined)) for path in joined.rglob('*.py')}
    assert files == {'configs/own/own.py', 'mmdet/net.py', 'mmdet/here.py'}
    row = dict(ROW, commit='0' * 40, over=over, config='configs/own/own.py')
    title, *_ = forks.cells(row, dict(a=dict(FIGURES)))
    assert f'tree/{"0" * 40}/detection/own.py' in title
