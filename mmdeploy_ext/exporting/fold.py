"""Batch normalisation folded into convolutions, with the same bytes on every machine.

Only `+ - * /` and `sqrt` of numpy in float64, each of which IEEE 754 rounds correctly, and one rounding to
the weight's own type at the end. torch's float32 `sqrt` is MKL's: its last bit is another one on another make
of CPU, and with it the bytes of every folded weight.
"""

import ast
import copy
import dataclasses
import inspect
import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn
from torch.nn.utils.weight_norm import WeightNorm

from mmdeploy_ext.core.model_classes import is_users

PROBE = 8
"""A convolution is tested on an image in which its dilated kernel has this many places along each side."""
PROBE_SCALES = (1.0, 2.0**20)
"""Standard deviations of the images on which a convolution and its normalisation are compared with the folded
convolution. Code that clips values shows in the large one alone."""
BatchNorm = nn.modules.batchnorm._BatchNorm
"""Base of all batch normalisations, of `nn.SyncBatchNorm`, too."""


@dataclasses.dataclass(frozen=True)
class Folded:
    """A convolution with its batch normalisation folded in.

    Attributes:
        weight: (out, in / groups, kh, kw) float64.
        bias: (out,) float64.
    """

    weight: np.ndarray
    bias: np.ndarray

    def put_into(self, conv: nn.Conv2d) -> None:
        """Give a convolution this weight and bias, in the type and on the device of its weight."""
        like = conv.weight
        conv.weight, conv.bias = (
            nn.Parameter(torch.from_numpy(array).to(like.device, like.dtype))
            for array in (self.weight, self.bias)
        )


@runtime_checkable
class Summed(Protocol):
    """A module whose parallel branches can be added up to one convolution, `conv`, such as RepVGG's."""

    def reparameterise(self) -> None:
        """Make `conv`, which computes the sum of the branches; they stay beside it. It is called once."""


PREPARATIONS: list[Callable[[nn.Module], None]] = []
"""Functions that prepare every module of a copy before it is folded; each skips modules of other types.

The modules of this package and of projects that define such functions append them.
"""


def fuse(model: nn.Module) -> nn.Module:
    """Return an evaluation copy of the model with batch normalisation folded into convolutions.

    As mmcv's `fuse_conv_bn` does, a batch normalisation is folded into the `nn.Conv2d` before it among the
    children of one module, if the convolution is linear in its weight: one that standardises its weight
    (DetectoRS) would take the factors out again. In an `nn.Sequential` nothing but an `nn.Identity` may stand
    between the two; in a module of the user the code has to call one with what the other returned, and
    neither again. A normalisation with a `forward` or hooks of its own, and a convolution with hooks, such as
    those of `weight_norm`, stay as they are, and so do two that compute something else than the folded
    convolution, such as a bound between them (`_computes_the_same`). A folded normalisation becomes an
    `nn.Identity`; one without running statistics stays, and so does one that mmcv's ConvModule runs before
    its convolution. `Summed` modules fold themselves, and each module of the copy goes through
    `PREPARATIONS` before. The copy has every attribute of the model. A convolution that several modules
    share, each with a normalisation of its own (RetinaSepBNHead), becomes one of each.
    """
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):  # its weight is a result of others, which PyTorch does not copy
                with torch.no_grad():
                    hook(module, None)
    values = (value for module in model.modules() for value in vars(module).values())
    # PyTorch copies no instances of these, which losses of older code have
    functions = {id(value): value for value in values if isinstance(value, torch.autograd.Function)}
    fused = copy.deepcopy(model, memo=functions)
    _complete_copy(model, fused)
    fused.eval()  # by itself, since the `train` of some detectors returns None
    for module in list(fused.modules()):
        for prepare in PREPARATIONS:
            prepare(module)
        if isinstance(module, Summed):
            module.reparameterise()
    parent_counts = Counter(id(child) for module in fused.modules() for child in module.children())
    for parent, conv, norm in list(_pairs(fused)):
        layer, normalisation = getattr(parent, conv), getattr(parent, norm)
        folded = fold_pair(layer, normalisation)
        if not _computes_the_same(folded, layer, normalisation):
            continue
        if parent_counts[id(layer)] > 1:
            layer = copy.deepcopy(layer)
            setattr(parent, conv, layer)
        folded.put_into(layer)
        setattr(parent, norm, nn.Identity())
    return fused


