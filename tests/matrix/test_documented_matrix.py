"""Commands of the documentation typed into a shell, page by page: those that the suite runs and slower ones.

What `tests/documented.py` maps to a test of the same tool is run here as it is written, on small generated
sets and the trained toys. What is left needs a real data set, a training, a GPU, several machines, a file of
the user or a model of full size.
"""

import importlib.util
import os
import re
import subprocess
import sys

import pytest

import test_docs
from test_documented import ENGLISH, MADE, PROGRAMS, REPOSITORY, entry_of, lines

LIMIT_S = 400
TOY_EXPORT = r'python tools/deployment/pytorch2onnx.py (\$CONFIG|\S*toy.py) (\$CKPT|CKPT|\S*toy.pth) '
TYPED = (
    (
        r'python -m mmdeploy_ext synthetic coco --out data/toy_coco$',
        {'_coco': '_coco --train-images 48 --val-images 24'},
    ),
    (r'(mm2onnx|python -m mmdeploy_ext) synthetic panoptic --out data/toy_coco$', {}),
    (
        # few of the training, all of the evaluation: in some frames one box at a threshold is 0.003 of an AP
        r'python -m mmdeploy_ext synthetic nuscenes --root data/toy_nuscenes$',
        {'_nuscenes': '_nuscenes --train-scenes 2'},
    ),
    (r'python -m mmdeploy_ext synthetic nuscenes --root data/few_sweeps ', {}),
    (r'python -m mmdeploy_ext synthetic monocular --root data/toy_nuscenes$', {}),
    (r'python -m mmdeploy_ext synthetic seeded projects/configs/\w+/\w+_toy.py ', {}),
    (r'python tools/create_data.py nuscenes', {}),
    (r'python tools/deployment/check_autoware.py work_dirs/', {}),
    (r'tools/dist_test_\w+.sh (configs/demo/|projects/configs/\w+/\w+_toy|\$LOOP)', {}),
    (r'python tools/deployment/verify.py \$CONFIG \$CKPT work_dirs/dynamic.onnx --eval', {}),
    (
        TOY_EXPORT + r'.*(stream|centerpoint|toy|dynamo)',
        {'--frames 120': '--frames 12', ' CKPT ': ' {stream} '},
    ),
    (r'python tools/demo/streampetr_video.py', {}),
    (r'python -m mmdeploy_ext.cli.dump_app (list|show|compare)', {}),
    (r'python -m mmdeploy_ext.compat.doctor', {}),
    (
        r'python tools/deployment/quantize.py (demo/atss_toy|work_dirs/(int8/)?atss|work_dirs/stream_toy)',
        {'data/coco/': 'data/toy_coco/'},
    ),
    (r'python tools/deployment/onnx2tensorrt.py', {}),
    (
        r'python tools/analysis_tools/benchmark.py \$CONFIG \$CKPT --onnx work_dirs/full.onnx work_dirs/raw',
        {'--max-iter 20': '--max-iter 2'},
    ),
)
"""What they look like, and what is put in to make them small."""
STREAM = 'demo/checkpoints/stream_petr_toy.pth'
NEEDS = {'onnx2tensorrt.py': 'tensorrt_rtx', 'openvino': 'openvino', '--eval bbox tracking': 'motmetrics'}
BEFORE = {
    'docs/int8-images.md': (
        f'python tools/deployment/pytorch2onnx.py projects/configs/StreamPETR/stream_petr_toy.py {STREAM} '
        '--output-file work_dirs/stream_toy',
        'python tools/deployment/pytorch2onnx.py configs/demo/atss_toy.py demo/checkpoints/atss_toy.pth '
        '--output-file work_dirs/atss.onnx',
    ),
    'docs/engines.md': (
        'python tools/deployment/pytorch2onnx.py configs/demo/atss_toy.py demo/checkpoints/atss_toy.pth '
        '--output-file work_dirs/raw.onnx --postprocess raw',
    ),
}
"""Page -> what earlier pages made, or what it says in words."""


