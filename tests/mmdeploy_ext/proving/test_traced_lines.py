"""Lines of the user's code that choose by values or sizes: a graph has one of their ways."""

import importlib.util
import io
import random
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.cnn import ConvTranspose2d
from mmdet.models.necks import FPN

import toy_atss
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph, Stage
from mmdeploy_ext.core import source_code
from mmdeploy_ext.core.outer_containers import OuterContainers
from mmdeploy_ext.proving.levels.frames import FramesProof
from mmdeploy_ext.proving.levels.traced_lines import has_users_code, observed_inputs, traced_lines
from mmdeploy_ext.proving.outer_state import Contents, UnreadableError, arrays_and_numbers, codes_of_run
from mmdeploy_ext.proving.traced_code import is_observed_file, lines_of_module
from mmdeploy_ext.proving.verdict import Verdict

pytestmark = pytest.mark.usefixtures('small_heap')

NECK = """
import itertools

import torch


def counter():
    runs = 0

    def count():
        nonlocal runs
        runs += 1

    return count


COUNTS, TURNS, count = [], itertools.count(), counter()


class Neck(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 1)

    def rows(self, x):
        if not hasattr(self, 'kept') or self.kept.shape != x.shape:
            self.kept = torch.zeros(x.shape)
        return self.kept

    def forward(self, x):
        assert x.max() < 1e6
        {line}
        return self.conv(x)
"""
LINE = 1 + NECK[: NECK.index('{line}')].count('\n')
INPUT, LARGER = (np.full((1, 3, *size), 0.5, np.float32) for size in ((8, 8), (16, 24)))
VALUE = 'if x.max() > 9: x = x * 2'
SIZE = 'if x.shape[2] > 900: x = x * 2'


