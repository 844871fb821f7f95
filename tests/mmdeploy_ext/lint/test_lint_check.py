"""What the linter follows, what it does not report, and how reports are grouped, ordered and written."""

import json
import math
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from docs._pages.lint.example import OUTCOMES
from docs._pages.lint.examples import EXAMPLES
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.lint import RULES, check, sites
from mmdeploy_ext.lint.report import print_report, summary
from mmdeploy_ext.lint.rules import EXPORTERS, SEVERITIES
from mmdeploy_ext.lint.sites import TORCH
from mmdeploy_ext.lint.trial import _last_site, unknown_to_torchscript

X = torch.arange(12.0).reshape(4, 3) / 10


class Model(nn.Module):
    """Calls what it is given."""

    def __init__(self, forward):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer('table', torch.tensor([2.0, 4.0]))
        self.call = forward

    def forward(self, *args):
        return self.call(self, *args)


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
    assert 'value-in-loop' in rules(lambda self, x: sum(x[i] for i in range(int((x[:, 0] > 0.4).sum()))))


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

    def guarded_by_name(self, x):
        rows, columns = int(x.shape[0]), int(x.shape[1])
        if rows % 2 or columns % 3:
            raise ValueError(f'got {rows}x{columns}')
        return x[:, 0].topk(2)[0]

    def guarded_by_len(self, x):
        assert len(x) == len(x[:, 0])
        return x * 2

    assert not rules(guarded)
    assert not rules(guarded_by_len)
    assert rules(lambda self, x: x * 2 if len(x) > 3 else x) == {'size-in-branch'}
    assert not rules(guarded_by_name)
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


def test_a_range_counts_what_is_assigned_to_its_name_or_attribute_alone():
    def to_an_entry(self, x):
        totals, row = [0.0], 0
        totals[row] = x.sum().item()
        return x * sum(totals) + len(range(row))

    def to_another_attribute(self, x):
        self.total, self.rows = 0.0, 2
        self.total = x.sum().item()
        return x * self.total + len(range(self.rows))

    def to_its_attribute(self, x):
        self.rows = x.shape[0]
        return x * len(range(self.rows))

    for forward in (to_an_entry, to_another_attribute):
        found = rules(forward)
        assert 'value-to-python' in found and 'value-in-loop' not in found
    assert 'size-in-loop' in rules(to_its_attribute)


def test_a_size_goes_another_way_in_a_trace_if_tensors_are_told_from_numbers():
    def told_from_numbers(self, x):
        rows = x.shape[0]
        if isinstance(rows, (torch.Tensor, torch.Size)):
            return x
        return x[:, 0].topk(min(5, rows))[0]

    def checked(self, x):
        rows = x.shape[0]
        assert isinstance(rows, int | torch.Tensor)
        return x[:, 0].topk(min(5, rows))[0]

    assert 'topk-from-size' not in rules(told_from_numbers)
    assert 'topk-from-size' in rules(checked)


def test_the_script_that_calls_an_installed_linter_did_not_lead_to_a_line_of_a_library(monkeypatch):
    monkeypatch.setattr(sites, 'MACHINERY', '/site-packages/mmdeploy_ext/lint')
    names = dict(caller=sites.caller)
    exec(compile('def forward():\n    return caller()', '/site-packages/library.py', 'exec'), names)
    exec(compile('def observe():\n    return forward()', f'{sites.MACHINERY}/check.py', 'exec'), names)
    assert names['forward']().via.function == sys._getframe().f_code.co_name
    assert names['observe']().via is None


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
    assert 'unused-input' not in rules(lambda self, x, y: x.new_zeros(len(y), 3) + x[:1], X, X + 1)


def test_tensors_may_be_passed_by_name():
    assert not rules(lambda self, x: torch.select(input=x, dim=0, index=1) * torch.numel(input=x))
    assert not rules(lambda self, x: x + torch.zeros_like(input=x).sum().item())
    assert rules(lambda self, x: torch.inverse(input=x[:3])) == {'matrix-inverse'}


def test_overloads_of_operators_are_seen_under_the_name_of_the_operator():
    def forward(self, x):
        made = torch.zeros(4, 3)
        torch.ops.aten.add_.Tensor(made[0], x[0])
        return x * made.sum().item()

    assert 'value-to-python' in rules(forward)


def test_a_randomised_leaky_relu_draws_in_training_alone():
    assert not rules(lambda self, x: nn.functional.rrelu(x))
    assert rules(lambda self, x: nn.functional.rrelu(x, training=True)) == {'random'}


@pytest.mark.parametrize('draw', [
    lambda self, x: torch.dropout(x, 0.5, train=True),
    lambda self, x: nn.functional.dropout(x, 0.5),
    lambda self, x: nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.5),
    lambda self, x: nn.functional.gumbel_softmax(x),
    lambda self, x: x + torch.empty_like(x).cauchy_(),
])  # fmt: skip
def test_functions_that_draw_are_random(draw):
    assert rules(draw) == {'random'}


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


def test_values_that_python_code_gets_one_by_one_and_numbers_of_parts_are_findings():
    assert rules(lambda self, x: (x * 1).apply_(lambda value: value)) == {'value-to-python'}
    assert 'value-in-loop' in rules(lambda self, x: x.chunk(x.long().sum() + 1)[0])
    assert not rules(lambda self, x: x.chunk(2)[0])


