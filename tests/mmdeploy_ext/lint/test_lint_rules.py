"""Every rule finds its failing example and not its passing one, and the exporters do what the rule says."""

import pytest
import torch
from exporter_outcome import expected, measure, outcome

from docs._pages.lint.examples import EXAMPLES
from mmdeploy_ext.lint import RULES, check

CASES = [(rule, which) for rule in RULES for which in ('failing', 'passing')]
MORE = [(rule, index) for rule in RULES for index in range(len(EXAMPLES[rule].more_failing))]
NEED_EXPORT = ('unsupported-operator',)


def found(example, **options):
    args = example.traced()
    report = check(example.build(args), args, other_inputs=example.unseen(), try_exports=False, **options)
    return report


@pytest.mark.parametrize('rule', [rule for rule in RULES if rule not in NEED_EXPORT])
def test_a_rule_flags_its_failing_example_at_its_line(rule):
    report = found(EXAMPLES[rule].failing)
    (first, *_) = [finding for finding in report if finding.rule == rule]
    if first.site is not None:
        assert first.site.file.startswith('docs/_pages/lint/') and first.site.code
        assert first.site.function == 'forward'


@pytest.mark.parametrize('rule', RULES)
def test_a_rule_is_silent_on_its_passing_example(rule):
    assert not found(EXAMPLES[rule].passing).rules


@pytest.mark.parametrize(('rule', 'index'), MORE)
def test_a_rule_flags_other_forms_of_the_pitfall(rule, index):
    if rule not in NEED_EXPORT:
        assert rule in found(EXAMPLES[rule].more_failing[index]).rules


@pytest.mark.parametrize(('rule', 'which'), CASES)
def test_the_torchscript_exporter_does_what_the_rule_says(rule, which):
    assert measure(RULES[rule], which, 'torchscript') == expected(RULES[rule], which, 'torchscript')


@pytest.mark.parametrize('example', EXAMPLES['write-to-view'].more_failing)
def test_the_torchscript_exporter_loses_each_write_into_a_view(example):
    assert outcome(example, 'torchscript') == RULES['write-to-view'].outcomes['torchscript']


def test_a_view_of_a_tensor_that_torch_alone_has_may_be_written():
    class Network(torch.nn.Module):
        def forward(self, x):
            rows = torch.nn.functional.linear(x, x.new_ones(5, 4), x.new_ones(5))
            assert rows._base is not None
            rows += 1
            return torch.nn.functional.relu(rows, inplace=True)

    report = check(Network(), [torch.rand(2, 3, 4, 4)], try_exports=False)
    assert 'write-to-view' not in report.rules


@pytest.mark.matrix
@pytest.mark.parametrize(('rule', 'which'), CASES)
def test_the_dynamo_exporter_does_what_the_rule_says(rule, which):
    assert measure(RULES[rule], which, 'dynamo') == expected(RULES[rule], which, 'dynamo')
