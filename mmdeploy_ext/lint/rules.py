"""The rules, in the order of the documentation; `docs/_pages/lint` has two modules that show each."""

import dataclasses
from collections.abc import Mapping, Sequence

from mmdeploy_ext.core.errors import UsageError

RIGHT = 'right'
WRONG = 'wrong on other inputs'
WRONG_AT_ONCE = 'wrong'
FAILS = 'fails on other inputs'
REFUSED = 'refused'
UNRUNNABLE = 'refused by the engine'
"""Outcomes of an export.

'Other inputs' are others than the example; a file that is 'wrong' alone is wrong for the example, too.
"""
EXPORTERS = ('torchscript', 'dynamo')
"""The exporters of torch that rules have outcomes for."""
SEVERITIES = ('note', 'warning', 'error')
"""The least severe first."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One known pitfall.

    Attributes:
        id: its name in reports.
        title: what is done, in words and code.
        why: text on what goes wrong.
        fix: text on what to write instead.
        outcomes: exporter -> what happens with the versions that this project installs: 'right', 'wrong' ...,
            one of the constants above.
        otherwise: severity if all exporters that were asked for do the right thing: 'note' or 'warning'.
    """

    id: str
    title: str
    why: str
    fix: str
    outcomes: Mapping[str, str]
    otherwise: str = 'note'

    def severity(self, exporters: Sequence[str]) -> str:
        """Return 'error' if an exporter of `exporters` goes wrong with it, else `otherwise`."""
        return 'error' if any(self.outcomes[name] != RIGHT for name in exporters) else self.otherwise


def check_exporters(exporters: Sequence[str]) -> None:
    """Raise UsageError, with the known exporters, if there is one that is not in `EXPORTERS`, or none."""
    if not exporters or not set(exporters) <= set(EXPORTERS):
        raise UsageError(f'exporters {list(exporters)}: expected some of {", ".join(EXPORTERS)}')


# The groups of rules; `THEMES` has their headings, `RULES` all of them.
VALUES = (
    Rule(
        id='value-to-python',
        title='A Python number taken from a tensor: `.item()`, `int(t)`, `float(t)`, `.tolist()`, '
        '`torch.tensor([t])`',
        why='The TorchScript exporter writes the number that it met as a constant. The dynamo exporter '
        'follows `.item()`.',
        fix='Keep it a tensor: a tensor of one element takes part in arithmetic, comparisons and indexing.',
        outcomes=dict(torchscript=WRONG, dynamo=RIGHT),
    ),
    Rule(
        id='value-to-numpy',
        title='Values that go through numpy: `.numpy()`, `np.f(t)`',
        why='What numpy computes is a constant in a trace. torch.export replaces the numpy functions that '
        'it knows by its own, and refuses the others.',
        fix='Use the function of torch with the same name.',
        outcomes=dict(torchscript=WRONG, dynamo=RIGHT),
    ),
    Rule(
        id='value-in-branch',
        title='An `if` that depends on values',
        why='The TorchScript exporter writes the branch that the example took. torch.export refuses.',
        fix='`torch.where` of both branches; a mask; or two graphs and the `if` outside.',
        outcomes=dict(torchscript=WRONG, dynamo=REFUSED),
    ),
    Rule(
        id='value-in-loop',
        title='A loop whose length depends on values: `range(int(t))`, `while t`',
        why='The TorchScript exporter writes as many steps as the example took. torch.export refuses.',
        fix='Arithmetic over all elements (cumulative sums, masks, powers), or a fixed number of steps with'
        ' a mask.',
        outcomes=dict(torchscript=WRONG, dynamo=REFUSED),
    ),
)

