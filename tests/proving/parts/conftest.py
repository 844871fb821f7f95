"""The toy ATSS cut into two files, once for all tests."""

import pytest

import toy_atss
from mmdeploy_ext.proving.parts.proof import export_parts


@pytest.fixture(scope='session')
def cut_toy(tmp_path_factory):
    """Return the parts of the trained toy ATSS, backbone and neck in one file, the head in another."""
    folder = tmp_path_factory.mktemp('cut')
    return export_parts(toy_atss.CONFIG, toy_atss.CHECKPOINT, ['backbone+neck', 'bbox_head'], folder)