def neck(folder, line):
    path = Path(tempfile.mkdtemp(dir=folder)) / 'users_neck.py'  # byte code of a second ago is not read
    path.write_text(NECK.format(line=line))
    spec = importlib.util.spec_from_file_location('users_neck', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Neck().eval()


def lines_of(module, any_size=False, exporter='torchscript'):
    chain = [
        Stage('scale', torch.nn.Identity(), ('image',), ('scaled',)),
        Stage('network', module, ('scaled',), ('maps',)),
    ]
    runs = [{'image': array} for array in (INPUT, LARGER if any_size else INPUT + 0.1)]
    return traced_lines(chain, runs, exporter, any_size)


@pytest.mark.parametrize(
    ('line', 'any_size', 'by'),
    [(VALUE, False, 'values'), (VALUE, True, 'values'), (SIZE, True, 'sizes'), (SIZE, False, None)],
)
def test_a_line_that_chooses_makes_inputs_decide(tmp_path, line, any_size, by):
    verdict = Verdict({}, traced_lines=lines_of(neck(tmp_path, line), any_size))
    assert [(entry.line, entry.code, entry.by) for entry in verdict.traced_lines] == (
        [(LINE, line, by)] if by else []
    )
    assert verdict.by_inputs == (f'users_neck.py:{LINE} chooses by {by}' if by else '')


@pytest.mark.parametrize(('line', 'by'), [(VALUE, ['values']), (SIZE, []), ('x = x.missing', ['values'])])
def test_graphs_of_frames_are_observed_on_the_inputs_that_are_traced(tmp_path, line, by):
    def tensors(name):
        return (TensorSpec(name, 'float32', (1, 3, 8, 8)),)

    module, example = neck(tmp_path, line), {'img': torch.from_numpy(INPUT)}
    graphs = [
        Graph('finished', None, GraphSpec('a', tensors('voxels'), tensors('bev')), {}, model=object()),
        Graph('backbone', module, GraphSpec('b', tensors('img'), tensors('maps')), example),
    ]
    proof = object.__new__(FramesProof)
    family = types.SimpleNamespace(followed_functions=lambda model: [])
    proof.deployment = types.SimpleNamespace(model=module, family=family, outer_containers=None)
    proof.graphs = {graph.name: graph for graph in graphs}
    proof.export_options = types.SimpleNamespace(exporter='torchscript')
    proof.files = [types.SimpleNamespace(metadata=types.SimpleNamespace(edits=()))]
    entries = proof.traced_lines()
    assert [entry.by for entry in entries] == by
    assert all(entry.file == ('users_neck.py' if entry.line else 'backbone') for entry in entries)


def test_what_the_exporter_follows_does_not_count(tmp_path):
    line = 'x = x * x.max().item()'
    assert lines_of(neck(tmp_path, line), exporter='dynamo') == []
    (entry,) = lines_of(neck(tmp_path, line))
    assert entry.by == 'values' and line in entry.text


def test_arithmetic_and_sizes_as_they_are_choose_nothing(tmp_path):
    line = (
        'assert x.dim() == 4, f"{x.shape}"; size = x.size(); x = x.view(size[0], -1, *size[2:]); '
        'x = torch.where(x > 9, x * 2, x) + x.shape[2] // 2'
    )
    assert lines_of(neck(tmp_path, line), any_size=True) == []


def test_code_that_cannot_be_observed_makes_inputs_decide(tmp_path):
    line = 'x = x if type(x.shape[2]) is int else x.missing'
    (entry,) = lines_of(neck(tmp_path, line), any_size=True)
    assert entry.line == 0 and 'could not be observed' in entry.reason


def test_a_line_of_the_users_counts_in_any_folder_and_in_the_place_of_a_function_of_pytorch(
    tmp_path, monkeypatch
):
    helpers = tmp_path / 'elsewhere'
    helpers.mkdir()
    (helpers / 'helper_of_the_user.py').write_text(
        'def tame(x, *args, **settings):\n    return x * 2 if x.max() > 9 else x\n'
    )
    monkeypatch.syspath_prepend(helpers)
    line = 'import helper_of_the_user; x = helper_of_the_user.tame(x)'
    (entry,) = lines_of(neck(tmp_path, line))
    assert entry.file == 'helper_of_the_user.py' and entry.line == 2
    tame = importlib.import_module('helper_of_the_user').tame
    network = Upsampled()
    assert lines_of(network) == [] and not has_users_code(network.neck)
    monkeypatch.setattr(torch.nn.functional, 'interpolate', tame)
    (entry,) = lines_of(network)
    assert entry.file == 'helper_of_the_user.py' and has_users_code(network.neck)


class Upsampled(torch.nn.Module):
    """A neck of mmdet, which calls `F.interpolate`."""

    def __init__(self):
        super().__init__()
        self.neck = FPN([3, 3], 3, 2).eval()

    def forward(self, x):
        return self.neck((x, x))


def test_lines_of_this_package_are_none_of_the_users(tmp_path, monkeypatch):
    module = neck(tmp_path, VALUE)
    assert lines_of(module)
    monkeypatch.setattr(source_code, 'OURS', tmp_path)
    assert lines_of(module) == []


def test_a_library_s_module_is_not_run(monkeypatch):
    monkeypatch.setattr(torch.nn.Conv2d, 'forward', None)
    assert lines_of(torch.nn.Conv2d(3, 4, 1)) == []


@pytest.mark.parametrize(
    'line',
    [
        'if not torch.onnx.is_in_onnx_export(): x = x.clamp(max=50)',
        'if not torch.jit.is_tracing(): x = x.clamp(max=50)',
        'from torch.onnx import is_in_onnx_export as asks; x = x if asks() else x.clamp(max=50)',
    ],
)
def test_a_line_that_asks_whether_an_export_runs_makes_inputs_decide(tmp_path, line):
    (entry,) = lines_of(neck(tmp_path, line))
    assert (entry.file, entry.line, entry.code, entry.by) == ('users_neck.py', LINE, line, 'export')


@pytest.mark.parametrize(
    'line',
    [
        'x = x.clamp(max=50) if isinstance(x.shape[2], int) else x',
        'x = x if hasattr(x.shape[2], "item") else x.clamp(max=50)',
        'from torch.onnx._internal.torchscript_exporter import _globals as g; '
        'x = x if g.GLOBALS.in_onnx_export else x.clamp(max=50)',
    ],
)
def test_a_line_that_a_trace_does_not_run_makes_inputs_decide(tmp_path, line):
    (entry,) = lines_of(neck(tmp_path, line))
    assert entry.reason == f'users_neck.py:{LINE} is run by PyTorch alone' and line in entry.text
    assert lines_of(neck(tmp_path, line), exporter='dynamo') == []


@torch.jit.script
def doubled_if_large(x):
    if bool(x.max() > 9.0):
        x = x * 2
    return x


class Scripted(torch.nn.Module):
    def forward(self, x):
        return doubled_if_large(x)


def test_a_scripted_function_has_both_of_its_ways_in_a_graph():
    assert lines_of(Scripted()) == []


def test_a_number_that_every_run_changes_makes_inputs_decide_and_one_that_is_set_anew_does_not(tmp_path):
    (entry,) = lines_of(neck(tmp_path, 'self.runs = getattr(self, "runs", 0) + 1'))
    assert entry.reason == 'Neck.runs changes from run to run'
    assert lines_of(neck(tmp_path, 'self.rows, self.kept = x.shape[2], x')) == []


class Bounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clamp(max=50)

    @staticmethod
    def symbolic(g, x):
        return g.op('Identity', x)


class BoundedMaps(torch.nn.Module):
    def forward(self, x):
        return Bounded.apply(torch.nn.functional.hardtanh(x, -50, 50))


def test_forms_that_the_users_code_writes_into_graphs_make_inputs_decide(monkeypatch):
    assert [entry.file for entry in lines_of(BoundedMaps())] == ['Bounded']
    assert lines_of(BoundedMaps(), exporter='dynamo') == []
    torch.onnx.register_custom_op_symbolic('aten::hardtanh', Bounded.symbolic, 17)
    try:
        entries = lines_of(BoundedMaps())
        assert lines_of(Upsampled()) == []
    finally:
        torch.onnx.unregister_custom_op_symbolic('aten::hardtanh', 17)
    assert [entry.reason for entry in entries] == [
        'Bounded has a symbolic of its own',
        'aten::hardtanh has a symbolic of its own',
    ]


def test_a_function_of_autograd_that_was_exported_is_no_code_of_other_modules():
    torch.onnx.export(
        BoundedMaps(), (torch.ones(3),), io.BytesIO(), dynamo=False, opset_version=17, autograd_inlining=False
    )
    assert not has_users_code(torch.nn.Conv2d(3, 4, 1))


def test_where_the_batch_is_open_the_second_run_has_two_pictures_and_a_line_that_counts_is_named(
    tmp_path,
):
    deployment = toy_atss.load_toy()
    options = deployment.family.choose(height=256, width=256, dynamic=True, opset=17)
    runs = observed_inputs(deployment, options, np.zeros((50, 60, 3), np.uint8), 2)
    assert [run['input'].shape for run in runs] == [(1, 3, 256, 256), (2, 3, 384, 512)]
    assert [run['border'].tolist() for run in runs] == [[[0, 0]], [[0, 0]] * 2]  # CornerNet takes it
    line = 'if x.shape[0] > 900: x = x * 2'
    chain = [Stage('network', neck(tmp_path, line), ('input',), ('maps',))]
    (entry,) = traced_lines(chain, runs, 'torchscript', any_size=True)
    assert (entry.code, entry.by) == (line, 'sizes')


CAUGHT = 'try:\n            assert x.max() < 9\n        except AssertionError:\n            x = x * 2'
FAILING = (
    'try:\n            torch.nn.functional.one_hot(x.long(), 1)\n        except {}:\n            x = x * 2'
)


@pytest.mark.parametrize(
    ('line', 'by'),
    [
        ('if (x > 9).nonzero().shape[0]: x = x * 2', 'values'),
        ('if x[x > 9].numel(): x = x * 2', 'values'),
        ('if len(torch.where(x > 9)[0]): x = x * 2', 'values'),
        ('if x.flatten()[: (x > 9).sum()].shape[0]: x = x * 2', 'values'),
        ('if torch.zeros((x > 9).sum()).shape[0]: x = x * 2', 'values'),
        ('if torch.arange((x > 9).sum()).numel(): x = x * 2', 'values'),
        ('if torch.nn.functional.one_hot((x > 9).long()).shape[-1] > 1: x = x * 2', 'values'),
        ('if x.relu().to_sparse()._nnz() == 3: x = x * 2', 'values'),
        ('x = x.clone().apply_(lambda value: value * 2 if value > 9 else value)', 'values'),
        ('x = x * len(x.flatten().chunk((x > 9).sum() + 1))', 'values'),
        ('if len(x[x > 9].unbind()) > 3: x = x * 2', 'values'),
        ('if len(x[x > 9].split(2)) > 3: x = x * 2', 'values'),
        ('if (x > 9).nonzero()[:, 0].squeeze().dim() == 0: x = x * 2', 'values'),
        (
            'x = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.ReLU()])[(x.max() > 9).long()](x)',
            'values',
        ),
        ('torch.distributions.Categorical(probs=x.softmax(-1))', None),
        ('x = x + torch.stack(x[x[..., 0] > 9].unbind(-1)).sum()', None),
        ('a, b = x.flatten()[:2].unbind(); x = x * a / a', None),
        ('if (x > 9).nonzero()[:, :1].squeeze(1).dim() == 0: x = x * 2', None),
        ('if torch.nn.functional.one_hot((x > 9).long(), 2).shape[-1] > 2: x = x * 2', None),
        ('if torch.full((2,), x.max()).shape[0] > 2: x = x * 2', None),
        ('if x.flatten()[x.long().max() * 0].dim(): x = x * 2', None),
        (CAUGHT, 'values'),
        (FAILING.format('RuntimeError'), 'values'),
        (FAILING.format('ImportError'), None),
        (CAUGHT + '\n            raise', None),
        ('import heapq; x = x * heapq.nlargest(1, [x.max(), x.min()])[0]', 'values'),
        ('exec("def f(x): return x * 2 if x.max() > 9 else x", globals()); x = f(x)', 'values'),
        ('import time; x = x * 2 if time.time() < 0 else x', 'clock'),
        ('import os; x = x * 2 if os.path.exists("/tmp/mm2onnx-cold") else x', 'outside'),
        ('from pathlib import Path; x = x * 2 if Path("/tmp/mm2onnx-cold").is_file() else x', 'outside'),
        ('import os; x = x * 2 if os.environ.get("MM2ONNX_COLD") else x', 'outside'),
        ('import os; x = x * 2 if os.environ is None else x', None),
        ('import warnings; warnings.warn("a line"); import colorsys', None),
        (
            'import mmcv.ops; x = x + mmcv.ops.bbox_overlaps(x[0, 0, :2, :4], x[0, 0, 2:4, :4])[0, 0]',
            'values',
        ),
    ],
)
def test_whatever_chooses_by_values_in_a_file_of_one_size_makes_inputs_decide(tmp_path, line, by):
    entries = lines_of(neck(tmp_path, line))
    assert [entry.by for entry in entries] == ([by] if by else [])
    assert all(entry.file == 'users_neck.py' for entry in entries)


COMPILED = """
import torch

LIBRARY = torch.library.Library('{space}', 'DEF')
LIBRARY.define('peak(Tensor x) -> float')
LIBRARY.define('twice(Tensor x) -> Tensor')
LIBRARY.impl('peak', lambda x: float(x.max()), 'CPU')
LIBRARY.impl('twice', lambda x: x * 2, 'CPU')


@torch.jit.script
def is_far(x: torch.Tensor) -> bool:
    return bool(x.max() > 9)


@torch.jit.script
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2 if bool(x.max() > 9) else x


class Peak(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> float:
        return float(x.max())


class Neck(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.peak = torch.jit.script(Peak())

    def forward(self, x):
        {line}
        return x
"""


@pytest.mark.parametrize(
    ('line', 'chooses'),
    [
        ('x = x * 2 if is_far(x) else x', True),
        ('x = x.clamp(max=max(9.0, self.peak(x)))', True),
        ('x = x * 2 if torch.ops.{space}.peak(x) > 9 else x', True),
        ('x = twice(x)', False),
        ('x = x + torch.ops.{space}.twice(x).shape[0]', False),
    ],
)
def test_numbers_that_compiled_code_makes_of_tensors_make_inputs_decide(tmp_path, monkeypatch, line, chooses):
    space = f'users_{tmp_path.name}'.replace('-', '_').lower()
    monkeypatch.setitem(globals(), 'NECK', COMPILED.replace('{space}', space))
    entries = lines_of(neck(tmp_path, line.replace('{space}', space)))
    assert [entry.by for entry in entries] == (['values'] if chooses else [])


HANDED_OVER = """
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

POOL = ThreadPoolExecutor(1)
POOL.submit(int).result()  # its thread runs before anything is observed


class Neck(torch.nn.Module):
    lock = threading.Lock()

    def forward(self, x):
        with self.lock:
            x = x + 1
        {line}
        return x
"""
"""A class whose pool is as old as its module."""


@pytest.mark.parametrize(
    ('line', 'is_named'),
    [
        ('x = x * 2 if POOL.submit(lambda value: bool(value.max() > 9), x).result() else x', True),
        ('x = [x * 2, x][list(POOL.map(lambda value: int(value.max() < 9), [x]))[0]]', True),
        ('import subprocess; x = x * 2 if subprocess.run(["false"]).returncode == 0 else x', True),
        ('print("a line", end="", flush=True)', False),
    ],
)
def test_work_for_a_thread_or_a_process_makes_inputs_decide(tmp_path, monkeypatch, line, is_named):
    monkeypatch.setitem(globals(), 'NECK', HANDED_OVER)
    verdict = Verdict({}, traced_lines=lines_of(neck(tmp_path, line)))
    number = 1 + HANDED_OVER[: HANDED_OVER.index('{line}')].count('\n')
    name = f'users_neck.py:{number} hands work to another thread or process'
    assert (name in verdict.by_inputs) == is_named
    assert bool(verdict.traced_lines) == is_named


@pytest.mark.parametrize(
    'line',
    [
        'large = x.shape[2] > 900; x = x * 2 if large else x',
        'x = [x, x * 2][x.numel() > 90000]',
        'x = x * {900: 2}.get(x.shape[2], 1)',
        'import numpy as np; x = x * 2 if np.prod(x.shape) > 90000 else x',
        'x = x * 2 if "900" in str(tuple(x.shape)) else x',
        'x = x + torch.tensor(x.shape[2:]).sum()',
        'x = x + torch.tensor([0.0] * x.shape[3])',
        'x = x * 2 if x.shape[2] & 1024 else x',
        'import numpy as np; x = x + torch.from_numpy(np.ones(x.shape, np.float32))',
        'x = x + self.rows(x)',
        'x = x * 2 if "900" in str(x.shape) else x',
        'x = x * 2 if "900" in f"{x.shape[-2:]}" else x',
        'x = x / x.shape[2:].numel()',
        'x = x * 2 if torch.zeros(x.shape[2]).numpy().shape[0] > 900 else x',
        'x = x * 2 if torch.arange(x.shape[2]).numpy()[-1] > 900 else x',
        'x = x * 2 if torch.zeros(x.shape[2]).untyped_storage().size() > 9000 else x',
        'import math; x = x * math.log2(x.shape[2])',
        'import math; x = x * sum(map(math.log, x.shape))',
        'x = x * 2 if "%d" % x.shape[2] == "900" else x',
        'x = x * [1, 2][x.shape[2] // 900]',
        'x = x * 2 if torch.tensor(x.shape[2]) > 900 else x',
        'try:\n            x = x.view(1, 3, 8, 8)\n        except RuntimeError:\n            pass',
    ],
)
def test_whatever_chooses_by_sizes_in_a_file_of_any_size_makes_inputs_decide(tmp_path, line):
    assert {entry.by for entry in lines_of(neck(tmp_path, line), any_size=True)} == {'sizes'}
    assert lines_of(neck(tmp_path, line)) == []


@pytest.mark.parametrize(
    ('line', 'reason'),
    [
        ('Neck.runs = getattr(Neck, "runs", 0) + 1', 'Neck.runs changes from run to run'),
        (
            'import numpy; Neck.runs = numpy.int64(getattr(Neck, "runs", 0)) + 1',
            'Neck.runs changes from run to run',
        ),
        ('COUNTS.append(0)', 'users_neck.COUNTS changes from run to run'),
        ('next(TURNS)', 'users_neck.TURNS changes from run to run'),
        ('count()', 'users_neck.counter.<locals>.count changes from run to run'),
        ('self.conv.settings["runs"] += 1', 'Conv2d.settings changes from run to run'),
        ('self.conv.weight.data.mul_(0.9)', 'conv.weight changes from run to run'),
        ('global KEPT; KEPT = x', 'users_neck.py:{} keeps a value for later runs'),
        ('self.first = getattr(self, "first", x.mean())', 'Neck.first keeps a value for later runs'),
        ('import random; random.random()', 'random numbers of Python are drawn'),
        ('import numpy as np; np.random.rand()', 'random numbers of numpy are drawn'),
    ],
)
def test_state_outside_of_attributes_and_random_numbers_make_inputs_decide(tmp_path, line, reason):
    module = neck(tmp_path, line)
    module.conv.settings = {'runs': 0}
    assert [entry.reason for entry in lines_of(module)] == [reason.format(LINE)]


@pytest.mark.parametrize(
    ('held', 'line'),
    [
        ('contextvars.ContextVar("runs", default=0)', 'HELD.set(HELD.get() + 1)'),
        ('bytearray(1)', 'HELD[0] += 1'),
        ('ctypes.c_int(0)', 'HELD.value += 1'),
        ('io.BytesIO(bytes(99))', 'HELD.read(1)'),
        ('itertools.cycle([1, 2])', 'next(HELD)'),
        ('(run for run in range(99))', 'next(HELD)'),
        ('types.SimpleNamespace(runs=0)', 'HELD.runs += 1'),
        ('contextvars.ContextVar("runs", default=0)', 'HELD.get()'),
        ('bytearray(1)', 'HELD[0]'),
        ('dict()', 'exec("def f(x): return x * 1", HELD); x = HELD["f"](x)'),
        ('threading.Lock()', 'HELD.acquire(); HELD.release()'),
    ],
)
def test_state_in_whatever_object_a_module_holds_makes_inputs_decide(tmp_path, monkeypatch, held, line):
    before, after = NECK.split('COUNTS, TURNS')
    text = f'import contextvars, ctypes, io, threading, types\n{before}HELD = {held}\nCOUNTS, TURNS{after}'
    monkeypatch.setitem(globals(), 'NECK', text)
    changes = any(sign in line for sign in ('set(', '+=', 'next', 'read'))
    expected = ['users_neck.HELD changes from run to run'] if changes else []
    assert [entry.reason for entry in lines_of(neck(tmp_path, line))] == expected


KEEPING = 'KEPT = {}\n\ndef keep(key, value):\n    return KEPT.setdefault(key, value)\n'
HOLDING = (
    'def holder():\n    kept = []\n    def keep(key, value):\n        if not kept:\n'
    '            kept.append(value)\n        return kept[0]\n    return keep\n\nkeep = holder()\n'
)
FIRST_DICT = (
    'def holder():\n    kept = None\n    def keep(key, value):\n        nonlocal kept\n'
    '        kept = kept or {key: value}\n        return kept[key]\n    return keep\n\nkeep = holder()\n'
)


TWO_LEVELS = (
    'KEPT = [{}, {}]\n\ndef keep(key, value):\n    KEPT[1].setdefault(key, 1)\n'
    '    return KEPT[0].setdefault(key, value)\n'
)


SLOTS = (
    'class Memory:\n    __slots__ = ("__entries",)\n'
    '    def keep(self, key, value):\n        if not hasattr(self, "_Memory__entries"):\n'
    '            self.__entries = {key: value}\n        return self.__entries[key]\n\n'
    'MEMORY = [Memory()]\nkeep = MEMORY[0].keep\n'
)
FROZEN_SLOTS = (
    'import dataclasses\n\n@dataclasses.dataclass(frozen=True, slots=True)\nclass Memory:\n'
    '    entry: object = None\n\nMEMORY = Memory()\n\ndef keep(key, value):\n    if MEMORY.entry is None:\n'
    '        object.__setattr__(MEMORY, "entry", value)\n    return MEMORY.entry\n'
)


@pytest.mark.parametrize(
    ('text', 'name'),
    [
        (KEEPING, 'KEPT'),
        (HOLDING, 'keep'),
        (FIRST_DICT, 'keep'),
        (TWO_LEVELS, 'KEPT'),
        (SLOTS, 'MEMORY'),
        (FROZEN_SLOTS, 'MEMORY'),
    ],
)
@pytest.mark.parametrize(('value', 'depends'), [('x.mean()', True), ('torch.ones(8)', False)])
def test_what_the_very_first_run_leaves_outside_of_the_module_makes_inputs_decide(
    tmp_path, monkeypatch, text, name, value, depends
):
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    (tmp_path / 'keeper.py').write_text(text)
    monkeypatch.delitem(sys.modules, 'keeper', raising=False)
    module = neck(tmp_path, f'import keeper; x = x + keeper.keep("of all", {value})')
    importlib.import_module('keeper')
    containers, inputs = OuterContainers(), [torch.from_numpy(INPUT)]
    module(*inputs)
    found = lines_of_module(module, inputs, inputs, 'torchscript', any_size=False, containers=containers)
    reason = f'keeper.{name} keeps a value for later runs'
    assert [entry.reason for entry in found] == ([reason] if depends else [])
    assert containers.changed()
    with containers.restored():
        assert not containers.changed()


def test_random_numbers_of_a_followed_function_do_not_count(tmp_path):
    module, inputs = neck(tmp_path, 'import numpy as np; np.random.rand()'), [torch.from_numpy(INPUT)]
    forward = type(module).forward

    def lines(*followed):
        found = lines_of_module(module, inputs, inputs, 'torchscript', any_size=False, followed=followed)
        return [line.reason for line in found]

    assert lines() == ['random numbers of numpy are drawn'] and lines(forward) == []
    assert lines(torch.nn.Conv2d.forward) == ['random numbers of numpy are drawn']


def test_an_object_that_answers_to_every_name_has_no_state():
    class Answering:
        __slots__ = ()

        def __getattr__(self, name):
            if name == '__dict__':
                return 0
            raise AttributeError(name)

    assert Contents().of(Answering()) == ['Answering']
    assert Contents().of(np.ma.masked)[0] == 'MaskedConstant'
    assert Contents().of(random.SystemRandom())[0] == 'SystemRandom'


def test_numbers_of_numpy_are_compared_as_pythons():
    values = [np.int64(3), np.bool_(True), np.float32('nan')]
    assert Contents().of(values) == ['list', 3, True, 'nan'] and arrays_and_numbers(values) == [
        3,
        True,
        'nan',
    ]


def test_an_object_of_a_library_that_cannot_be_read_counts_by_its_type_and_one_of_the_users_does_not():
    class Refusing:
        __slots__ = ('entry',)

        def __getattr__(self, name):
            raise ModuleNotFoundError(name)

    with pytest.raises(UnreadableError, match='Refusing: ModuleNotFoundError'):
        Contents().of([Refusing()])
    Refusing.__module__ = 'torch.absent'
    assert Contents().of([Refusing(), 1]) == ['list', 'Refusing', 1]


def test_a_line_that_chooses_by_the_number_of_regions_makes_inputs_decide_in_a_file_of_one_size(tmp_path):
    boxes = 'torch.tensor([[0., 0., 0., 4., 4.]])'
    pooled = f'from mmcv.ops import roi_align; y = roi_align(x, {boxes}, (2, 2)); '
    (entry,) = lines_of(neck(tmp_path, f'{pooled}x = x * 2 if y.shape[0] > 900 else x'))
    assert entry.by == 'values'
    assert lines_of(neck(tmp_path, f'{pooled}x = x * 2 if y.shape[2] > 900 else x')) == []
    module = neck(tmp_path, f'{pooled}self.upsampled(y); self.upsampled(x[x > 0].view(1, 3, 8, 8))')
    module.upsampled = ConvTranspose2d(3, 3, 2)
    assert lines_of(module) == []
    (entry,) = lines_of(neck(tmp_path, f'{pooled}x = x * 2 if y.max() > 900 else x'))
    assert entry.by == 'values'


def test_a_module_that_was_typed_at_a_console_is_the_users():
    names = dict(torch=torch)
    text = 'class Typed(torch.nn.Module):\n def forward(self, x):\n  return x * 2 if x.sum() > 5 else x'
    exec(compile(text, '<stdin>', 'exec'), names)
    lines = lines_of_module(names['Typed'](), (torch.ones(2, 2),), (torch.ones(2, 2),), 'torchscript', False)
    assert [(line.file, line.line, line.by) for line in lines] == [('<stdin>', 3, 'values')]


def test_packages_below_the_modules_of_python_are_the_users_where_the_classes_are(monkeypatch, tmp_path):
    """Environments of conda have site-packages in the folder of Python's own modules."""
    package = tmp_path / 'site-packages' / 'fork'
    monkeypatch.setattr(source_code, 'PYTHON', tmp_path)
    assert is_observed_file(package / 'net.py', [package])
    assert not is_observed_file(package / 'net.py', [])
    assert not is_observed_file(tmp_path / 'random.py', [package])


@pytest.mark.parametrize('of', [lambda tensor: tensor, torch.Tensor.to_sparse])
def test_a_large_tensor_that_numpy_lacks_is_compared_whole(of):
    tensor = torch.ones(5000, dtype=torch.bfloat16)
    before = Contents().of(of(tensor))
    assert before == Contents().of(of(tensor.clone()))
    tensor[2500] = 2
    assert Contents().of(of(tensor)) != before


def test_equal_code_of_two_files_is_two_codes():
    """Python calls code equal that has the same text at the same line, whatever file it is in."""
    functions = []
    for file in ('library.py', 'users.py'):
        names = {}
        exec(compile('def scaled(x):\n    return x * FACTOR\n', file, 'exec'), names | {'FACTOR': 2}, names)
        functions.append(types.FunctionType(names['scaled'].__code__, {'FACTOR': 2}))
    library, users = functions
    assert library.__code__ == users.__code__
    codes = codes_of_run(lambda: (library(1), users(1)), lambda code: code.co_filename == 'users.py')
    assert [code.co_filename for code in codes] == ['users.py']