SIZES = (
    Rule(
        id='size-to-python',
        title='A size as a plain number: `len(t)`, `int(t.shape[0])`, `math.ceil(t.shape[0] / 2)`',
        why='`t.shape[0]` stays dynamic in both exporters; `len`, `int`, `float`, `round` and `math` make '
        'it the number of the example in the TorchScript exporter.',
        fix='Use `t.shape[0]` as it is; divide with `//`; round tensors, not sizes.',
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
        id='size-changed-in-place',
        title='A size changed in place: `n, c = t.shape; n += 2`',
        why="Sizes are tensors while TorchScript traces, and torch's documentation warns that `+=` changes "
        'them for everyone who reads them later.',
        fix='A new name: `grown = n + 2`.',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
    Rule(
        id='topk-from-size',
        title='The K of a top-k taken from a size: `t.topk(min(k, t.shape[0]))`',
        why='The TorchScript exporter writes the K of the example: too few candidates on larger inputs, an '
        'error of the engine on smaller ones.',
        fix='A constant K on an axis that is padded to at least K; or sort and slice. TensorRT wants a '
        'constant K.',
        outcomes=dict(torchscript=FAILS, dynamo=RIGHT),
    ),
)

WRITES = (
    Rule(
        id='tensor-data',
        title='`tensor.data`',
        why='The TorchScript tracer does not see it: the values of the example become a constant. The '
        'dynamo exporter of torch 2.13 refuses it, or the Python process dies of a segmentation fault.',
        fix='`.detach()`; for a write into `.data`, a new tensor.',
        outcomes=dict(torchscript=WRONG, dynamo=REFUSED),
    ),
    Rule(
        id='parameter-data',
        title='`.data` of a parameter or buffer',
        why='A constant for the TorchScript exporter, as it should be. The dynamo exporter of torch 2.13 '
        'refuses, or dies of it.',
        fix='The parameter itself, or `.detach()`.',
        outcomes=dict(torchscript=RIGHT, dynamo=REFUSED),
    ),
    Rule(
        id='index-put-negative',
        title='A write through negative indices: `t[index] = v` with `index < 0`',
        why='Older exporters wrote them as they were. ScatterND and ScatterElements of ONNX take negative '
        'indices.',
        fix='Nothing, where ONNX Runtime runs the file; for other engines `torch.where(index < 0, index + '
        'n, index)`.',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
    Rule(
        id='index-put-many-ranks',
        title='A write through indices of rank 2 or more: `t[rows, columns] = v`',
        why='Older exporters gave wrong shapes. Today the indices are broadcast.',
        fix='Nothing, where ONNX Runtime runs the file; else one flat index and `scatter`.',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
    Rule(
        id='slice-assigned',
        title='A slice that is written: `t[1:-1, :2] = v`',
        why='It becomes a chain of Shape, Range and ScatterND; right, but several nodes where a Concat '
        'would do.',
        fix='Nothing, or `torch.cat` of the parts for a smaller graph.',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
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
        id='input-written',
        title='An input that is written: `x += 1`',
        why='The caller sees the change in PyTorch and does not in ONNX.',
        fix='A new name: `y = x + 1`.',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
        otherwise='warning',
    ),
)

BOUNDARY = (
    Rule(
        id='unused-input',
        title='An input that no output depends on',
        why='The TorchScript exporter drops it from the file: feeding it is then an error.',
        fix='Take it out of the signature. (This project puts dropped inputs back, as its spec says.)',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
        otherwise='warning',
    ),
    Rule(
        id='frozen-input',
        title='An input that the outputs depend on, but not through tensors',
        why='The outputs change with it in PyTorch; in the file of the TorchScript exporter they do not: '
        'its value was fixed when it was traced.',
        fix='Follow the other reports of the same input: somewhere it becomes a Python number or a numpy '
        'array.',
        outcomes=dict(torchscript=WRONG, dynamo=RIGHT),
    ),
    Rule(
        id='input-by-attribute',
        title='An input that is read from an attribute of the module instead of the argument',
        why='TorchScript knows tensors by identity, so it works there. torch.export takes the attribute for'
        ' a constant: the input is in the file, and its values are not used.',
        fix='Use the argument.',
        outcomes=dict(torchscript=RIGHT, dynamo=WRONG),
        otherwise='warning',
    ),
    Rule(
        id='state-written',
        title='State of the module that is written in `forward`',
        why='A graph has no state. The file starts from what the module held when it was exported, every '
        'time.',
        fix='State is an argument and a result; the caller feeds it back.',
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=WRONG),
    ),
    Rule(
        id='dict-output',
        title='Outputs in a dict',
        why='They become outputs by position; the keys are lost.',
        fix='A tuple in an order that you choose, and names for the outputs.',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
    Rule(
        id='nested-output',
        title='Outputs in lists or tuples inside a tuple',
        why='They are flattened in order; how they were grouped is lost.',
        fix='A flat tuple.',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
    Rule(
        id='number-output',
        title='A Python number or a numpy array among the outputs',
        why='Both exporters refuse it.',
        fix='Leave it out: it is a constant.',
        outcomes=dict(torchscript=REFUSED, dynamo=REFUSED),
    ),
    Rule(
        id='text-output',
        title='A string among the outputs',
        why='The TorchScript exporter leaves it out; the dynamo exporter refuses.',
        fix='Leave it out; names belong in the metadata of the file.',
        outcomes=dict(torchscript=RIGHT, dynamo=REFUSED),
    ),
    Rule(
        id='training-mode',
        title='A module in training mode',
        why='The TorchScript exporter switches to evaluation mode, the dynamo exporter does not: batch '
        'normalisation uses the statistics of the batch.',
        fix='`module.eval()` before the export.',
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=WRONG_AT_ONCE),
    ),
)

NUMBERS = (
    Rule(
        id='float64',
        title='float64 inside the model',
        why='Engines for GPUs have no float64, and ONNX Runtime (CPU) lacks some operators for it: Atan of '
        'float64 exports, and does not load.',
        fix='float32 in the graph; what needs float64 (time, global positions) is computed outside.',
        outcomes=dict(torchscript=UNRUNNABLE, dynamo=UNRUNNABLE),
    ),
    Rule(
        id='absolute-time',
        title='Large numbers (time stamps, global positions) that become float32',
        why='The file is as wrong as PyTorch: float32 has steps of 128 s at time stamps of today (1.5e9 s),'
        ' and of 0.5 m at northings of UTM (5e6 m). Differences of such numbers are noise.',
        fix='Subtract in float64 outside the graph; feed ages and relative positions.',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
        otherwise='warning',
    ),
)

OPERATORS = (
    Rule(
        id='matrix-inverse',
        title='`torch.inverse`, `torch.linalg.inv`',
        why='ONNX has no such operator; both exporters refuse.',
        fix='Invert outside the graph and feed the inverse; 4x4 matrices of a camera rig are inverted once.',
        outcomes=dict(torchscript=REFUSED, dynamo=REFUSED),
    ),
    Rule(
        id='random',
        title='Random numbers drawn in `forward`; dropout that is on',
        why='The file draws numbers of its own: it cannot be compared with anything.',
        fix='Noise is an input; `module.eval()` switches dropout off.',
        outcomes=dict(torchscript=WRONG_AT_ONCE, dynamo=WRONG_AT_ONCE),
    ),
    Rule(
        id='unsupported-operator',
        title='An operator that the exporter does not know at this opset',
        why='The export ends with its name. The report gives the line.',
        fix='A higher opset where one has it; a form of standard operators; a custom operator.',
        outcomes=dict(torchscript=REFUSED, dynamo=REFUSED),
    ),
    Rule(
        id='function-without-symbolic',
        title='A `torch.autograd.Function` without `symbolic`',
        why='The TorchScript exporter has nothing to write for it. The dynamo exporter follows its Python '
        'code.',
        fix='A `symbolic` beside `forward`; or functions of torch.',
        outcomes=dict(torchscript=REFUSED, dynamo=RIGHT),
    ),
    Rule(
        id='function-with-symbolic',
        title='A `torch.autograd.Function` with `symbolic`',
        why='The TorchScript exporter writes what `symbolic` says. The dynamo exporter does not look at it:'
        ' it follows the Python code of `forward`, so a node that an engine has a kernel for is not in '
        'its file.',
        fix='Nothing for TorchScript. For the node in a file of the dynamo exporter, '
        '`torch.onnx.ops.symbolic`.',
        outcomes=dict(torchscript=RIGHT, dynamo=RIGHT),
    ),
)

THEMES = {
    'Numbers taken out of tensors': VALUES,
    'Sizes': SIZES,
    'Writes into tensors': WRITES,
    'Inputs, outputs and state': BOUNDARY,
    'Precision': NUMBERS,
    'Operators': OPERATORS,
}
"""Heading in the documentation -> rules below it."""

RULES = {rule.id: rule for rules in THEMES.values() for rule in rules}
"""Id -> rule."""
