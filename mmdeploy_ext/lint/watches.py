"""Watches look for pitfalls in an observed run: each function gets the calls of torch and adds events.

A watch takes a call that has just been made, of any function but those that read sizes, and returns nothing:
it adds events of the rules of `rules.py` to the recorder of the call's observer, or none. The first line of
its docstring is what it looks for, as code or in words. `parts` and `hidden_tensors` add no event. Calls and
their marks are those of `observe.py`; the origins of sizes are reads of shapes in the run, see
`record.Origins`.
"""

import math
import sys
from typing import Any

import torch

from mmdeploy_ext.lint.nested import tensors_in
from mmdeploy_ext.lint.observe import Call
from mmdeploy_ext.lint.record import is_size, origins_of, plain
from mmdeploy_ext.lint.sites import caller

TO_BOOL = {'__bool__', 'is_nonzero', 'equal', 'allclose'}
TO_NUMBER = {'item', '__int__', '__float__', '__complex__', '__index__', 'tolist', '_nnz'}
TO_NUMPY = {'numpy', '__array__', '__dlpack__', 'untyped_storage', 'storage'}
"""Functions that make a bool, a number or an array of a tensor; names as in `Call.name`."""
BY_ELEMENT = {'apply_', 'map_', 'map2_'}
"""Functions that call a Python function with each value."""
PARTS_BY = dict(
    split='split_size_or_sections', chunk='chunks', tensor_split='indices_or_sections',
)  # fmt: skip
"""Function -> name of its second argument: the number of parts or their size."""
INVERSES = {'inverse', 'linalg_inv', 'inv', 'inv_ex', 'linalg_inv_ex', 'pinverse', 'pinv'}
"""Functions that invert matrices."""
RANDOM = {
    'rand', 'randn', 'randint', 'randperm', 'rand_like', 'randn_like', 'randint_like', 'bernoulli',
    'multinomial', 'normal', 'poisson', 'uniform_', 'normal_', 'random_', 'bernoulli_', 'exponential_',
    'binomial', 'cauchy_', 'geometric_', 'log_normal_', 'gumbel_softmax',
}  # fmt: skip
"""Functions that draw random numbers."""
DROPOUTS = {
    **dict.fromkeys(
        ('dropout', 'dropout1d', 'dropout2d', 'dropout3d', 'alpha_dropout', 'feature_alpha_dropout'),
        (1, 'p', 0.5, 2),
    ),
    'scaled_dot_product_attention': (4, 'dropout_p', 0.0, 6),  # no argument is there: it has no `training`
    'multi_head_attention_forward': (10, 'dropout_p', 0.0, 13),
}
"""Functions that draw random numbers, unless a probability is 0 or their argument `training` is False.

Name -> position, name and default of the probability, and the position of `training`.
"""
INDEX_ARGUMENTS = {
    'index_put_': (1, 'indices'),
    **dict.fromkeys(('index_copy_', 'index_fill_', 'index_add_'), (2, 'index')),
}
"""Function that writes by an index -> position and name of that argument."""
LARGEST_EXACT = 2.0**24
"""From here on float32 does not hold every integer."""
LARGEST_TIME = 1e19
"""Fill values (1e30, the largest float32) are larger than any time in nanoseconds."""


def values_to_python(call: Call) -> None:
    """`.item()`, `int(t)`, `.tolist()`, `if t:`, `for i in range(t)`: a number, fixed when it is traced.

    Of a tensor that depends on inputs, the rule is `value-in-loop` if a loop or a `range` uses the number,
    `value-in-branch` if it is a bool or an `if` or assert uses it, else `value-to-python`. Of one that
    depends on sizes alone it is `size-to-python`, and a bool is none. Values that `t.apply_(f)` gives to
    Python code are `value-to-python`, and a number of parts, as in `t.chunk(n)`, is `value-in-loop`, if it is
    a tensor without axes; both if they depend on inputs.
    """
    if call.name in BY_ELEMENT and call.mark.inputs:
        call.add('value-to-python', f'{call.name}() of values that depend on {inputs_text(call)}')
    count = call.argument(1, PARTS_BY[call.name]) if call.name in PARTS_BY else None
    if isinstance(count, torch.Tensor) and not count.dim() and call.observer.marks.of(count).inputs:
        call.add('value-in-loop', f'a number of parts that depends on {inputs_text(call)}')
    if call.name not in TO_BOOL and call.name not in TO_NUMBER:
        return
    if not call.mark.inputs:
        if call.mark.origins and call.name in TO_NUMBER:
            call.add('size-to-python', f'{call.name.strip("_")}() of a tensor made of sizes', sizes=True)
        return
    site = caller()
    if site is None:
        return
    if site.waiting in ('loop', 'counted'):
        rule = 'value-in-loop'
    else:
        decides = call.name in TO_BOOL or site.waiting in ('branch', 'guard')
        rule = 'value-in-branch' if decides else 'value-to-python'
    text = f'{call.result:.6g}' if isinstance(call.result, float) else str(call.result)
    if len(text) > 40 or is_size(call.result):
        text = f'{text[:37]}...'
    detail = f'{call.name.strip("_")}() gave {text}, from {inputs_text(call)}'
    call.observer.recorder.add(rule, detail, site)


