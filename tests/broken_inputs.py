"""Files from anybody, with one random thing broken, through `mm2onnx run` and `mm2onnx info`.

    python tests/broken_inputs.py metadata --count 1000 --seed 7
    python tests/broken_inputs.py infos --count 500 --seed 7
    python tests/broken_inputs.py sweeps --count 300 --seed 7
    python tests/broken_inputs.py pictures --count 500 --seed 7

A command has to end with a right answer, status 0, or with one line that begins with 'error: ': no traceback,
no hang, and no warning of numpy.
"""

import argparse
import collections
import contextlib
import copy
import functools
import io
import os
import pickle
import random
import sys
import tempfile
import time
import unittest.mock
import warnings
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / 'tests')]

from mmdeploy_ext import compat  # noqa: E402

compat.apply()

import numpy as np  # noqa: E402
import onnx  # noqa: E402

import metadata_fuzz  # noqa: E402
import picture_faults  # noqa: E402
import toy_stream_files  # noqa: E402
from mmdeploy_ext.cli.command import main as mm2onnx  # noqa: E402
from toys import TOYS  # noqa: E402

MOST_CPU_SECONDS, MOST_MEMORY_KB = 30, 1 << 20
"""Of one command; memory in KiB, beside what this process has taken to import PyTorch and to export."""
KINDS_OF_TOYS = dict(streampetr='infos', bevfusion='infos', centerpoint='sweeps', pointpillars='sweeps')
"""Toy -> what it is run on; all others take pictures."""
WITHOUT_BOXES = ('sparse_portable', 'sparse_libspconv')
"""Toys whose files `mm2onnx run` refuses: their metadata are only shown."""
PICTURE_SIZE = 198, 352
"""Pixels, of the cameras of the toys."""
PICTURE = REPOSITORY / 'demo/toy.jpg'


@functools.cache
def exported(name: str) -> Path:
    """Return the file, or the folder of graphs, of a toy, exported once."""
    holder = tempfile.TemporaryDirectory()
    HOLDERS.append(holder)
    return TOYS[name].export(Path(holder.name) / name)


HOLDERS: list[tempfile.TemporaryDirectory] = []
"""They remove their folders when Python ends."""


def write_sweep(path: Path, draw: random.Random, width: int = 5) -> np.ndarray:
    """Write points as a car sees them, and return them."""
    numbers = np.random.default_rng(draw.randrange(2**32))
    points = numbers.normal(size=(600, width)) * [12, 12, 1, 40, 0.1][:width]
    points[:, 3:] = np.abs(points[:, 3:])
    points = points.astype('<f4')
    points.tofile(path)
    return points


def write_infos(folder: Path, draw: random.Random) -> list[dict]:
    """Write the pictures and the sweep that infos of two frames name, and return the infos."""
    with unittest.mock.patch.object(toy_stream_files, 'SOURCE', PICTURE_SIZE):
        toy_stream_files.write_set(folder)
    content = pickle.loads((folder / 'set/toy_val.pkl').read_bytes())['infos'][:2]
    for info in content:
        info['lidar_path'] = str(folder / 'sweep.bin')
    write_sweep(folder / 'sweep.bin', draw)
    return content


# ---- what is broken

ODD_ARRAYS = (
    *(np.zeros((0, 3)), np.full((3, 3), np.nan), np.full(3, np.inf), np.array(['x']), np.array(None)),
    *(np.zeros(2**16), np.zeros((4, 4)), np.array([1e300, 0, 0]), np.zeros((3, 3)), -np.eye(3)),
    *(np.ones(3, complex), np.datetime64('now')),
)
ODD_VALUES = (*metadata_fuzz.VALUES, '\ud800', '\x1b[2J', 'a\x00b', b'\xff', Path('x'), {1}, *ODD_ARRAYS)


