"""Whose code a config imports: the user's tree first, our models only for types that nobody else has."""

import json
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
NECK = """
    from mmdet.models.builder import NECKS
    from torch import nn


    @NECKS.register_module()
    class CPFPN(nn.Identity):
        pass
"""
CONFIG = """
    plugin = True
    plugin_dir = 'projects/mmdet3d_plugin/'
    model = dict(type='X', neck=dict(type='CPFPN'))
"""


def write(folder, **files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


@pytest.fixture
def fork(tmp_path):
    """A repository with a plugin that has the name of ours and registers a type that we have, too."""
    write(
        tmp_path / 'fork',
        **{
            'projects/__init__.py': '',
            'projects/mmdet3d_plugin/__init__.py': NECK,
            'projects/configs/a.py': CONFIG,
        },
    )
    return tmp_path / 'fork'


FORKS = """
import json, os, sys, traceback
from mmdeploy_ext import compat
compat.apply()
# with torch, most of the time of a process; and what mmdet imports of others
import matplotlib.pyplot, mmcv, scipy.optimize, torchvision
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if not pid:
        for number, name in ((1, 'out'), (2, 'err')):
            os.dup2(os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.chdir(job['cwd'])
        sys.path[:0] = job['folders']
        from mmdeploy_ext.base.config import load_config
        status = 0
        try:
            exec(job['code'], dict(sys=sys, load_config=load_config))
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Return what runs code in a process of its own; the checkout is at the end of the path, as if installed.

    Each process is forked from one that has imported mmcv and libraries of others, and nothing of mmdet.
    """
    place = tmp_path_factory.mktemp('processes')
    command = [sys.executable, '-P', '-c', f'import sys; sys.path.append({str(REPOSITORY)!r})\n{FORKS}']
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, cwd=place, env=environment, **pipes) as server:

        def run_code(code, cwd, *folders):
            out, err = place / 'out', place / 'err'
            job = dict(code=textwrap.dedent(code), cwd=cwd, folders=folders, out=out, err=err)
            server.stdin.write(json.dumps(job, default=str) + '\n')
            server.stdin.flush()
            status = int(server.stdout.readline())
            return types.SimpleNamespace(returncode=status, stdout=out.read_text(), stderr=err.read_text())

        yield run_code
        server.stdin.close()


CLASS_OF_NECK = """
    cfg = load_config({path!r})
    from mmdet.models.builder import NECKS
    print(sys.modules[NECKS.get('CPFPN').__module__].__file__)
"""


def test_the_class_of_the_fork_is_registered_and_not_ours_in_our_checkout(run, fork):
    outcome = run(CLASS_OF_NECK.format(path=str(fork / 'projects/configs/a.py')), REPOSITORY)
    assert outcome.stdout.strip() == str(fork / 'projects/mmdet3d_plugin/__init__.py'), outcome.stderr


def test_our_class_is_registered_for_a_config_that_names_it_without_a_plugin(run, tmp_path):
    write(tmp_path, **{'a.py': "model = dict(type='ATSS', neck=dict(type='CPFPN'))\n"})
    code = """
        load_config('a.py')
        from mmdet.models.builder import MODELS
        print('CPFPN' in MODELS.module_dict, 'RTDETR' in MODELS.module_dict, 'VoVNet' in MODELS.module_dict)
    """
    outcome = run(code, tmp_path)
    assert outcome.stdout.split() == ['True', 'False', 'False'], outcome.stderr


@pytest.mark.parametrize(('version', 'is_taken'), [('2.11.0', True), ('3.3.0', False)])
def test_a_repository_s_own_mmdet_is_imported_if_it_is_of_the_same_age(run, tmp_path, version, is_taken):
    write(
        tmp_path,
        **{
            'mmdet/__init__.py': '',
            'mmdet/version.py': f"__version__ = '{version}'\n",
            'configs/a.py': 'optimizer = dict()\n',
        },
    )
    code = (
        "load_config('configs/a.py')\nimport importlib.util\nprint(importlib.util.find_spec('mmdet').origin)"
    )
    outcome = run(code, tmp_path)
    assert (outcome.stdout.strip() == str(tmp_path / 'mmdet/__init__.py')) == is_taken, outcome.stderr