def values_to_numpy(call: Call) -> None:
    """`.numpy()`, `np.f(t)` of a tensor that depends on inputs: `value-to-numpy`."""
    if call.name in TO_NUMPY and call.mark.inputs:
        call.add('value-to-numpy', f'values that depend on {inputs_text(call)} go to numpy')


def values_to_new_tensor(call: Call) -> None:
    """`torch.tensor([a.max(), b.max()])`: takes numbers out of tensors on its way.

    The rule is `value-to-python`, if one of these depends on inputs; a single tensor as the argument is none.
    """
    if call.name not in ('tensor', 'as_tensor') or not call.mark.inputs:
        return
    if not isinstance(call.argument(0, 'data'), torch.Tensor):
        call.add('value-to-python', f'torch.{call.name}() of values that depend on {inputs_text(call)}')


def iteration(call: Call) -> None:
    """`for row in t`, `len(t)`: the number of rows is fixed when it is traced.

    A loop is `size-in-loop`, unless it assigns the rows to a fixed number of names. `len` is `size-in-branch`
    in the condition of an `if`, none if a guard alone uses it, else `size-to-python`.
    """
    # frames: this, Observer.see, Observer.__torch_function__, who called unbind
    is_loop = call.name == 'unbind' and sys._getframe(3).f_code.co_name == '__iter__'
    if call.name != '__len__' and not is_loop:
        return
    site, tensor = caller(), call.args[0]
    if site is None or not tensor.dim():
        return
    if site.waiting == ('unpack' if is_loop else 'guard'):
        return
    rule, detail = 'size-in-loop', 'a loop over a tensor'
    if not is_loop:
        rule = 'size-in-branch' if site.waiting == 'branch' else 'size-to-python'
        detail = 'len() of a tensor'
    origins = call.observer.read_sizes(site, tensor)[0]
    call.observer.recorder.add(rule, f'{detail} of {tensor.shape[0]} rows', site, origins)


def topk(call: Call) -> None:
    """`t.topk(min(k, t.shape[0]))`, `kthvalue`: K is fixed when it is traced.

    The rule is `topk-from-size`, if K is a size, or a number that the same function compared with one as in
    `min(k, size)` (`Recorder.comparisons`, not in an `if`); not of a size whose comparison an export leaves
    out (`Recorder.handled`).
    """
    if call.name not in ('topk', 'kthvalue'):
        return
    k, site = call.argument(1, 'k'), caller()
    if site is None:
        return
    recorder = call.observer.recorder
    origins = origins_of(k) - recorder.handled
    if not origins:
        function = f'{site.file} {site.function}'
        comparisons = [entry for entry in recorder.comparisons if entry[0] == function]
        origins = frozenset().union(*(origins for _, values, origins in comparisons if k in values))
    if origins:
        recorder.add('topk-from-size', f'k = {plain(k)} comes from a size', site, origins)


def tensor_data(call: Call) -> None:
    """`t.data`, read or written: `tensor-data` if `t` or what is written depends on inputs.

    Else the rule is `parameter-data`.
    """
    if call.name not in ('data.__get__', 'data.__set__'):
        return
    if call.mark.inputs:
        call.add('tensor-data', f'.data of a tensor that depends on {inputs_text(call)}')
    else:
        call.add('parameter-data', '.data of a tensor that depends on no input')


