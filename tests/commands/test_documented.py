"""Commands of README and of the first pages run as they stand there, one after another in one folder."""

import re
import shlex

import pytest

from marking import in_suite
from mmdeploy_ext.cli import command
from refusals import REPOSITORY

VARIABLES = {'$CONFIG': 'configs/demo/atss_toy.py', '$CKPT': 'demo/checkpoints/atss_toy.pth'}
OWN = 'faster_rcnn_r50_fpn_1x_coco'
"""Config and checkpoint of README's reader: the trained toy stands for them."""


def joined(block: str) -> list[str]:
    return block.replace('\\\n', ' ').splitlines()


def commands_of(page: str) -> list[list[str]]:
    """Return the commands about one picture or file; `make demo` runs those about data sets."""
    text = (REPOSITORY / page).read_text(encoding='utf-8')
    blocks = re.findall(r'^```bash\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in joined(block)]
    return [
        [VARIABLES.get(word, word) for word in words[1:]]
        for words in lines
        if words[:1] == ['mm2onnx'] and words[1] in ('export', 'verify', 'run', 'info')
        if '--eval' not in words and 'work_dirs/changed.onnx' not in words
    ]


@pytest.mark.parametrize(
    'page',
    in_suite(['README.md', 'docs/export.md', 'docs/run.md', 'docs/proof.md'], 'README.md', 'docs/run.md'),
)
def test_the_commands_of_a_page(page, tmp_path, monkeypatch, capfd):
    for name in ('configs', 'demo', 'tools', 'mmdeploy_ext'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    found = commands_of(page)
    assert found
    if page == 'README.md':
        (tmp_path / f'{OWN}.py').write_text("_base_ = ['configs/demo/atss_toy.py']\n")
        (tmp_path / f'{OWN}.pth').symlink_to(REPOSITORY / VARIABLES['$CKPT'])
    for words in found:
        assert command.main(words) == 0, f'{" ".join(words)}\n{capfd.readouterr().err}'