def _complete_copy(model: nn.Module, copied: nn.Module) -> None:
    """Give the modules of a copy the attributes that a `__getstate__` of the user's leaves out.

    A graph is made of the copy, and PyTorch's results of the model. Numbers and texts are those of the model,
    too; what cannot be copied is shared.
    """
    for original, part in zip(model.modules(), copied.modules(), strict=False):
        if type(original) is not type(part):
            return
        for name, value in vars(original).items():
            if name not in vars(part):
                try:
                    vars(part)[name] = copy.deepcopy(value)
                except Exception:  # a lock, a file
                    vars(part)[name] = value
            elif isinstance(value, bool | int | float | str) and vars(part)[name] != value:
                vars(part)[name] = value


def fold_pair(conv: nn.Conv2d, norm: nn.Module) -> Folded:
    """Return the weight and bias of `conv` with the normalisation after it folded in; both stay as they are.

    `norm` is a `BatchNorm` with running statistics. If it is an `nn.Identity`, it was folded before, and the
    convolution's own weight and bias are returned. Biases that are missing count as zeros, and a missing
    weight of the normalisation as ones.
    """
    weight = _double(conv.weight)
    bias = np.zeros(len(weight)) if conv.bias is None else _double(conv.bias)
    if isinstance(norm, nn.Identity):
        return Folded(weight, bias)
    mean, variance = _double(norm.running_mean), _double(norm.running_var)
    gamma, beta = (
        np.full_like(mean, default) if array is None else _double(array)
        for array, default in ((norm.weight, 1.0), (norm.bias, 0.0))
    )
    with np.errstate(all='ignore'):  # damaged checkpoints give NaN, which is reported with its tensor later
        scale = gamma / np.sqrt(variance + norm.eps)
        return Folded(weight * scale[:, None, None, None], (bias - mean) * scale + beta)