def writes(call: Call) -> None:
    """`t[i] = v`, `t[a:b].add_(v)`, `F.relu(t[0], inplace=True)`, `out=t[0]`: into inputs and state, too.

    The rules are `input-written` and `state-written` (of parameters and buffers alone, see
    `state.watch_attributes` for other tensors of a module), also through views; `index-put-many-ranks`,
    `index-put-negative` and `slice-assigned` by the indices; and of a view, if it or the values depend on
    inputs, `slice-assigned` if exporters follow it, else `write-to-view`: they follow a call such as `add_`,
    but neither `inplace=True` nor `out=`, on a view of `Observer.parts`, and `t[i][j] = v` if all indices are
    numbers, both on the line of the view. A view of a tensor of `Observer.hidden` counts as a tensor of its
    own.
    """
    observer, name, written = call.observer, call.name.strip('_'), call.written
    for target in written:
        base = target if target._base is None else target._base
        for index, tensor in enumerate(observer.inputs):
            if base is tensor:
                call.add('input-written', f'{name} into input {index}')
        if id(base) in observer.state:
            call.add('state-written', f'{name} into {observer.state[id(base)]!r}')
        is_view = target._base is not None and base not in observer.hidden
        if is_view and (call.mark.inputs or observer.marks.of(target).inputs):
            _add_write_to_view(call, target)
    if written and call.name == '__setitem__':
        _add_index_kinds(call, call.args[1])
    if written and call.name in INDEX_ARGUMENTS:
        _add_index_kinds(call, call.argument(*INDEX_ARGUMENTS[call.name]))


def _add_write_to_view(call: Call, target: torch.Tensor) -> None:
    name = call.name.strip('_')
    view_kind, line = call.observer.parts.get(target, ('', ''))
    # PyTorch compares the lines of both; `inplace=True` writes on a line of torch's own
    if line != _line_text() or not call.in_place:
        view_kind = ''
    is_select = view_kind == 'select' and call.name == '__setitem__' and _all_numbers(call.args[1])
    if view_kind and (call.name != '__setitem__' or is_select):
        call.add('slice-assigned', f'{name} of a slice')
    else:
        call.add('write-to-view', f'{name} into a view')


def hidden_tensors(call: Call) -> None:
    """Remember the tensors of which results are views, and that no argument is or is a view of."""
    views = [tensor for tensor in tensors_in(call.result) if tensor._base is not None]
    arguments = [*tensors_in((call.args, call.kwargs))] if views else []
    known = {id(entry) for argument in arguments for entry in (argument, argument._base)}
    for view in views:
        if id(view._base) not in known:
            call.observer.hidden[view._base] = True


def parts(call: Call) -> None:
    """Remember which views are one basic indexing of a whole tensor: exporters follow writes into those.

    `Observer.parts` has them for `writes`.
    """
    whole = call.argument(0, 'input')
    if call.name not in ('__getitem__', 'select') or not isinstance(whole, torch.Tensor):
        return
    if not isinstance(call.result, torch.Tensor) or call.result._base is not whole:
        return
    index = call.args[1] if call.name == '__getitem__' else 0
    if None not in [entry for entry in _as_tuple(index) if not isinstance(entry, torch.Tensor)]:
        call.observer.parts[call.result] = ('select' if _all_numbers(index) else 'slice', _line_text())


def _line_text() -> str:
    """Return the line of the call as `Site.text` has it, '' without one."""
    site = caller(through_torch=True)
    return '' if site is None else site.text