def test_further_positional_arguments_have_names_of_their_own():
    class Further(nn.Module):
        def forward(self, x, *rest, scale=1.0, **options):
            return x * scale

    report = check(Further(), (X, X + 1, X + 2), try_exports=False)
    details = sorted(detail for finding in report for detail in finding.details)
    assert details == ["input 'input_1' reaches no output", "input 'input_2' reaches no output"]


def test_the_axis_of_a_write_by_an_index_is_no_index():
    def written(axis, index):
        return lambda self, x: (x * 1).index_fill_(axis, torch.tensor([index]), 2.0)

    assert not rules(written(-1, 0))
    assert rules(written(0, -1)) == {'index-put-negative'}


def test_state_in_lists_and_dicts_is_found_without_a_line():
    def remembers(self, x):
        self.memory = getattr(self, 'memory', {})
        self.memory['last'] = x
        return x * 2

    model = Model(remembers)
    model.memory = {'last': torch.zeros(4, 3)}
    assert 'state-written' in check(model, (X,), try_exports=False).rules
    assert torch.equal(model.memory['last'], torch.zeros(4, 3)), 'the module stays as it was'


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
    found = [one for one in check(CountsFrames(), (torch.rand(3, 4),), try_exports=False)
             if one.rule == 'state-written']
    assert [(one.site.code, one.details) for one in found] == [
        ('self.frame += 1', ("attribute 'frame' is set",))]


def test_a_scripted_function_that_a_module_holds_is_no_bad_input():
    """PyTorch cannot copy it: the module itself runs then."""
    model = Model(lambda self, x: self.halved(x) * x.sum().item())
    model.halved = torch.jit.script(halved)
    assert 'value-to-python' in check(model, (X,), try_exports=False).rules


def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


def test_a_module_of_two_names_is_reported_once():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.BatchNorm1d(3)

        def forward(self, x):
            return self.second(x)

    found = check(Shared().train(), (X,), try_exports=False)
    assert ['second' in str(one.details) for one in found if one.rule == 'state-written'] == [False]


def test_a_tensor_of_data_by_name_is_one_of_values_where_they_depend_on_inputs():
    assert not rules(lambda self, x: x + torch.tensor(data=[1.0]))
    assert 'value-to-python' in rules(lambda self, x: x + torch.tensor(data=[x.max(), x.min(), x.sum()]))


def test_arguments_of_a_function_keep_their_classes():
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, settings):
            settings.move_to_end('scale')
            return x * settings['scale']

        @staticmethod
        def symbolic(g, x, settings):
            return g.op('Mul', x, x)

    assert 'function-with-symbolic' in rules(lambda self, x: Scaled.apply(x, OrderedDict(scale=2.0)))


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
    ((name, site),) = unknown_to_torchscript(triu, (X,), 13)
    assert name == 'aten::triu (opset 14 has it)' and site.code == 'triu = Model(lambda self, x: x.triu(1))'
    assert not unknown_to_torchscript(triu, (X,), 14)


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
    (found,) = report
    assert report.failed and 'bessel_j0' in found.details[0]
    assert found.site.code == 'return torch.special.bessel_j0(y)'
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
    before = nn.Module.__setattr__, torch.autograd.Function.__dict__['apply'], torch.jit.is_tracing
    rules(lambda self, x: x * x.max().item())
    after = nn.Module.__setattr__, torch.autograd.Function.__dict__['apply'], torch.jit.is_tracing
    assert before == after and not torch.onnx.is_in_onnx_export() and type(X.shape[0]) is int


def test_reports_print_and_write_what_is_in_them():
    from rich.console import Console

    console = Console(record=True, width=120)
    report = check(Model(lambda self, x: {'a': x * x.max().item()}), (X,), exporters=['torchscript'])
    print_report(report, console)
    text = console.export_text()
    assert 'error value-to-python' in text and 'fix: Keep it a tensor' in text and 'exports' in text
    assert summary(report) == '1 error, 1 note'
    content = json.loads(json.dumps(report.to_json()))
    assert {finding['rule'] for finding in content['findings']} == {'value-to-python', 'dict-output'}
    assert content['failed'] and content['trials'][0]['exporter'] == 'torchscript'


def test_rules_are_whole():
    assert list(EXAMPLES) == list(RULES)
    for rule in RULES.values():
        assert set(rule.outcomes) == set(EXPORTERS) and set(rule.outcomes.values()) <= set(OUTCOMES)
        assert rule.otherwise in SEVERITIES and rule.why.endswith('.') and rule.fix.endswith(('.', ')'))


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
        env={**os.environ, 'PYTHONPATH': str(Path(__file__).resolve().parents[3])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ['value-to-python', 'mine.py:6']


def test_a_line_of_torchvision_is_not_one_of_torch():
    library, user = (os.path.join(TORCH + end) for end in ('vision/ops/boxes.py', '/nn/functional.py'))
    site = _last_site([('own.py', '1', 'forward'), (library, '2', 'nms'), (user, '3', 'relu')])
    assert site.line == 2


def test_a_text_of_the_module_that_reads_like_an_input_stays():
    (found,) = check(Model(lambda self, x: (x, 'input 7')), (X,), try_exports=False)
    assert found.details == ("'input 7' among the outputs",)
