"""The page about the architecture follows a picture and a frame: its files take part, none is left out."""

import fnmatch
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = (REPOSITORY / 'docs/architecture.md').read_text(encoding='utf-8')
LIMITS = dict(picture=36, frame=35)
NEAR = 10
"""How far the numbers of files that run may be from those of the page, which says 'about'."""
COMMANDS = dict(
    picture=('configs/demo/atss_toy.py', 'demo/checkpoints/atss_toy.pth'),
    frame=('projects/configs/BEVFusion/bevfusion_toy.py', 'demo/checkpoints/bevfusion_toy.pth'),
)
PROFILED = """
import json, sys
files, importing = set(), 0

def note(frame, event, argument):
    # what runs while a module is imported, bodies of classes among it, is no step
    global importing
    if frame.f_code.co_name == '<module>':
        importing += (event == 'call') - (event == 'return')
    elif event == 'call' and not importing and frame.f_code.co_flags & 1:  # CO_OPTIMIZED: a function
        files.add(frame.f_code.co_filename)

sys.path.insert(0, sys.argv[1])
sys.setprofile(note)
from mmdeploy_ext.cli.command import main
status = main(sys.argv[3:])
sys.setprofile(None)
with open(sys.argv[2], 'w') as file:
    json.dump(sorted(files), file)
sys.exit(status)
"""


def files_of(way):
    """Return the files of the package that a list of the page names, in its order."""
    text = PAGE.split(f'<!-- {way} -->')[1].split(f'<!-- /{way} -->')[0]
    return re.findall(r'^\d+\. \[(\S+)\]\(\.\./mmdeploy_ext/\1\)', text, re.MULTILINE)


def others():
    """Return the patterns of the files that the page names as called by the steps."""
    table = PAGE.split('<!-- called -->')[1].split('<!-- /called -->')[0]
    return re.findall(r'`(\S+\.py|\S+/\*)`', table)


@pytest.mark.parametrize('way', LIMITS)
def test_a_way_has_few_files_and_each_of_them_once(way):
    files = files_of(way)
    assert 20 < len(files) <= LIMITS[way] and len(set(files)) == len(files)
    assert [file for file in files if not (REPOSITORY / 'mmdeploy_ext' / file).is_file()] == []


@pytest.mark.matrix
@pytest.mark.parametrize('way', LIMITS)
def test_each_file_of_a_way_takes_part_in_an_export_and_its_proof(way, tmp_path):
    target, files = str(tmp_path / ('m.onnx' if way == 'picture' else 'm')), tmp_path / 'files.json'
    words = ['export', *COMMANDS[way], '--output-file', target, '--verify']
    command = [sys.executable, '-c', PROFILED, str(REPOSITORY), str(files), *words]
    outcome = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    package, ran = f'{REPOSITORY}/mmdeploy_ext/', json.loads(files.read_text())
    called = {file.removeprefix(package) for file in ran if file.startswith(package)}
    assert [file for file in files_of(way) if file not in called] == []
    rest = called - set(files_of(way))
    assert [file for file in rest if not any(fnmatch.fnmatch(file, pattern) for pattern in others())] == []
    said = int(re.search(rf'about (\d+)(?: files run)? for the {way}', PAGE)[1])
    assert abs(len(called) - said) <= NEAR
