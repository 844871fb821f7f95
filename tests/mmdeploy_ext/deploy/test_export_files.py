"""Files of an export, read again."""

from pathlib import Path

import pytest

import projects.mmdet_plugin  # noqa: F401
import toy_centerpoint
from mmdeploy_ext.deploy.files import check_output, read_files
from mmdeploy_ext.families.base import FAMILIES


@pytest.fixture(scope='module')
def folder():
    return toy_centerpoint.exported()[1]


def test_the_family_states_the_order_of_the_graphs_in_a_folder(folder, monkeypatch):
    names = FAMILIES['centerpoint'].files
    assert [Path(path).stem for path in read_files(str(folder)).paths] == list(names)
    monkeypatch.setattr(type(FAMILIES['centerpoint']), 'files', names[::-1])
    found = read_files(str(folder))
    assert [Path(path).stem for path in found.paths] == list(names[::-1])
    assert found.metadata.form == names[0], 'the last graph gives the outputs'


def test_a_folder_of_graphs_is_no_file_and_the_other_way_round(folder, tmp_path):
    check_output(str(tmp_path / 'any'), FAMILIES['dense'].choose(), FAMILIES['dense'])
    with pytest.raises(ValueError, match='deploy contract is several graphs, expected a folder'):
        check_output(str(tmp_path / 'm.onnx'), FAMILIES['centerpoint'].choose(), FAMILIES['centerpoint'])
