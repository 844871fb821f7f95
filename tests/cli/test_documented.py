"""Commands of the first pages and the Python of all pages run as they stand there, one after another."""

import re
import shlex
import subprocess
import sys

import pytest

from marking import in_suite
from mmdeploy_ext.cli import command
from proofs import fresh_exports_once, samples_alone
from refusals import REPOSITORY

VARIABLES = {'$CONFIG': 'configs/demo/atss_toy.py', '$CKPT': 'demo/checkpoints/atss_toy.pth'}
OWN = 'faster_rcnn_r50_fpn_1x_coco'
"""Config and checkpoint of README's reader: the trained toy stands for them."""

COMMAND_PAGES = [
    'README.md',
    *(f'docs/{name}.md' for name in ('export', 'run', 'proof', 'parts', 'device', 'any-module', 'SKILL')),
]
PYTHON_PAGES = [
    path.relative_to(REPOSITORY).as_posix()
    for pattern in ('*.md', 'docs/**/*.md', 'projects/*/README.md')
    for path in sorted(REPOSITORY.glob(pattern))
    if '```python' in path.read_text(encoding='utf-8')
]
IMPORTS = 'from mmdeploy_ext import compat; compat.apply()\nimport mmdeploy_ext\n'
ATSS = "'configs/demo/atss_toy.py', 'demo/checkpoints/atss_toy.pth'"
OF_PROOF = """
import shutil
shutil.copy('demo/atss_toy.onnx', 'work_dirs/full.onnx')
"""
BEFORE = {
    'docs/models-cameras.md': """
from mmdeploy_ext.cli import command
from proofs import fresh_exports_once, samples_alone
command.main(['synthetic', 'nuscenes', '--root', 'data', '--train-scenes', '1', '--val-scenes', '1',
              '--frames', '2', '--jobs', '1'])
command.main(['synthetic', 'infos', '--root-path', 'data', '--out-dir', '.', '--extra-tag', 'toy'])
import os; os.rename('toy_infos_val.pkl', 'infos_val.pkl')
mmdeploy_ext.export('projects/configs/StreamPETR/stream_petr_toy.py',
                    'demo/checkpoints/stream_petr_toy.pth', 'work_dirs/model')
""",
    'docs/models-lidar.md': """
import numpy as np
np.random.default_rng(0).uniform(0, 9, (500, 5)).astype(np.float32).tofile('sweep.bin')
mmdeploy_ext.export('projects/configs/PointPillars/pointpillars_toy.py',
                    'demo/checkpoints/pointpillars_toy.pth', 'work_dirs/model')
""",
    'docs/parts.md': f"""
cut = mmdeploy_ext.export_parts({ATSS}, ['backbone+neck'], 'cut')
from mmcv.parallel import scatter_kwargs
model = cut.factory.make()
_, (data,) = scatter_kwargs((), dict(cut.samples[0]), [-1])
""",
    'docs/proof.md': OF_PROOF,
    'docs/zh-CN/proof.md': OF_PROOF,
}
"""Page -> Python that makes what the page takes as given."""


def blocks_of(page: str, language: str) -> list[str]:
    text = (REPOSITORY / page).read_text(encoding='utf-8')
    return re.findall(rf'^```{language}\n(.*?)^```', text, re.MULTILINE | re.DOTALL)


def commands_of(page: str) -> list[list[str]]:
    """Return the commands that can be typed as they are: none with a PLACEHOLDER, a server, data sets."""
    lines = '\n'.join(blocks_of(page, 'bash')).replace('\\\n', ' ').splitlines()
    commands = [[VARIABLES.get(word, word) for word in shlex.split(line, comments=True)] for line in lines]
    return [
        words
        for words in commands
        if words[:1] in (['mm2onnx'], ['python'])
        if not any(re.match('[A-Z_]{4,}|--(eval|serve)|work_dirs/changed', word) for word in words)
    ]


@pytest.mark.parametrize('page', in_suite(COMMAND_PAGES, 'README.md', 'docs/run.md', 'docs/any-module.md'))
def test_the_commands_of_a_page(page, tmp_path, monkeypatch, capfd):
    for name in ('configs', 'demo', 'tools', 'mmdeploy_ext'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'work_dirs').mkdir()
    for block in blocks_of(page, 'python'):
        if place := re.match('# (work_dirs/.*)', block):
            (tmp_path / place[1]).write_text(block, encoding='utf-8')
    found = commands_of(page)
    assert found
    if page == 'README.md':
        (tmp_path / f'{OWN}.py').write_text("_base_ = ['configs/demo/atss_toy.py']\n")
        (tmp_path / f'{OWN}.pth').symlink_to(REPOSITORY / VARIABLES['$CKPT'])
    with fresh_exports_once(), samples_alone():
        for program, *words in found:
            if program == 'python':
                subprocess.run([sys.executable, *words], check=True)
            else:
                assert command.main(words) == 0, f'{" ".join(words)}\n{capfd.readouterr().err}'


@pytest.mark.parametrize('page', in_suite(PYTHON_PAGES, 'docs/export.md', 'docs/run.md'))
def test_the_python_of_a_page(page, tmp_path, monkeypatch):
    for name in ('configs', 'demo', 'projects', 'mmdeploy_ext'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / 'work_dirs').mkdir()
    code = '\n'.join([IMPORTS, BEFORE.get(page, ''), *blocks_of(page, 'python')])
    if 'regist' not in code:
        monkeypatch.chdir(tmp_path)
        with samples_alone():
            exec(compile(code, page, 'exec'), {})
        return
    # other tests would find the operators and families of the page
    (tmp_path / 'page.py').write_text(code, encoding='utf-8')
    ran = subprocess.run([sys.executable, 'page.py'], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-3000:]
