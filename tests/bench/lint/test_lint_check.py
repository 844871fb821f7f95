"""What the linter follows, what it does not report, and how reports are grouped and written."""

import math

import torch
from torch import nn

from examples import ROWS as X
from examples import Model
from mmdeploy_ext.bench.lint import check
from mmdeploy_ext.bench.lint.rules import EXPORTERS


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
    assert 'value-to-python' in rules(lambda self, x: x * torch.cat([x, x]).sort(0)[0][0, 1].item())
    assert 'value-in-branch' in rules(lambda self, x: sum(x[i] for i in range(int((x[:, 0] > 0.4).sum()))))


def test_guards_on_sizes_are_no_findings_and_branches_are():
    def guarded(self, x):
        assert len(x) == len(x[:, 0])
        if x.shape[1] != 3:
            raise ValueError('three columns')
        return x * 2

    assert not rules(guarded)
    assert rules(lambda self, x: x * 2 if len(x) > 3 else x) == {'size-in-branch'}
    assert rules(lambda self, x: x * 2 if x.shape[0] > 3 else x) == {'size-in-branch'}


def test_only_sizes_that_differ_in_the_other_inputs_count():
    def uses(self, x):
        return x[: int(x.shape[0] / 2)] * math.ceil(x.shape[1] / 2)

    both = check(Model(uses), (X,), try_exports=False)
    rows = check(Model(uses), (X,), other_inputs=(torch.rand(6, 3),), try_exports=False)
    assert [sum(finding.count for finding in report) for report in (both, rows)] == [2, 1]
    assert not rules(uses, dynamic=False)


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
    report = check(CountsFrames(), (torch.rand(3, 4),), try_exports=False)
    assert [one.site.code for one in report if one.rule == 'state-written'] == ['self.frame += 1']


def test_severity_is_that_of_the_exporters_asked_for():
    model = Model(lambda self, x: x * x.max().item())
    reports = [check(model, (X,), exporters=[name], try_exports=False) for name in EXPORTERS]
    assert [[finding.severity for finding in report] for report in reports] == [['error'], ['note']]
