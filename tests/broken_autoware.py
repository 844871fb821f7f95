"""Folders for Autoware's nodes with one random thing broken, as files from anybody may be.

    python tests/broken_autoware.py --count 1000 --seed 7

Each folder goes through `check_autoware.py`, which has to end with status 0, 1 or 2 and without a traceback,
in at most 30 CPU seconds and 1 GB.
"""

import argparse
import collections
import contextlib
import io
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / 'tests')]

import onnx  # noqa: E402
import yaml  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402

import toy_autoware  # noqa: E402
from mmdeploy_ext.cli.check_autoware_app import main as check_autoware  # noqa: E402

FOLDERS = (toy_autoware.centerpoint, toy_autoware.streampetr, toy_autoware.bevfusion)
ODD_VALUES = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, 10**5000, 0.0, -0.0, 1e-300, 1e300, float('nan')),
    *(
        float('inf'),
        '',
        'x',
        '../x',
        '/x',
        '\x00',
        '\ud800',
        '\x1b[2J',
        [],
        [0],
        [False],
        [0, 0.5],
        [[1.0]],
        {},
    ),
    *({'x': 1}, [1e308] * 6, ['CAR'] * 5000),
)
ODD_LINES = (
    *('a: &a [1]', '  b: *a', '<<: {x: 1}', '? [1, 2]\n: x', '!!python/object/apply:os.system [true]', '---'),
    *(
        '%YAML 9.9',
        '\tx: 1',
        '- 1',
        '2024-01-01: 2',
        '"\\x00": 1',
        '[' * 3000,
        '{a: ' * 3000,
        'x: ' + '9' * 6000,
    ),
)


def leaves(content, path=()):
    """Yield the path of every value below a dict or list."""
    entries = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in entries:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


def other_value(folder, draw):
    """Give one key of a manifest an odd value, or remove it."""
    path = draw.choice(sorted(folder.glob('*.yaml')))
    content = yaml.safe_load(path.read_text())
    *above, last = draw.choice(list(leaves(content)))
    place = content
    for key in above:
        place = place[key]
    if draw.random() < 0.15:
        del place[last]
    else:
        place[last] = draw.choice(ODD_VALUES)
    # PyYAML writes no lone surrogate and no integer beyond Python's own limit of digits
    with contextlib.suppress(ValueError):
        text = yaml.dump(content, allow_unicode=False, Dumper=yaml.SafeDumper)
        path.write_text(text, encoding='utf-8', errors='replace')


def other_line(folder, draw):
    """Repeat, remove, or replace a line of a manifest, or add an odd one."""
    path = draw.choice(sorted(folder.glob('*.yaml')))
    lines = path.read_text().splitlines()
    place = draw.randrange(len(lines))
    change = draw.choice(('repeat', 'remove', 'add', 'replace'))
    if change == 'repeat':
        lines.insert(place, lines[place])
    elif change == 'remove':
        del lines[place]
    else:
        indent = lines[place][: len(lines[place]) - len(lines[place].lstrip())]
        lines[place : place + (change == 'replace')] = [indent + draw.choice(ODD_LINES)]
    path.write_text('\n'.join(lines))


def other_bytes(folder, draw):
    """Cut a file, or change, insert or repeat some of its bytes."""
    path = draw.choice(sorted(folder.iterdir()))
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 3, 20))):
        place = draw.randrange(len(content))
        change = draw.choice(('flip', 'flip', 'insert', 'cut', 'repeat'))
        if change == 'flip':
            content[place] ^= 1 << draw.randrange(8)
        elif change == 'insert':
            content[place:place] = draw.randbytes(draw.choice((1, 4, 200)))
        elif change == 'cut':
            del content[place : place + draw.choice((1, 50, 10**6))]
        else:
            content[place:place] = content[max(0, place - 40) : place]
        content = content or bytearray(b'\0')
    path.write_bytes(bytes(content))


