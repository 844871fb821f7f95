"""Every rule finds its pitfall and is silent without it, and the exporters do what the rule says."""

import numpy as np
import onnxruntime
import pytest
import torch

from examples import EXAMPLES
from mmdeploy_ext.base.errors import ExportError
from mmdeploy_ext.bench.lint import RULES, check
from mmdeploy_ext.bench.lint.observe import tensors_in
from mmdeploy_ext.bench.lint.rules import FAILS, REFUSED, RIGHT, WRONG, WRONG_AT_ONCE
from mmdeploy_ext.exporting.export import export_module

FORMS = [(rule, example) for rule, (first, _, more) in EXAMPLES.items() for example in (first, *more)]


def findings(example, **options):
    others = example.unseen if example.dynamic else None
    options = dict(dict(dynamic=example.dynamic, try_exports=False, opset=example.opset), **options)
    return check(example.build(), example.inputs(), other_inputs=others, **options)


@pytest.mark.parametrize(('rule', 'example'), FORMS)
def test_a_rule_flags_each_form_of_its_pitfall_with_the_line(rule, example):
    exports = dict(try_exports=True, exporters=['torchscript']) if rule == 'unsupported-operator' else {}
    (first, *_) = [finding for finding in findings(example, **exports) if finding.rule == rule]
    assert first.site is None or (first.site.file.endswith('lint/examples.py') and first.site.code)


@pytest.mark.parametrize('rule', RULES)
def test_a_rule_is_silent_on_the_same_module_without_the_pitfall(rule):
    assert not findings(EXAMPLES[rule][1]).rules


def outcome(example, exporter):
    """Export an example, and run it on the inputs of the export and on unseen ones."""
    args = example.inputs()
    names = [f'input_{index}' for index in range(len(args))]
    dynamic = {names[0]: {0: 'N'}} if example.dynamic else {}
    opset = example.opset if exporter == 'torchscript' else None
    torch.manual_seed(0)
    try:
        model = export_module(example.build(), args, exporter=exporter, opset=opset, dynamic=dynamic)
    except ExportError:
        return REFUSED
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    module, graph_inputs = example.build(), {tensor.name for tensor in session.get_inputs()}
    for tensors, difference in ((example.traced, WRONG_AT_ONCE), (example.unseen, WRONG)):
        tensors = [tensor.clone() for tensor in tensors]
        feeds = {name: tensor.numpy().copy() for name, tensor in zip(names, tensors, strict=True)}
        torch.manual_seed(0)
        with torch.no_grad():
            expected = [tensor.numpy() for tensor in tensors_in(module(*tensors))]
        try:
            got = session.run(None, {name: array for name, array in feeds.items() if name in graph_inputs})
        except Exception:  # ONNX Runtime's errors have no common class
            return FAILS
        if not all(
            ours.shape == theirs.shape and np.allclose(ours, theirs, 1e-4, 1e-5, equal_nan=True)
            for ours, theirs in zip(got, expected, strict=True)
        ):
            return difference
    return RIGHT


@pytest.mark.parametrize('rule', RULES)
def test_the_torchscript_exporter_does_what_the_rule_says(rule):
    failing, passing, _ = EXAMPLES[rule]
    assert outcome(failing, 'torchscript') == RULES[rule].outcomes['torchscript']
    assert outcome(passing, 'torchscript') == RIGHT


@pytest.mark.parametrize('example', EXAMPLES['write-to-view'][2])
def test_the_torchscript_exporter_loses_each_write_into_a_view(example):
    assert outcome(example, 'torchscript') == WRONG_AT_ONCE
