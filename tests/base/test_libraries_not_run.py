"""A repository's own mmdet3d 0.x that did not run is said first, and its file is not proven."""

import shutil

import pytest

import toy_anchor3d
from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.cli import export_app, verify_app

NOT_RUN = "the repository's own mmdet3d 0.17.2 did not run"


@pytest.mark.matrix
def test_a_copy_that_did_not_run_is_said_first_and_its_file_is_not_proven(tmp_path, monkeypatch, capsys):
    _, _, config, checkpoint = toy_anchor3d.exported('pointpillars')
    (tmp_path / 'mmdet3d').mkdir()
    (tmp_path / 'mmdet3d/__init__.py').touch()
    (tmp_path / 'mmdet3d/version.py').write_text("__version__ = '0.17.2'\n")
    shutil.copy(config, tmp_path / 'a.py')
    monkeypatch.chdir(tmp_path)
    assert export_app.main(['a.py', '--check']) == 0
    assert capsys.readouterr().out.startswith(NOT_RUN)
    proof = ['--frames', '2', '--json', 'v.json']
    assert export_app.main(['a.py', checkpoint, '--output-file', 'graphs', '--verify', *proof]) == 1
    assert capsys.readouterr().out.startswith(NOT_RUN)
    verdict = read_json('v.json')
    assert verdict['verdict'] == 'not proven'
    assert verdict['subject']['libraries_not_run'] == {'mmdet3d 0.17.2': 'mmdet3d 1.0.0rc6'}
    assert verify_app.main(['a.py', checkpoint, 'graphs', '--library', 'installed', *proof]) == 0
    assert read_json('v.json')['verdict'] == 'proven against the installed mmdet3d 1.0.0rc6'