def leaves(content, path=()):
    """Yield the path of every value in dicts and lists."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


def break_infos(infos: list[dict], folder: Path, draw: random.Random) -> Path:
    """Break one thing of infos and write them; return the file."""
    path, content = folder / 'infos.pkl', dict(infos=copy.deepcopy(infos), metadata=dict(version='toy'))
    protocol, change = draw.randrange(6), draw.choice(('value', 'value', 'value', 'key', 'bytes', 'whole'))
    if change in ('value', 'key'):
        *above, last = draw.choice(list(leaves(content)))
        place = content
        for key in above:
            place = place[key]
        if change == 'key':
            del place[last]
        else:
            place[last] = draw.choice(ODD_VALUES)
    if change == 'whole':
        content = draw.choice(
            ([], {}, None, 7, 'infos', {'infos': {}}, {'infos': [[]]}, [infos[0], None], os.system)
        )
    stored = bytearray(pickle.dumps(content, protocol))
    if change == 'bytes':
        for _ in range(draw.choice((1, 2, 10))):
            place = draw.randrange(len(stored))
            if draw.random() < 0.7:
                stored[place] = draw.randrange(256)
            else:
                del stored[place : place + draw.choice((1, 100, 10**6))]
            stored = stored or bytearray(b'.')
    path.write_bytes(bytes(stored))
    return path


def break_sweep(path: Path, draw: random.Random) -> Path:  # noqa: C901 one line for each change
    """Break one thing of a sweep in a file."""
    points = np.fromfile(path, '<f4').reshape(-1, 5)
    row, column = draw.randrange(len(points)), draw.randrange(5)
    odd = draw.choice((np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 1e20, 1e6, 1e-45, -0.0))
    change = draw.choice(
        ('one', 'one', 'column', 'all', 'width', 'type', 'cut', 'bytes', 'text', 'empty', 'order')
    )
    if change == 'one':
        points[row, column] = odd
    elif change == 'column':
        points[:, column] = odd
    elif change == 'all':
        points[:] = odd
    elif change == 'width':
        points = points[:, : draw.choice((1, 2, 3, 4))]
    elif change == 'type':
        points = points.astype(draw.choice(('<f8', '<i4', '<f2', '>f4', '<i8')))
    elif change == 'order':
        points = points[:, ::-1]
    content = np.ascontiguousarray(points).tobytes()
    if change == 'cut':
        content = content[: draw.randrange(len(content))]
    elif change == 'bytes':
        content = draw.randbytes(draw.choice((20, 1000, 12000)))
    elif change == 'text':
        content = b'# .PCD v0.7\n' + b'\n'.join(b'1.0 2.0 3.0' for _ in range(draw.randrange(1, 400)))
    elif change == 'empty':
        content = b''
    path.write_bytes(content)
    return path


# ---- what becomes of it


def memory_kb(entry: str) -> int:
    """Return a size from Linux' account of this process in KiB: VmRSS is resident, VmHWM the peak."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f'{entry}:'))


@functools.cache
def memory_before_kb() -> int:
    """Return the resident memory before the first command, in KiB."""
    return memory_kb('VmRSS')


PEAKS_KB = [0]
"""Memory of each command so far, in KiB."""


def outcome(*words: str) -> str:
    """Return how a command ends: 'ran', 'refused', or what is wrong about its end."""
    before = memory_before_kb()
    Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
    printed, said, begin = io.StringIO(), io.StringIO(), time.process_time()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
            warnings.simplefilter('error', RuntimeWarning)
            status = mm2onnx(list(words))
    except SystemExit as error:
        status = error.code
    except BaseException as error:
        return f'{type(error).__name__}: {error}'[:300]
    seconds, text = time.process_time() - begin, said.getvalue()
    if seconds > MOST_CPU_SECONDS:
        return f'took {seconds:.0f} CPU s'
    PEAKS_KB.append(memory_kb('VmHWM') - before)
    if PEAKS_KB[-1] > MOST_MEMORY_KB:
        return f'took {PEAKS_KB[-1]} KiB'
    if 'Traceback' in text + printed.getvalue():
        return f'traceback: {text[-300:]}'
    if status == 0:
        return 'ran'
    errors = [line for line in text.splitlines() if line.startswith('error: ')]
    return 'refused' if status in (1, 2) and len(errors) == 1 else f'status {status}: {text[-300:]!r}'


def metadata_outcomes(name: str, count: int, seed: int):
    """Yield what was broken of the metadata of a toy's file, and how `info` and `run` end."""
    right = exported(name)
    path = right if right.is_file() else sorted(right.glob('*.onnx'))[-1]
    model, draw = onnx.load(path), random.Random(seed)
    props = metadata_fuzz.props_of(model)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        target = folder / 'model' / path.name
        target.parent.mkdir()
        for other in right.glob('*') if right.is_dir() else ():
            (target.parent / other.name).write_bytes(other.read_bytes())
        sample = sample_of(name, folder, draw)
        opened = target if right.is_file() else target.parent
        for _, (entry, what, changed) in zip(
            range(count), metadata_fuzz.variants(props, count, seed), strict=False
        ):
            metadata_fuzz.write(model, changed, target)
            yield f'{entry} {what}', 'info', outcome('info', str(target))
            if name not in WITHOUT_BOXES:
                words = ('run', str(opened), str(sample), '--out', str(folder / 'out'))
                yield f'{entry} {what}', 'run', outcome(*words)


