"""Files of an export, read again."""

import pytest

import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
import toy_centerpoint
from mmdeploy_ext.core.errors import ModelFileError, UsageError
from mmdeploy_ext.families.base import FAMILIES
from mmdeploy_ext.families.files import check_output
from mmdeploy_ext.proving import ladder


@pytest.fixture(scope='module')
def folder():
    return toy_centerpoint.exported()[1]


def test_a_folder_of_graphs_is_no_file_and_the_other_way_round(folder, tmp_path):
    check_output(str(tmp_path / 'any'), FAMILIES['dense'].choose(), FAMILIES['dense'])
    with pytest.raises(UsageError, match=r'm\.onnx'):
        check_output(str(tmp_path / 'm.onnx'), FAMILIES['centerpoint'].choose(), FAMILIES['centerpoint'])


def test_a_proof_of_a_folder_without_one_of_its_graphs_is_refused_by_its_name():
    deployment, folder, *_ = toy_centerpoint.exported()
    with pytest.raises(ModelFileError, match=r'backbone.onnx'):
        ladder.prove(deployment, [str(folder / 'head.onnx')])
