"""The pitfalls that the linter reports; the tests measure the outcome of each with both exporters."""

import dataclasses
from collections.abc import Mapping, Sequence

from mmdeploy_ext.base.errors import UsageError

# Outcomes of an export. "Other inputs" are inputs that the exporter did not see.
RIGHT = 'right'
WRONG = 'wrong on other inputs'
WRONG_AT_ONCE = 'wrong'
FAILS = 'fails on other inputs'
REFUSED = 'refused'
EXPORTERS = ('torchscript', 'dynamo')
SEVERITIES = ('note', 'warning', 'error')


@dataclasses.dataclass(frozen=True)
class Rule:
    id: str
    title: str
    why: str
    fix: str
    outcomes: Mapping[str, str]  # exporter -> outcome with the installed versions
    otherwise: str = 'note'  # severity if every exporter that was asked for is right

    def severity(self, exporters: Sequence[str]) -> str:
        """'error' if one of the exporters goes wrong, else `otherwise`."""
        return 'error' if any(self.outcomes[name] != RIGHT for name in exporters) else self.otherwise


def check_exporters(exporters: Sequence[str]) -> None:
    """Raise UsageError for no or unknown exporters."""
    if not exporters or not set(exporters) <= set(EXPORTERS):
        raise UsageError(f'exporters {list(exporters)}: expected some of {", ".join(EXPORTERS)}')


ALL = (
    Rule(
        id='value-to-python',
        title='A Python number taken from a tensor: `.item()`, `int(t)`, `.tolist()`, `.numpy()`, '
        '`np.f(t)`, `torch.tensor([t])`',
        why='The TorchScript exporter writes the number that it met as a constant. The dynamo exporter '
        'follows `.item()` and the numpy functions that it knows.',
        fix='Keep it a tensor: a tensor of one element takes part in arithmetic, comparisons and indexing; '
        'use the function of torch in place of the one of numpy.',
        outcomes=dict(torchscript=WRONG, dynamo=RIGHT),
    ),
    Rule(
        id='value-in-branch',
        title='An `if` or a loop that depends on values: `if t.sum() > 0`, `range(int(t))`, `while t`',
        why='The TorchScript exporter writes the branch and the number of steps that the example took. '
        'torch.export refuses.',
        fix='`torch.where` of both branches, a mask, cumulative sums; or two graphs and the `if` outside.',
        outcomes=dict(torchscript=WRONG, dynamo=REFUSED),
    ),
    Rule(
        id='size-to-python',
        title='A size as a plain number: `len(t)`, `int(t.shape[0])`, `math.ceil(t.shape[0] / 2)`, '
        '`min(k, t.shape[0])`',
        why='`t.shape[0]` stays dynamic in both exporters; `len`, `int`, `float`, `math`, `min` and `max` '
        'make it the number of the example in the TorchScript exporter. As the K of a top-k it gives too '
        'few candidates on larger inputs, an error of the engine on smaller ones.',
        fix='Use `t.shape[0]` as it is; divide with `//`; round tensors, not sizes. A constant K on an axis '
        'that is padded to at least K; or sort and slice. TensorRT wants a constant K.',
        outcomes=dict(torchscript=WRONG, dynamo=RIGHT),
    ),
    Rule(
        id='size-in-branch',
        title='An `if` that depends on a size',
        why='Both exporters write the branch that the example took; the dynamo exporter too gives no error.',
        fix='Make both branches one expression; or fix the axis; or export one graph per branch.',
        outcomes=dict(torchscript=WRONG, dynamo=WRONG),
    ),
    Rule(
        id='size-in-loop',
        title='A loop over the rows of a tensor: `for row in t`, `range(t.shape[0])`',
        why='The TorchScript exporter writes one copy of the body per row of the example. torch.export '
        'refuses.',
        fix='One operation over the whole axis.',
        outcomes=dict(torchscript=FAILS, dynamo=REFUSED),
    ),
    Rule(
        id='tensor-data',
        title='`tensor.data`',
        why='The TorchScript tracer does not see it: the values of the example become a constant. The '
        'dynamo exporter of torch 2.13 refuses it, or the Python process dies of a segmentation fault.',
        fix='`.detach()`; for a write into `.data`, a new tensor.',
        outcomes=dict(torchscript=WRONG, dynamo=REFUSED),
    ),
    Rule(
        id='write-to-view',
        title='A write into a view: `column = t[:, 0]; column[mask] = v`, `t.view(-1)[0] = v`, '
        '`t.chunk(2)[0].mul_(2)`',
        why='The TorchScript exporter follows writes through one indexing on the same line (`t[1:] += 1`, '
        '`t[:, :2].sigmoid_()`). It loses those through an indexing on a line before (`row = t[0]`, then '
        '`row += 1`), into a view of a view, into what `view`, `flatten`, `unbind`, `chunk` and `t()` '
        'return, and those by `F.relu(t[0], inplace=True)` and `out=t[0]`.',
        fix='`torch.where`, or `torch.cat` of new columns.',
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=RIGHT),
    ),
    Rule(
        id='unused-input',
        title='An input that no output of the graph depends on',
        why='Nothing reads it, or its value became a Python number. The TorchScript exporter drops it from '
        'the file: feeding it is then an error.',
        fix='Remove it from the signature. (mm2onnx restores dropped inputs that are in its spec.)',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
        otherwise='warning',
    ),
    Rule(
        id='state-written',
        title='State of the module that is written in `forward`',
        why='A graph has no state. The file always starts with the values that the module had at the export.',
        fix='Make the state an argument and a result; the caller passes it back.',
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=WRONG),
    ),
    Rule(
        id='training-mode',
        title='A module in training mode',
        why='The TorchScript exporter switches to evaluation mode, the dynamo exporter does not: batch '
        'normalisation uses the statistics of the batch.',
        fix='`module.eval()` before the export.',
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=WRONG_AT_ONCE),
    ),
    Rule(
        id='random',
        title='Random numbers drawn in `forward`; dropout that is on',
        why='The file draws its own random numbers, so its outputs cannot be compared.',
        fix='Make the noise an input; `module.eval()` switches dropout off.',
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=WRONG_AT_ONCE),
    ),
    Rule(
        id='unsupported-operator',
        title='An operator that the exporter does not support at this opset, such as `torch.inverse`; a '
        '`torch.autograd.Function` without `symbolic`',
        why='The export fails and names it. The dynamo exporter supports other operators and traces the '
        'Python code of a Function.',
        fix='A higher opset that has it; standard operators; a `symbolic` or a custom operator. Compute '
        'inverses of camera matrices outside and pass them as inputs.',
        outcomes=dict(torchscript=REFUSED, dynamo=REFUSED),
    ),
)
RULES = {rule.id: rule for rule in ALL}
