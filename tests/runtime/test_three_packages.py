"""A file runs where numpy, opencv and onnxruntime alone are installed."""

import json
import pickle
from pathlib import Path

import pytest

from few_packages import run_code, run_command
from mmdeploy_ext import open_model
from mmdeploy_ext.base.errors import ModelFileError, UsageError
from mmdeploy_ext.graphs.io.files import read
from mmdeploy_ext.runtime.preprocess.pictures import read_image
from mmdeploy_ext.spec.digest import sealed
from mmdeploy_ext.spec.metadata import read_props

FILE, PICTURE = 'demo/atss_toy.onnx', 'demo/toy.jpg'
PACKAGES = ('numpy', 'cv2', 'onnxruntime')
OPENED = """
from mmdeploy_ext import open_model
from mmdeploy_ext.families import catalogue
from mmdeploy_ext.spec.registry import program_loop
catalogue.import_installed = lambda: sys.exit('other packages were searched')
assert program_loop('centerpoint', 'deploy') is None
from mmdeploy_ext.runtime.preprocess.pictures import read_image
with open_model(sys.argv[1]) as model:
    print(len(model(read_image(sys.argv[2]))))
"""


@pytest.fixture(scope='module')
def results():
    with open_model(FILE) as model:
        return model(read_image(PICTURE))


def test_the_command_runs_with_three_packages(results, tmp_path):
    words = ('run', FILE, PICTURE, '--out', tmp_path / 'o.png', '--json', tmp_path / 'o.json')
    done = run_command(*words, packages=PACKAGES)
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads((tmp_path / 'o.json').read_text())['images']
    assert len(entry['detections']) == len(results) > 50 and (tmp_path / 'o.png').is_file()


def test_open_model_runs_with_three_packages_and_searches_no_others(results):
    done = run_code(OPENED, FILE, PICTURE, packages=PACKAGES)
    assert done.stdout.split() == [str(len(results))], done.stderr


def test_an_open_model_says_that_a_worker_opens_it():
    with open_model(FILE) as model, pytest.raises(UsageError, match='open_model'):
        pickle.dumps(model)


def test_a_damaged_file_is_refused_with_three_packages(tmp_path):
    content = bytearray(sealed(Path(FILE).read_bytes()))
    content[len(content) // 2] ^= 1
    (tmp_path / 'm.onnx').write_bytes(content)
    done = run_command('run', tmp_path / 'm.onnx', PICTURE, '--out', tmp_path, packages=PACKAGES)
    assert done.returncode == 2 and 'is damaged' in done.stderr


def test_metadata_are_those_that_onnx_reads():
    assert read_props(FILE) == {entry.key: entry.value for entry in read(FILE).metadata_props}


@pytest.mark.parametrize('content', [b'\0\0', b'# text\n' * 9, b'\x3a\xff\x7fab', b'PK\3\4' + bytes(40)])
def test_other_content_and_a_file_that_was_cut_short_are_refused(tmp_path, content):
    (tmp_path / 'm.onnx').write_bytes(content)
    with pytest.raises(ModelFileError, match=r'm\.onnx: is not a readable ONNX file'):
        read_props(tmp_path / 'm.onnx')