def _pairs(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield (parent, name of a convolution, name of the normalisation that follows it among its children)."""
    conv = None
    for name, child in module.named_children():
        if isinstance(child, BatchNorm):
            # the children of mmcv's ConvModule do not stand in its `order`: it may normalise first
            order = getattr(module, 'order', None)
            adjacent = not isinstance(order, tuple) or ('conv', 'norm') in itertools.pairwise(order)
            # without running statistics it takes those of its input
            is_fixed = child.running_mean is not None
            is_pytorchs = type(child).forward in (BatchNorm.forward, nn.SyncBatchNorm.forward)
            is_plain = is_pytorchs and 'forward' not in vars(child) and not _has_hooks(child)
            is_foldable = conv is not None and adjacent and is_fixed and is_plain
            if is_foldable and _are_called_in_turn(module, conv, name):
                yield module, conv, name
            conv = None
        elif isinstance(child, nn.Conv2d):
            conv = name
        else:
            yield from _pairs(child)
            # the children of other modules may run in another order than that of their registration
            if type(module).forward is nn.Sequential.forward and not isinstance(child, nn.Identity):
                conv = None


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _are_called_in_turn(parent: nn.Module, conv: str, norm: str) -> bool:
    """Return whether a linear convolution's output goes to the normalisation, and nowhere else.

    Modules of the libraries, and of this package, call their children in turn. Of others the source of the
    methods is read: repositories have copies of mmdet, whose ResNet-50 has 49 of its 53 normalisations in
    classes that are the user's by that.
    """
    if not _is_linear(getattr(parent, conv)):
        return False
    methods = [value for kind in type(parent).__mro__ for value in vars(kind).values()]
    users_methods = [method for method in methods if inspect.isfunction(method) and is_users(method)]
    if 'forward' in vars(parent):  # a plugin has put it into the built module
        return False
    if not users_methods:
        return not isinstance(parent, nn.ModuleList | nn.ModuleDict)
    try:
        trees = [ast.parse(textwrap.dedent(inspect.getsource(method))) for method in users_methods]
    except (OSError, SyntaxError):
        return False
    conv_names, norm_names = (_names_of(parent, getattr(parent, child)) for child in (conv, norm))
    nodes = [node for tree in trees for node in ast.walk(tree)]
    counts = [sum(_is_call(node, names) for node in nodes) for names in (conv_names, norm_names)]
    if counts == [0, 0]:  # what the class is derived from calls them
        forward = type(parent).forward
        return not is_users(forward) or 'super().forward(' in inspect.getsource(forward)
    return counts == [1, 1] and any(_passes_output(tree, conv_names, norm_names) for tree in trees)


def _names_of(parent: nn.Module, child: nn.Module) -> set[str]:
    """Return the names by which the code of a module has a child: its own, and those of properties."""
    names = {name for name, value in parent.named_children() if value is child}
    for kind in type(parent).__mro__:
        properties = (name for name, value in vars(kind).items() if isinstance(value, property))
        names.update(name for name in properties if getattr(parent, name, None) is child)
    return names


def _is_child(node: ast.AST, names: Iterable[str]) -> bool:
    """Return whether an expression is `self.NAME` with one of the names."""
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == 'self'
        and node.attr in names
    )


def _is_call(node: ast.AST, names: Iterable[str]) -> bool:
    """Return whether an expression is a call of `self.NAME` with one of the names."""
    return isinstance(node, ast.Call) and _is_child(node.func, names)


def _passes_output(tree: ast.AST, conv: Iterable[str], norm: Iterable[str]) -> bool:
    """Return whether code gives the convolution's output to the normalisation, and keeps it for nothing else.

    It is `norm(conv(x))`, or `x = conv(x)` with, as the next statement, `return ... norm(x) ...` or
    `x = ... norm(x) ...`, which may stand in an `if` about the normalisation without `else`.
    """
    calls = [node for node in ast.walk(tree) if _is_call(node, norm) and len(node.args) == 1]
    norm_inputs = [call.args[0] for call in calls]
    if any(_is_call(node, conv) for node in norm_inputs):
        return True
    blocks = [getattr(node, field, None) for node in ast.walk(tree) for field in ('body', 'orelse')]
    pairs = (pair for block in blocks if isinstance(block, list) for pair in itertools.pairwise(block))
    for first, second in pairs:
        if not (isinstance(first, ast.Assign) and _is_call(first.value, conv)):
            continue
        if not isinstance(first.targets[0], ast.Name):
            continue
        output = first.targets[0].id
        tests = [*ast.walk(second.test)] if isinstance(second, ast.If) and not second.orelse else []
        if any(_is_child(node, norm) for node in tests):
            second = second.body[0]  # of `if self.norm is not None`
        targets = second.targets if isinstance(second, ast.Assign) else []
        if not isinstance(second, ast.Return) and [*map(ast.unparse, targets)] != [output]:
            continue
        names = [node for node in ast.walk(second) if isinstance(node, ast.Name) and node.id == output]
        if len(names) == 1 + len(targets) and any(name in norm_inputs for name in names):
            return True
    return False


def _is_linear(conv: nn.Conv2d) -> bool:
    """Return whether the output is linear in weight and bias; a subclass is run with -2 times of both."""
    if _has_hooks(conv):
        return False
    if type(conv) is nn.Conv2d and 'forward' not in vars(conv):
        return True
    twice = copy.deepcopy(conv).eval()
    sides = [rate * (size - 1) + PROBE for rate, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    drawn = torch.rand(1, conv.in_channels, *sides, generator=torch.Generator().manual_seed(0))
    image = drawn.to(conv.weight)
    with torch.no_grad():
        expected = -2 * twice(image)  # a ReLU inside keeps a positive factor
        for parameter in (twice.weight, twice.bias):
            if parameter is not None:
                parameter.mul_(-2)
        return bool((twice(image) - expected).abs().max() <= 1e-4 * expected.abs().max())


def _computes_the_same(folded: Folded, conv: nn.Conv2d, norm: nn.Module) -> bool:
    """Return whether a convolution with a folded weight and bias computes what it and its normalisation do.

    A class of the user's, or a function in the place of one of PyTorch's, may bound values or change how a
    layer is called. Both are run on an image of each of `PROBE_SCALES`. True if that gives NaN or infinity,
    as the weights of damaged checkpoints do, or raises an error, as the model itself then does.
    """
    at_once = copy.copy(conv)
    at_once._parameters = dict(conv._parameters)
    folded.put_into(at_once)
    sides = [rate * (size - 1) + 1 for rate, size in zip(conv.dilation, conv.kernel_size, strict=True)]
    drawn = torch.randn(1, conv.in_channels, *sides, generator=torch.Generator().manual_seed(0))
    for scale in PROBE_SCALES:
        image = drawn.to(conv.weight) * scale
        try:
            with torch.no_grad():
                expected, result = norm(conv(image)), at_once(image)
        except (ValueError, RuntimeError):
            return True
        # a bias that cancels the mean of the normalisation rounds more than the result shows
        terms = [norm.running_mean] if conv.bias is None else [norm.running_mean, conv.bias]
        factor = torch.rsqrt(norm.running_var + norm.eps).abs().max()
        if norm.weight is not None:
            factor = factor * norm.weight.abs().max()
        size = expected.abs().max() + factor * sum(term.abs().max() for term in terms)
        gap = (expected - result).abs().max()
        if torch.isfinite(size) and not gap <= 1e-3 * size:
            return False
    return True


def _double(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()