def typed(command):
    """Return a command as it is typed here, or None."""
    entry = entry_of(command)
    command = re.sub('^mm2onnx ', 'python -m mmdeploy_ext ', command)  # it is not installed here
    if entry.run:
        return entry.smaller(command) if entry.runs(matrix=True) else None
    if any(word in command and not importlib.util.find_spec(package) for word, package in NEEDS.items()):
        return None
    for pattern, small in TYPED:
        if re.match(pattern, command):
            for long, short in small.items():
                command = command.replace(long, short.format(stream=STREAM))
            return command
    return None


def commands(page):
    """Yield each command of a page and as it is typed; of some pages also the Python blocks."""
    for language, body in test_docs.blocks(page):
        if language in ('', 'bash', 'shell'):
            yield from ((line, typed(line)) for line in lines(body))
        elif language == 'python' and page in PROGRAMS:
            yield 'python', f'python - <<"END"\n{body}\nEND'


PAGES = {page: list(commands(page)) for page in ENGLISH}
CHOSEN = [page for page, commands in PAGES.items() if any(now and '=' not in now[:8] for _, now in commands)]


@pytest.fixture(scope='module')
def workspace(tmp_path_factory):
    """A folder that looks like the repository, with small sets and a work_dirs of its own."""
    folder = tmp_path_factory.mktemp('typed')
    for path in REPOSITORY.iterdir():
        if path.name not in MADE:
            (folder / path.name).symlink_to(path)
    (folder / 'work_dirs').mkdir()
    for page in ('README.md', 'docs/streaming.md'):  # the pages that make the sets
        for line, now in dict(PAGES[page]).items():  # weights are never written over
            if now and re.match(r'mm2onnx synthetic |python (-m projects.toydata|tools/create_data)', line):
                shell(now, folder)
    return folder


def shell(command, folder, variables=(), status=0):
    """Type one command; its exit status has to be the one that the page promises."""
    given = ''.join(f'{name}="{value}"\n' for name, value in dict(variables).items())
    environ = dict(os.environ, PATH=f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}')
    words, text = ['bash', '-c', given + command], dict(capture_output=True, text=True)
    done = subprocess.run(words, cwd=folder, env=environ, timeout=LIMIT_S, **text)
    assert done.returncode == status, f'{command}\n{done.stdout[-2500:]}\n{done.stderr[-2500:]}'


def left_out(page):
    """Yield each `mm2onnx synthetic` that is not typed, with a later command that reads what it makes."""
    for number, (line, now) in enumerate(PAGES[page]):
        if now is None and line.startswith('mm2onnx synthetic '):
            made = re.findall(r'(?:data|work_dirs)/[\w.]+', line)[-1:]
            readers = (later for _, later in PAGES[page][number:] if later)
            yield from ((line, later) for later in readers if any(name in later for name in made))


def test_what_a_page_generates_is_typed_before_what_reads_it():
    assert {page: pairs for page in CHOSEN if (pairs := list(left_out(page)))} == {}


def drawn(page):
    """Return the checkpoints that the commands of a page draw from a seed; none is ever written over."""
    written = (re.match(r'mm2onnx synthetic seeded \S+ (\S+)', line) for line, _ in PAGES[page])
    return [match[1] for match in written if match]


def test_no_page_draws_weights_into_a_file_twice():
    assert [page for page in PAGES if len(set(drawn(page))) < len(drawn(page))] == []


@pytest.mark.matrix
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('page', CHOSEN)
def test_the_commands_of_a_page_work_as_they_are_typed(page, workspace):
    variables, count = {}, 0
    for name in drawn(page):
        (workspace / name).unlink(missing_ok=True)  # that an earlier page has drawn, too
    for command in BEFORE.get(page, ()):
        shell(command, workspace, variables)
    for line, now in PAGES[page]:
        assigned = re.fullmatch(r'([A-Z]+)=(.*)', line)
        if assigned:
            variables[assigned[1]] = assigned[2].strip('"')
        elif now:
            shell(now, workspace, variables, entry_of(line).status if line != 'python' else 0)
            count += 1
    assert count
    left = [line for line, now in PAGES[page] if now is None]
    print(f'\n{page}: {count} typed, {len(left)} left to tests of their own')