def other_graph(folder, draw):  # noqa: C901 one small function for each edit
    """Change one thing of a graph: operators, wiring, types, sizes, opsets, weights."""
    path = draw.choice(sorted(folder.glob('*.onnx')))
    model = onnx.load(path)
    graph = model.graph
    node, tensor = draw.choice(list(graph.node)), draw.choice([*graph.initializer] or [None])
    end = draw.choice([*graph.input, *graph.output])
    names = sorted({name for one in graph.node for name in (*one.input, *one.output) if name})

    def type_of_end():
        end.type.tensor_type.elem_type = draw.choice((0, 1, 7, 8, 9, 10, 11, 16, 23, 99, 2**31 - 1))

    def size_of_end():
        axes = end.type.tensor_type.shape.dim
        if axes:
            draw.choice(list(axes)).dim_value = draw.choice((0, 1, 7, -1, 2**40, 2**62))

    def opsets():
        del model.opset_import[:]
        for version in draw.choice(((), (1,), (8,), (13, 17), (99,), (2**40,), (-1,))):
            model.opset_import.append(helper.make_opsetid(draw.choice(('', 'ai.onnx', 'x')), version))

    def weights():
        if tensor is not None:
            tensor.data_type = draw.choice((tensor.data_type, 99, TensorProto.STRING))
            tensor.dims[:] = draw.choice(([], [0], [-1], [2**40], [3, 3], list(tensor.dims)))
            tensor.raw_data = draw.choice((b'', b'\xff' * len(tensor.raw_data), tensor.raw_data[:-1]))

    def external():
        if tensor is not None and tensor.raw_data:
            location = draw.choice(('weights.bin', '../weights.bin', '/etc/hostname', '', '\0'))
            onnx.external_data_helper.set_external_data(tensor, location)
            tensor.ClearField('raw_data')

    def wiring():
        side = draw.choice((node.input, node.output))
        if side:
            side[draw.randrange(len(side))] = draw.choice(names)

    def operator():
        node.op_type = draw.choice(
            ('Frobnicate', 'Loop', 'If', 'Conv', 'NonZero', 'RandomNormal', '', 'Identity')
        )

    def domain():
        node.domain = draw.choice(('x', 'com.microsoft', 'autoware', '\n'))

    def attributes():
        if node.attribute:
            one = draw.choice(list(node.attribute))
            draw.choice((one.Clear, lambda: setattr(one, 'i', -1), lambda: setattr(one, 'name', 'x')))()

    def names_of():
        end.name = draw.choice(('', 'x', '\x1b[2J', 'a' * 10**5))

    def remove():
        graph.node.remove(node)

    def repeat():
        graph.node.append(node)

    def version():
        model.ir_version = draw.choice((0, 1, 3, 99, 2**40))

    edits = [type_of_end, size_of_end, opsets, weights, external, wiring, wiring, operator, domain]
    draw.choice([*edits, attributes, names_of, remove, repeat, version])()
    path.write_bytes(model.SerializeToString())


def other_files(folder, draw):
    """Remove, exchange, link, or empty files."""
    path, other = draw.sample(sorted(folder.iterdir()), 2)
    change = draw.choice(('remove', 'exchange', 'link', 'empty', 'folder', 'fifo', 'dangling'))
    if change == 'exchange':
        path.rename(folder / 'kept')
        other.rename(path)
        (folder / 'kept').rename(other)
        return
    path.unlink()
    if change == 'link':
        path.symlink_to(other)
    elif change == 'dangling':
        path.symlink_to(folder / 'nowhere')
    elif change == 'empty':
        path.write_bytes(b'')
    elif change == 'folder':
        path.mkdir()
    elif change == 'fifo':
        import os

        os.mkfifo(path)


KINDS = (other_value, other_value, other_line, other_bytes, other_graph, other_graph, other_files)


def break_folder(folder: Path, seed: int) -> str:
    """Write a right folder, break one thing of it, drawn by a seed, and return what kind of thing."""
    draw = random.Random(seed)
    draw.choice(FOLDERS)(folder)
    kind = draw.choice(KINDS)
    kind(folder, draw)
    return kind.__name__


def outcome(folder: Path) -> tuple[str, float]:
    """Return how the checker ends, 'kept', 'broken', 'refused' or with which fault, and its CPU seconds."""
    printed, begin = io.StringIO(), _cpu_seconds()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = check_autoware([str(folder)])
    except BaseException as error:
        return f'{type(error).__name__}: {error}'[:200], _cpu_seconds() - begin
    seconds, text = _cpu_seconds() - begin, printed.getvalue()
    if 'Traceback' in text or status not in (0, 1, 2):
        return f'status {status}: {text[-300:]}', seconds
    return ('kept', 'broken', 'refused')[status], seconds


def _cpu_seconds() -> float:
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def table(count: int, seed: int) -> tuple[dict, list[str]]:
    """Break folders; return (kind, outcome) -> number, and the faults of the checker."""
    counts, faults = collections.Counter(), []
    begin = time.monotonic()
    for index in range(count):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, 'folder')
            folder.mkdir()
            kind = break_folder(folder, seed + index)
            ended, seconds = outcome(folder)
            if ended not in ('kept', 'broken', 'refused') or seconds > 30:
                faults.append(f'seed {seed + index}: {kind}: {ended}, {seconds:.1f} CPU s')
            counts[kind, ended if ended in ('kept', 'broken', 'refused') else 'fault'] += 1
            shutil.rmtree(folder, ignore_errors=True)
        if index % 50 == 49:
            print(f'{index + 1} of {count}, {time.monotonic() - begin:.0f} s', file=sys.stderr)
    return dict(counts), faults


ENDINGS = ('broken', 'refused', 'kept', 'fault')


def rows(counts: dict) -> list[str]:
    """Return the rows of the table: what is broken, and how many folders end in which way."""
    return [
        f'| {kind.replace("_", " ")} | {" | ".join(str(counts.get((kind, end), 0)) for end in ENDINGS)} |'
        for kind in sorted({kind for kind, _ in counts})
    ]


def main() -> int:
    """Break folders and print the table; status 1 with faults."""
    parser = argparse.ArgumentParser(description='Break folders for Autoware and check them.')
    parser.add_argument('--count', type=int, default=1000)
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    counts, faults = table(args.count, args.seed)
    print(f'| what is broken | {" | ".join(ENDINGS)} |\n|---|{"---:|" * len(ENDINGS)}')
    print(*rows(counts), sep='\n')
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f'peak memory {peak / 1e6:.2f} GB', *faults, sep='\n')
    return int(bool(faults) or peak > 1e6)


if __name__ == '__main__':
    sys.exit(main())
