"""The table of forks has what was measured, and its rows name where each figure is from."""

import subprocess

import pytest

from docs._pages import forks

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