def sample_of(name: str, folder: Path, draw: random.Random) -> Path:
    """Write what a toy is run on, and return the file."""
    kind = KINDS_OF_TOYS.get(name, 'sweeps' if name.startswith('autoware') else 'pictures')
    if kind == 'pictures':
        return PICTURE
    if kind == 'sweeps':
        write_sweep(folder / 'sweep.bin', draw)
        return folder / 'sweep.bin'
    (folder / 'infos.pkl').write_bytes(pickle.dumps(dict(infos=write_infos(folder, draw), metadata={})))
    return folder / 'infos.pkl'


def infos_outcomes(name: str, count: int, seed: int):
    """Yield the number of a broken info file, and how `run` ends with it."""
    with tempfile.TemporaryDirectory() as place:
        folder, draw = Path(place), random.Random(seed)
        infos = write_infos(folder, draw)
        for number in range(count):
            path = break_infos(infos, folder, random.Random(seed + number))
            words = ('run', str(exported(name)), str(path), '--out', str(folder / 'out'), '--fail-fast')
            yield f'seed {seed + number}', 'run', outcome(*words)


def pictures_outcomes(name: str, count: int, seed: int):
    """Yield the number of a damaged picture, and how `run` ends with it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number, (ending, content) in enumerate(picture_faults.pictures(PICTURE, count, seed)):
            path = folder / f'picture{ending}'
            path.write_bytes(content)
            words = ('run', str(exported(name)), str(path), '--out', str(folder / 'out'))
            yield f'picture {number} ({ending})', 'run', outcome(*words)


def sweeps_outcomes(name: str, count: int, seed: int):
    """Yield the number of a broken sweep, and how `run` ends with it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number in range(count):
            draw = random.Random(seed + number)
            write_sweep(folder / 'sweep.bin', draw)
            path = break_sweep(folder / 'sweep.bin', draw)
            words = ('run', str(exported(name)), str(path), '--out', str(folder / 'out'))
            yield f'seed {seed + number}', 'run', outcome(*words)


TABLES = dict(
    metadata=(metadata_outcomes, tuple(TOYS)),
    infos=(infos_outcomes, ('streampetr', 'bevfusion')),
    sweeps=(sweeps_outcomes, ('centerpoint', 'pointpillars')),
    pictures=(pictures_outcomes, ('atss',)),
)
"""What is broken -> what yields the outcomes, and the toys."""


def table(kind: str, count: int, seed: int, toys: tuple[str, ...] = ()) -> tuple[dict, list[str]]:
    """Return (toy, command, outcome) -> number, and the faults, as text."""
    outcomes, every = TABLES[kind]
    counts, faults = collections.Counter(), []
    for name in toys or every:
        begin = time.process_time()
        for what, command, ended in outcomes(name, count, seed):
            is_fault = ended not in ('ran', 'refused')
            counts[name, command, 'fault' if is_fault else ended] += 1
            if is_fault:
                faults.append(f'{name}: {what}: {command}: {ended}')
        print(f'{name}: {time.process_time() - begin:.0f} CPU s', file=sys.stderr)
    return dict(counts), faults


def rows(counts: dict) -> list[str]:
    """Return the rows of the table: toy, command, and how many ran, were refused, or are faults."""
    texts = []
    for name, command in dict.fromkeys((name, command) for name, command, _ in counts):
        numbers = [str(counts.get((name, command, ended), 0)) for ended in ('ran', 'refused', 'fault')]
        texts.append(f'| {name} | `{command}` | {" | ".join(numbers)} |')
    return texts


def main() -> int:
    """Break files and print the table; status 1 with faults."""
    parser = argparse.ArgumentParser(description='Break files and give them to mm2onnx.')
    parser.add_argument('kind', choices=TABLES)
    parser.add_argument('--toys', nargs='+', default=(), help='some of the toys')
    parser.add_argument('--count', type=int, default=300, help='for each toy')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    counts, faults = table(args.kind, args.count, args.seed, tuple(args.toys))
    print('| toy | command | ran | refused in one line | fault |\n|---|---|---:|---:|---:|')
    print(*rows(counts), sep='\n')
    sizes_gb = [size * 1024 / 1e9 for size in (max(PEAKS_KB), memory_before_kb())]
    print('a command took {:.2f} GB at most, beside {:.2f} GB of PyTorch and the export'.format(*sizes_gb))
    print(*faults, sep='\n')
    return int(bool(faults))


if __name__ == '__main__':
    sys.exit(main())
