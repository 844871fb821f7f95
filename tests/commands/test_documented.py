"""Commands of README and of the first pages run as they stand there, one after another in one folder."""

import re
import runpy
import shlex
import sys

import pytest

from mmdeploy_ext.cli import command
from refusals import REPOSITORY

VARIABLES = {'$CONFIG': 'configs/demo/atss_toy.py', '$CKPT': 'demo/checkpoints/atss_toy.pth'}
TOOLS = ('tools/deployment/', 'tools/onnx/')
STATUS = {'--opset-version 9': 2}
"""Part of a command that the page shows as refused -> its exit status."""


def commands_of(page: str) -> list[list[str]]:
    """Commands about one picture or file; those about data sets are run by `make demo`."""
    text = (REPOSITORY / page).read_text(encoding='utf-8')
    blocks = re.findall(r'^```(?:bash)?\n(.*?)^```', text, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [
        [VARIABLES.get(word, word) for word in words]
        for words in lines
        if words[:2] in (['mm2onnx', 'export'], ['mm2onnx', 'verify'])
        or (words[:1] == ['python'] and words[1].startswith(TOOLS))
        if '--eval' not in words and 'work_dirs/changed.onnx' not in words
    ]


def run(words: list[str], monkeypatch) -> int:
    if words[0] == 'mm2onnx':
        return command.main(words[1:])
    monkeypatch.setattr(sys, 'argv', words[1:])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(words[1], run_name='__main__')
    return ended.value.code


@pytest.mark.parametrize(
    'page',
    [
        'README.md',
        *(
            pytest.param(f'docs/{name}.md', marks=pytest.mark.matrix)
            for name in ('start', 'your-checkpoint', 'proof')
        ),
    ],
)
def test_the_commands_of_a_page(page, tmp_path, monkeypatch, capfd):
    for name in ('configs', 'demo', 'tools', 'mmdeploy_ext'):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    found = commands_of(page)
    assert found
    for words in found:
        line = ' '.join(words)
        expected = next((status for part, status in STATUS.items() if part in line), 0)
        assert run(words, monkeypatch) == expected, f'{line}\n{capfd.readouterr().err}'