def _as_tuple(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _all_numbers(index: Any) -> bool:
    return all(isinstance(entry, int) for entry in _as_tuple(index))


def _add_index_kinds(call: Call, index: Any) -> None:
    """Note indices of a write that exporters have had trouble with."""
    entries = _as_tuple(index)
    tensors = [entry for entry in tensors_in(entries) if entry.dtype not in (torch.bool, torch.uint8)]
    rank = max((tensor.dim() for tensor in tensors), default=0)
    if rank > 1:
        call.add('index-put-many-ranks', f'index of rank {rank}')
    if any(tensor.numel() and tensor.min() < 0 for tensor in tensors):
        call.add('index-put-negative', 'negative index in a tensor')
    elif any(isinstance(entry, int) and entry < 0 for entry in entries):
        call.add('index-put-negative', 'negative index in Python')
    if any(isinstance(entry, slice) and entry != slice(None) for entry in entries):
        call.add('slice-assigned', 'a slice is written')


def float64(call: Call) -> None:
    """`t.double()`, `t.to(torch.float64)`: the result of a call is float64, and none of its arguments was.

    The rule is `float64`, if the arguments depend on inputs.
    """
    if not call.mark.inputs or _has_float64((call.args, call.kwargs)):
        return
    if _has_float64(call.result):
        call.add('float64', f'{call.name.strip("_")}() gives float64', through_torch=True)


def _has_float64(values: Any) -> bool:
    return any(tensor.dtype == torch.float64 for tensor in tensors_in(values))


def absolute_time(call: Call) -> None:
    """Large numbers become float32 or float16: times and positions lose their last digits.

    The rule is `absolute-time`, if the first argument, float64 or int64, becomes float32 or float16 of the
    same shape and holds `LARGEST_EXACT` or more, and some argument depends on inputs, as `x` of `t.to(x)`.
    """
    if not call.mark.inputs or not call.args or not isinstance(call.args[0], torch.Tensor):
        return
    source, result = call.args[0], call.result
    if not isinstance(result, torch.Tensor) or result.dtype not in (torch.float32, torch.float16):
        return
    if source.dtype not in (torch.float64, torch.int64) or source.shape != result.shape:
        return
    largest = largest_finite(source)
    if largest >= LARGEST_EXACT:
        call.add('absolute-time', f'{largest:.10g} as {result.dtype}: steps of {step_text(largest)}')


def largest_finite(tensor: torch.Tensor) -> float:
    """Return the largest absolute value in a tensor of numbers that may be a time or a position, or 0.

    Such a value is below `LARGEST_TIME`; NaN and infinity are not.
    """
    values = tensor.detach().abs().double()
    values = values[values < LARGEST_TIME]
    return float(values.max()) if values.numel() else 0.0


def step_text(value: float) -> str:
    """Return the distance of neighbouring float32 at a finite number above 0, as text: '128' of 1.5e9."""
    return f'{2.0 ** (math.frexp(value)[1] - 24):g}'


def operators(call: Call) -> None:
    """`t.inverse()`, `torch.rand()`, `MyFunction.apply(t)`: inverses, random numbers, own functions.

    The rules are `matrix-inverse`, `random` (dropout counts in training with p above 0, also that of
    `F.multi_head_attention_forward`; that of `F.scaled_dot_product_attention` whenever p is above 0; `rrelu`
    in training), `function-with-symbolic` and `function-without-symbolic`.
    """
    if call.name in INVERSES:
        matrices = next(tensors_in((call.args, call.kwargs)))
        call.add('matrix-inverse', f'{call.name} of {tuple(matrices.shape)}', through_torch=True)
    draws = call.name == 'rrelu' and call.argument(3, 'training', default=False)
    if call.name in DROPOUTS:
        *probability, position = DROPOUTS[call.name]
        is_training = call.argument(position, 'training', default=call.kwargs.get('train', True))
        draws = is_training and call.argument(*probability) > 0  # `train` is that of torch.dropout
    if call.name in RANDOM or draws:
        call.add('random', f'{call.name} draws numbers', through_torch=True)
    if call.name == 'Function.apply':
        function = call.args[0]
        rule = 'function-with-symbolic' if hasattr(function, 'symbolic') else 'function-without-symbolic'
        call.add(rule, f'{function.__name__} is a torch.autograd.Function', through_torch=True)


WATCHES = (
    values_to_python,
    values_to_numpy,
    values_to_new_tensor,
    iteration,
    topk,
    tensor_data,
    parts,
    hidden_tensors,
    writes,
    float64,
    absolute_time,
    operators,
)
"""All watches, in the order in which they are called."""


def inputs_text(call: Call) -> str:
    """Return which inputs a call's arguments depend on, at least one: 'input 0' or 'inputs 0, 2'."""
    numbers = [str(index) for index in range(len(call.observer.inputs)) if call.mark.inputs >> index & 1]
    return f'input{"s" if len(numbers) > 1 else ""} {", ".join(numbers)}'
