"""Both exporters: the table's command, a frozen input is found, and what stops `--exporter dynamo`."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from torch import nn

import toy_atss
from docs._pages.exporters import page as exporters_page
from docs._pages.exporters import tool as exporters_tool
from docs._pages.exporters.rows import MODELS, Row
from marking import in_suite
from mmdeploy_ext.exporting import dynamo, export
from mmdeploy_ext.exporting.export import export_module
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.graph.passes.deform_conv import replace_deform_conv
from mmdeploy_ext.preprocess.pictures import read_image
from proofs import prove_samples
from verdicts import cases_of, checks_of

REPO = Path(__file__).resolve().parents[2]
PAGE = f'# Title\n\n{exporters_page.BEGIN}\n{{}}\n{exporters_page.END}\nafter\n'
OLD = '| ATSS | raw | dynamo | 18 | no (1) | - | - | - | - | - |'
REASON = '1. ATSS raw, dynamo: an old reason'


def register():
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401


def run(*arguments):
    return exporters_tool.main([str(word) for word in arguments])


@pytest.mark.matrix
def test_the_command_exports_proves_and_writes_the_table(tmp_path, capsys):
    page, figures = tmp_path / 'page.md', tmp_path / 'rows.json'
    page.write_text(PAGE.format(f'{OLD}\n{REASON}'))
    chosen = ('--models', 'atss', '--forms', 'raw', '--opsets', 18, '--rounds', 1)
    assert run(*chosen, '--write', page, '--json', figures) == 0
    rows = [Row(**row) for row in json.loads(figures.read_text())]
    assert [(row.exporter, row.exported, row.proven) for row in rows] == [
        ('torchscript', True, True),
        ('dynamo', True, True),
    ]
    assert rows[0].ratio == 1 and rows[1].ratio > 0 and all(row.nodes > 50 for row in rows)
    text = page.read_text()
    assert text.startswith('# Title\n\n<!-- table') and text.endswith(f'{exporters_page.END}\nafter\n')
    assert '| ATSS | raw | dynamo | 18 | yes | yes |' in text and 'old reason' not in text
    assert '| ATSS | raw | dynamo | 18 | yes | yes |' in capsys.readouterr().out


def test_what_is_not_proven_is_in_the_table_with_its_reason():
    rows = [
        Row('A', 'raw', 'dynamo', 18, reason='stage x: unsupported\noperator y'),
        Row('A', 'full', 'dynamo', 18, reason='scores differ', exported=True, nodes=7),
    ]
    lines = exporters_page.table(rows)
    assert '| A | raw | dynamo | 18 | no (1) | - | - | - | - | - |' in lines
    assert '| A | full | dynamo | 18 | yes | NO (2) | 7 | - | - | - |' in lines
    assert lines[-2:] == [
        '1. A raw, dynamo: stage x: unsupported operator y',
        '2. A full, dynamo: scores differ',
    ]


def test_a_selection_that_is_written_leaves_the_other_rows_and_their_reasons(tmp_path):
    page = tmp_path / 'page.md'
    kept = Row('SOLOv2', 'raw', 'dynamo', 18, 'NaN: x', True, False, 9, 1.0, 2.0, 0.5)
    others = [kept, Row('ATSS', 'full', 'dynamo', 18, 'no symbolic')]
    page.write_text(PAGE.format(''))
    exporters_page.read(str(page)).write(others)
    again = Row('ATSS', 'full', 'dynamo', 18, '', True, True, 5, 1.5, 3.25, 1.0)
    new = Row('ATSS', 'raw', 'torchscript', 20, '', True, True, 4, 1.0, 2.0, 1.0)
    exporters_page.read(str(page)).write([again, new])
    assert exporters_page.read(str(page)).rows == [new, again, kept]
    assert page.read_text().endswith(f'1. SOLOv2 raw, dynamo: NaN: x\n\n{exporters_page.END}\nafter\n')


@pytest.mark.matrix
def test_what_others_write_into_the_page_meanwhile_stays(tmp_path, monkeypatch):
    page, measure = tmp_path / 'page.md', exporters_tool.measure
    page.write_text(PAGE.format(''))
    theirs = Row('SOLOv2', 'raw', 'dynamo', 18, '', True, True, 9, 1.0, 2.0, 0.5)

    def measure_while_others_write(*arguments):
        rows = measure(*arguments)
        exporters_page.read(str(page)).write([theirs])
        page.write_text(page.read_text().replace('after', 'after, and a new paragraph'))
        return rows

    monkeypatch.setattr(exporters_tool, 'measure', measure_while_others_write)
    chosen = ('--models', 'atss', '--forms', 'raw', '--opsets', 18, '--rounds', 1)
    assert run(*chosen, '--exporters', 'torchscript', '--write', page) == 0
    assert 'after, and a new paragraph' in page.read_text()
    found = exporters_page.read(str(page)).rows
    assert [row.model for row in found] == ['ATSS', 'SOLOv2'] and found[1] == theirs


@pytest.mark.parametrize(
    ('inner', 'message'),
    [
        (f'a note\n{OLD}\n{REASON}', "'a note' is neither a row of the table nor a numbered reason"),
        (f'{OLD}\n{REASON}\nsee 2. below', "'see 2. below' is neither"),
        (f'{OLD}\n{REASON}\n2. ATSS raw: y', "'2. ATSS raw: y' is the reason of no row"),
        (f'{OLD}\n{REASON}\n1. ATSS raw: y', 'has a number that is there twice'),
        (f'{OLD}\n{OLD}\n{REASON}', 'is a second row of the same export'),
        (OLD, 'is no row of the table'),
        (f'{OLD.replace("no (1) | -", "yes | yes (1)")}\n{REASON}', 'is no row of the table'),
    ],
    ids=['text', 'sentence', 'unused', 'twice', 'two rows', 'no reason', 'reason of a proven row'],
)
def test_a_line_that_would_be_lost_is_refused_before_anything_is_measured(
    inner, message, tmp_path, capsys, monkeypatch
):
    page, text = tmp_path / 'page.md', PAGE.format(inner)
    page.write_text(text)
    monkeypatch.setattr(exporters_tool, 'measure', lambda *_: pytest.fail('it measured'))
    assert run('--models', 'atss', '--write', page) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith(f'error: --write {page}: ') and error.count('\n') == 1
    assert page.read_text() == text


def test_a_line_that_appears_while_it_measures_is_not_lost_and_nor_are_the_figures(
    tmp_path, capsys, monkeypatch
):
    page, figures = tmp_path / 'page.md', tmp_path / 'rows.json'
    page.write_text(PAGE.format(''))

    def measured(*_):
        page.write_text(PAGE.format('a note'))
        return [Row('ATSS', 'raw', 'dynamo', 18, '', True, True, 9, 1.0, 2.0, 0.5)]

    monkeypatch.setattr(exporters_tool, 'measure', measured)
    assert run('--models', 'atss', '--write', page, '--json', figures) == 1
    captured = capsys.readouterr()
    assert "'a note' is neither" in captured.err and '| ATSS | raw | dynamo | 18 | yes |' in captured.out
    assert page.read_text() == PAGE.format('a note') and json.loads(figures.read_text())[0]['nodes'] == 9


def test_the_page_of_the_repository_is_read_and_written_without_a_change(tmp_path):
    text = (REPO / 'docs/exporters.md').read_text()
    page = tmp_path / 'page.md'
    page.write_text(text)
    found = exporters_page.read(str(page))
    assert len(found.rows) >= 22
    found.write([])
    assert page.read_text() == text


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (('--rounds', 0), '--rounds 0: expected 1 or more'),
        (('--opsets', 17), '--opsets 17: the dynamo exporter writes opsets 18 to'),
        (('--models', 'atss', '--forms', 'fork'), '--forms fork: these models have decode, full, raw'),
        (('--write', 'README.md'), '--write README.md: expected a page with the lines <!-- table'),
    ],
    ids=['rounds', 'opset', 'form', 'page'],
)
def test_bad_options_are_refused_before_anything_is_loaded(arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(REPO)
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_the_models_of_the_table_are_there():
    for model in MODELS.values():
        assert (REPO / model.config).is_file() and (REPO / model.checkpoint).exists()


def test_the_page_has_every_model_in_its_table():
    page = exporters_page.read(str(REPO / 'docs/exporters.md'))
    before, after = page.before, page.after
    table = (REPO / 'docs/exporters.md').read_text()[len(before) :]
    for model in MODELS.values():
        for form in model.forms:
            assert f'| {model.title} | {form} | dynamo |' in table, (model.title, form)
    assert after


# ---- a frozen input


class Frozen(nn.Module):
    """Takes the picture and computes with the one that it was exported with."""

    def __init__(self, network, kept):
        super().__init__()
        self.network, self.kept = network, kept

    def forward(self, picture):
        return self.network(self.kept + 0 * picture)


@pytest.mark.parametrize('exporter', in_suite(['torchscript', 'dynamo'], 'torchscript'))
def test_an_input_that_the_export_froze_is_found(exporter, tmp_path, monkeypatch):
    """The file is right on the traced picture, and every input reaches an output: only others tell."""
    deployment, image = toy_atss.load_toy(), read_image(toy_atss.PICTURE)
    family, stages = deployment.family, deployment.family.stages
    prepared = deploy.prepare_fixed(deployment.rule, image, 256, 320)
    kept = torch.from_numpy(np.array(family.feeds([prepared], False)['input']))

    def frozen_stages(model, options):
        (network,) = stages(model, options)
        return [dataclasses.replace(network, module=Frozen(network.module, kept))]

    with monkeypatch.context() as patch:
        patch.setattr(family, 'stages', frozen_stages)
        path = toy_atss.export_toy(
            deployment, tmp_path / 'm.onnx', form='raw', dynamic=False, exporter=exporter, opset=18
        )
    verdict, _ = prove_samples(deployment, path, [('toy', image)], dict(threads=1))
    assert not verdict.proven
    assert {check.name: check.passed for check in checks_of(verdict)}['every input reaches an output']
    assert all(case.passed for case in cases_of(verdict) if case.traced)
    unseen = [case for case in cases_of(verdict) if not case.traced]
    assert unseen and not any(case.passed for case in unseen)


# ---- what stopped torch.export


@pytest.fixture
def no_torchscript(monkeypatch):
    """The TorchScript exporter and its tracer raise."""

    def gone(*args, **kwargs):
        raise AssertionError('TorchScript was asked')

    monkeypatch.setattr(export, '_export_torchscript', gone)
    monkeypatch.setattr(torch.jit, 'trace', gone)


@pytest.mark.suite(
    "{'padding': 1}-DeformConv2dPack",
    "{'padding': 2, 'dilation': 2, 'stride': 2, 'deform_groups': 2, 'bias': False}-ModulatedDeformConv2dPack",
)  # fmt: skip
@pytest.mark.parametrize('kind', [DeformConv2dPack, ModulatedDeformConv2dPack])
@pytest.mark.parametrize(
    'settings', [dict(padding=1), dict(padding=2, dilation=2, stride=2, deform_groups=2, bias=False)], ids=str
)
def test_the_dynamo_exporter_takes_mmcvs_deformable_convolutions(kind, settings, no_torchscript):
    torch.manual_seed(0)
    conv = kind(4, 4, 3, **settings).eval()
    for parameter in conv.conv_offset.parameters():
        nn.init.normal_(parameter)
    dynamic = dict(x={0: 'B', 2: 'H', 3: 'W'})
    model = export_module(
        conv, (torch.rand(2, 4, 8, 10),), exporter='dynamo', opset=19, input_names=['x'], dynamic=dynamic
    )
    x = torch.rand(3, 4, 12, 9)
    sampled, changed = replace_deform_conv(model)
    assert changed
    with torch.no_grad():
        wanted = conv(x).numpy()
    for form in (model, sampled):
        found = onnxruntime.InferenceSession(form.SerializeToString()).run(None, dict(x=x.numpy()))[0]
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


class InPlace(nn.Module):
    """Writes into results of operators, into a view, and reads what it wrote."""

    def __init__(self, of_a_view):
        super().__init__()
        self.of_a_view = of_a_view

    def forward(self, x):
        y = x * 2
        (y[:, 1:] if self.of_a_view else y).add_(1)
        z = torch.relu_(y - 1.5)
        return y + (1 - z).to(torch.float64), z > 0


class ComparesInPlace(nn.Module):
    """Writes into a tensor what an operator of another type gives; in place its type stays."""

    def forward(self, x):
        return (x * 2).gt_(1) * 3, (x + 1).mul_(x.double()), torch.rsub(x, 1, alpha=2)


def test_what_is_written_in_place_keeps_its_type():
    x, module = torch.rand(3, 4), ComparesInPlace().eval()
    model = export_module(module, (x,), exporter='dynamo', opset=18, input_names=['x'])
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, dict(x=x.numpy()))
    for got, wanted in zip(found, module(x.clone()), strict=True):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted.numpy())


@pytest.mark.parametrize('of_a_view', [False, True])
def test_what_is_written_in_place_is_in_the_file_whether_decomposed_or_not(of_a_view, monkeypatch):
    decomposed = []
    monkeypatch.setattr(
        dynamo,
        'make_functional',
        lambda *args, real=dynamo.make_functional: decomposed.append(not real(*args)) or not decomposed[-1],
    )
    x, module = torch.rand(3, 4), InPlace(of_a_view).eval()
    model = export_module(module, (torch.rand(3, 4),), exporter='dynamo', opset=18, input_names=['x'])
    assert decomposed == [of_a_view]
    found = onnxruntime.InferenceSession(model.SerializeToString()).run(None, dict(x=x.numpy()))
    for got, wanted in zip(found, module(x.clone()), strict=True):
        np.testing.assert_array_equal(got, wanted.numpy())
