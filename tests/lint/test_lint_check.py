"""What the linter follows, what it does not report, and how reports are grouped, ordered and written."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from examples import ROWS as X
from examples import Model
from torch import nn

from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.lint import check
from mmdeploy_ext.lint.report import print_report, summary
from mmdeploy_ext.lint.rules import EXPORTERS


def rules(forward, *args, **options):
    return check(Model(forward), args or (X,), try_exports=False, **options).rules


def test_numbers_taken_out_of_parameters_and_constants_are_no_findings():
    assert not rules(lambda self, x: x * self.weight.sum().item())
    assert not rules(lambda self, x: x * float(self.table[0]) * int(torch.tensor(3)))
    assert not rules(lambda self, x: x * torch.zeros_like(x).sum().item() + x)
    assert not rules(lambda self, x: x * 2 if self.table.sum() > 0 else x)


def test_dependence_goes_through_operators_writes_and_views():
    def through(self, x):
        made = torch.zeros(5)
        made[1:3] = x[0, :2]
        made.view(-1)
        return x * made.sum().item()

    assert 'value-to-python' in rules(through)
    assert 'value-to-python' in rules(lambda self, x: x * x.type(torch.float64).sum().item())
    assert 'value-to-python' in rules(lambda self, x: x * torch.cat([x, x]).sort(0)[0][0, 1].item())
    assert 'value-to-python' in rules(lambda self, x: x * torch.where(x > 0, self.table[0], 1.0).max().item())


def test_indices_of_rows_depend_on_the_values_that_chose_them():
    assert 'value-in-branch' in rules(lambda self, x: sum(x[i] for i in range(int((x[:, 0] > 0.4).sum()))))


def test_what_torch_does_for_itself_is_no_finding():
    encoder = nn.TransformerEncoderLayer(8, 2, batch_first=True).eval()
    assert not check(encoder, (torch.rand(2, 5, 8),), try_exports=False).rules
    assert not check(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Upsample(scale_factor=2)).eval(),
        (torch.rand(1, 3, 8, 8),),
        try_exports=False,
    ).rules


def test_guards_on_sizes_are_no_findings_and_branches_are():
    def guarded(self, x):
        assert x.shape[1] == 3
        if x.shape[1] != 3:
            raise ValueError('three columns')
        return x * 2

    def guarded_by_len(self, x):
        assert len(x) == len(x[:, 0])
        return x * 2

    assert not rules(guarded)
    assert not rules(guarded_by_len)
    assert rules(lambda self, x: x * 2 if len(x) > 3 else x) == {'size-in-branch'}
    assert rules(lambda self, x: x * 2 if x.shape[0] > 3 else x) == {'size-in-branch'}


def test_branches_by_match_and_inside_of_its_cases_are_found():
    def in_a_case(self, x):
        match self.training:
            case _:
                return x * 2 if x.shape[0] > 3 else x

    def by_a_case(self, x):
        match x.shape[0]:
            case 4:
                return x * 2
        return x

    def by_a_guard(self, x):
        match self.training:
            case _ if x.shape[0] > 3:
                return x * 2
        return x

    for forward in (in_a_case, by_a_case, by_a_guard):
        assert rules(forward) == {'size-in-branch'}


def test_rows_that_are_assigned_to_a_fixed_number_of_names_are_no_loop():
    def to_names(self, x):
        first, second, third, fourth = x
        [fifth, (sixth, seventh, eighth)] = x[:2, 0], x[0]
        return first + second + third + fourth + fifth.sum() + sixth + seventh + eighth

    def to_a_rest(self, x):
        first, *rest = x
        return first + len(rest)

    def generated_to_a_rest(self, x):
        first, *rest = (row for row in x)
        return first + len(rest)

    assert not rules(to_names)
    assert rules(to_a_rest) == rules(generated_to_a_rest) == {'size-in-loop'}


@pytest.mark.parametrize('file', ['<string>', '<stdin>', '<python-input-0>', '<ipython-input-1-ab>'])
def test_a_module_that_was_typed_has_the_findings_of_one_in_a_file(file):
    names = dict(nn=nn)
    text = 'class Typed(nn.Module):\n def forward(self, x):\n  return x * x.sum().item()'
    exec(compile(text, file, 'exec'), names)
    finding = next(iter(check(names['Typed'](), (X,), try_exports=False)))
    assert (finding.rule, finding.site.text) == ('value-to-python', f'{file}:3')


def test_only_sizes_that_differ_in_the_other_inputs_count():
    def uses(self, x):
        return x[: int(x.shape[0] / 2)] * math.ceil(x.shape[1] / 2)

    both = check(Model(uses), (X,), try_exports=False)
    rows = check(Model(uses), (X,), other_inputs=(torch.rand(6, 3),), try_exports=False)
    assert [sum(finding.count for finding in report) for report in (both, rows)] == [2, 1]
    assert not rules(uses, dynamic=False)
    assert not rules(uses, other_inputs=(torch.rand(4, 3),))


@pytest.mark.parametrize(('forward', 'rule'), [
    (lambda self, x, n: x * 2, 'unused-input'),
    (lambda self, x, n: x * int(n), 'frozen-input'),
    (lambda self, x, n: x * {2: 1}[int(n)], 'frozen-input'),  # a KeyError with any other value
    (lambda self, x, n: x if int(n) == 2 else 1.0, 'frozen-input'),
    (lambda self, x, n: x + n, None),
    (lambda self, x, n: x[:n], None),
    (lambda self, x, n: (x - 1).log(), 'unused-input'),  # NaN equals NaN
])  # fmt: skip
def test_inputs_are_frozen_unused_or_used(forward, rule):
    found = rules(forward, X, torch.tensor(2))
    assert (rule is None and not found & {'unused-input', 'frozen-input'}) or rule in found


def test_a_time_stamp_that_the_outputs_depend_on_is_no_unused_input():
    found = rules(lambda self, x, time_s: x * int(time_s), X, torch.tensor(1.5e9))
    assert 'frozen-input' in found and 'unused-input' not in found


def test_an_input_that_gives_its_sizes_alone_is_used_where_sizes_differ():
    def sized(self, x, y):
        return x.new_zeros(y.shape[0], 3) + x[:1]

    assert 'unused-input' not in rules(sized, X, X + 1)
    assert 'unused-input' in rules(sized, X, X + 1, dynamic=False)


@pytest.mark.parametrize('pass_on', [
    lambda self, x: torch.dropout(x, 0.5, train=False),
    lambda self, x: torch.dropout(x, 0.5, False),
    lambda self, x: nn.functional.dropout(x, 0.0),
    lambda self, x: nn.functional.dropout(x, training=False),
    lambda self, x: nn.functional.alpha_dropout(x),
    lambda self, x: nn.functional.scaled_dot_product_attention(x, x, x),
])  # fmt: skip
def test_dropout_that_is_off_draws_nothing(pass_on):
    assert not rules(pass_on)


def test_the_dropout_of_an_attention_draws_in_training_alone():
    attention = nn.MultiheadAttention(4, 2, dropout=0.1)
    example = (torch.rand(3, 1, 4),) * 3
    assert 'random' in check(attention.train(), example, try_exports=False).rules
    assert 'random' not in check(attention.eval(), example, try_exports=False).rules


def test_further_positional_arguments_have_names_of_their_own():
    class Further(nn.Module):
        def forward(self, x, *rest, scale=1.0, **options):
            return x * scale

    report = check(Further(), (X, X + 1, X + 2), try_exports=False)
    details = sorted(detail for finding in report for detail in finding.details)
    assert details == ["input 'input_1' reaches no output", "input 'input_2' reaches no output"]


def test_state_in_lists_and_dicts_is_found_without_a_line():
    def remembers(self, x):
        self.kept['last'] = x
        return x * 2

    model = Model(remembers)
    model.kept = {'last': torch.zeros(4, 3)}
    assert 'state-written' in check(model, (X,), try_exports=False).rules
    assert torch.equal(model.kept['last'], torch.zeros(4, 3)), 'the module stays as it was'


class CountsFrames(nn.Module):
    """A number that `forward` changes goes into the file as it was; a size that is kept is not meant."""

    def __init__(self):
        super().__init__()
        self.frame, self.height = 0, None

    def forward(self, x):
        self.height = x.shape[0]
        self.frame += 1
        return x * self.frame


def test_a_number_that_counts_the_calls_is_state():
    found = [
        one
        for one in check(CountsFrames(), (torch.rand(3, 4),), try_exports=False)
        if one.rule == 'state-written'
    ]
    assert [(one.site.code, one.details) for one in found] == [
        ('self.frame += 1', ("attribute 'frame' is set",))
    ]


def test_a_scripted_function_that_a_module_holds_is_no_bad_input():
    """PyTorch cannot copy it: the module itself runs then."""
    model = Model(lambda self, x: self.halved(x) * x.sum().item())
    model.halved = torch.jit.script(halved)
    assert 'value-to-python' in check(model, (X,), try_exports=False).rules


def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


def test_a_tensor_of_data_by_name_is_one_of_values_where_they_depend_on_inputs():
    assert not rules(lambda self, x: x + torch.tensor(data=[1.0]))
    assert 'value-to-python' in rules(lambda self, x: x + torch.tensor(data=[x.max(), x.min(), x.sum()]))


def test_findings_of_one_line_are_one_with_a_count():
    def loops(self, x):
        for _ in range(5):
            x = x * x.max().item()
        return x

    (found,) = check(Model(loops), (X,), try_exports=False, exporters=['torchscript'])
    assert (found.rule, found.count, found.severity) == ('value-to-python', 5, 'error')
    assert found.site.code == 'x = x * x.max().item()'
    assert found.site.file.endswith('test_lint_check.py') and 'args' not in found.details[0]


def test_severity_is_that_of_the_exporters_asked_for():
    def takes(self, x):
        return x * x.max().item()

    severities = [
        [finding.severity for finding in check(Model(takes), (X,), exporters=[name], try_exports=False)]
        for name in EXPORTERS
    ]
    assert severities == [['error'], ['note']]


class TakesDict(nn.Module):
    def forward(self, data, scale):
        return data['a'] * scale


def test_nested_inputs_have_names():
    (found,) = check(TakesDict(), ({'a': X, 'b': X + 1}, 2.0), try_exports=False)
    assert found.details == ("input 'data[1]' reaches no output",)


def test_the_trial_names_the_line_of_an_unknown_operator():
    def unknown(self, x):
        y = x + 1
        return torch.special.bessel_j0(y)

    report = check(Model(unknown), (X,), exporters=['torchscript'])
    (found,) = report
    assert report.failed and report.trials[0].refused
    assert found.rule == 'unsupported-operator' and found.site.code == 'return torch.special.bessel_j0(y)'
    triu = Model(lambda self, x: x.triu(1))
    (found,) = check(triu, (X,), exporters=['torchscript'], opset=13)
    assert 'opset 14 has it' in found.details[0]
    assert not check(triu, (X,), exporters=['torchscript'], opset=14).failed


class Unknown(nn.Module):
    def forward(self, x):
        y = x + 1
        return torch.special.bessel_j0(y)


class Decides(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x


@pytest.mark.matrix
def test_the_trial_of_the_dynamo_exporter_names_lines_too():
    report = check(Unknown(), (X,), exporters=['dynamo'])
    assert report.failed and 'bessel_j0' in report.trials[0].text
    (trial,) = check(Decides(), (X,), exporters=['dynamo']).trials
    assert trial.refused and 'test_lint_check.py' in trial.text


def test_the_trial_is_not_tried_where_it_would_end_the_process():
    for forward in (lambda self, x: x + x.data, lambda self, x: x + self.weight.data):
        report = check(Model(forward), (X,), exporters=['dynamo'])
        assert report.trials[0].skipped and report.failed


@pytest.mark.parametrize(('inputs', 'options', 'message'), [
    ((), {}, 'hold no tensor'),
    (X, {}, r'example_inputs is a Tensor; expected a tuple of the arguments of forward, .* \(x,\)'),
    (dict(x=X), {}, 'example_inputs is a dict; expected a tuple'),
    ((X,), dict(other_inputs=X), 'other_inputs is a Tensor; expected a tuple'),
    ((X, X), {}, r'Model does not run on these inputs \(float32 .*TypeError'),
    ((X,), dict(exporters=['onnx']), 'expected some of torchscript, dynamo'),
    ((X,), dict(exporters=[]), 'expected some of'),
])  # fmt: skip
def test_bad_arguments_are_refused_by_name(inputs, options, message):
    with pytest.raises(UsageError, match=message):
        check(Model(lambda self, x: x), inputs, **options)


def test_inputs_of_a_wrong_shape_are_named_with_the_error_of_the_model():
    with pytest.raises(UsageError, match=r'\(float32.*mat1'):
        check(nn.Linear(4, 2), (X,), try_exports=False)


def test_torch_is_as_it_was_afterwards():
    before = nn.Module.__setattr__
    rules(lambda self, x: x * x.max().item())
    assert nn.Module.__setattr__ is before and not torch.onnx.is_in_onnx_export()


def test_reports_print_and_write_what_is_in_them():
    from rich.console import Console

    console = Console(record=True, width=120)
    module = Model(lambda self, x, y: {'a': x * x.max().item()})
    report = check(module, (X, X + 1), exporters=['torchscript'])
    print_report(report, console)
    text = console.export_text()
    assert 'error value-to-python' in text and 'fix: Keep it a tensor' in text and 'exports' in text
    assert summary(report) == '1 error, 1 warning'
    content = json.loads(json.dumps(report.to_json()))
    assert {finding['rule'] for finding in content['findings']} == {'value-to-python', 'unused-input'}
    assert content['failed'] and content['trials'][0]['exporter'] == 'torchscript'


def test_any_module_is_checked_in_a_script_that_imports_nothing_else(tmp_path):
    """As docs/export-pitfalls.md shows it: no OpenMMLab, and places that an editor opens."""
    script = tmp_path / 'mine.py'
    script.write_text(
        'import sys\n'
        'import torch\n'
        'from mmdeploy_ext.lint import check\n'
        'class Mine(torch.nn.Module):\n'
        '    def forward(self, x):\n'
        '        return x * x.max().item()\n'
        'report = check(Mine().eval(), (torch.rand(3, 4),), exporters=("torchscript",))\n'
        'print(*(f"{finding.rule} {finding.site}" for finding in report if finding.severity == "error"))\n'
        'assert not any(name.split(".")[0] in ("mmcv", "mmdet", "torchvision") for name in sys.modules)\n'
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[2])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ['value-to-python', 'mine.py:6']
