"""Weights for any detector without a checkpoint: drawn by name, then calibrated in one run of its test path.

In the run each layer gets outputs of mean near 0 and variance about 1, in the order in which it is called (as
in Mishkin and Matas, All you need is a good init, 2016). Operators between layers are watched: layers whose
outputs are ranked (sorted, top-k) make scores, and get few high ones; other last layers make boxes and masks.
Residual branches and narrow layers, which make places and sizes, get less: otherwise a random network doubles
its rounding from block to block and from frame to frame.

Another CPU or number of threads writes the same bytes: measured factors are powers of two, measured means
multiples of an eighth, factors of last layers have two digits, and what a constructor drew 8 bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from mmdeploy_ext.upstream.models.building import initialise

DRAWN_STEP = 2**-10
"""Step of drawn numbers: tails of numpy's normal numbers depend on the C library's log."""
BIAS = 0.5
"""Spread of biases: without one, normalised layers amplify inputs near 0."""
MEAN_STEP = 1 / 8
"""Step of means, in spreads of the layer."""
LEAST_VALUES, MOST_VALUES = 16, 1 << 14
"""Values of a channel that have a mean of their own, and that are measured, evenly spread."""
LEAST_SPREAD = 1 / 4
"""Spread about the means, relative to all values, that is scaled up. Rows with less are nearly equal, such as
tokens that sum up a whole picture: without their means, each block would multiply their rounding.
"""
OBJECTS, SHARE = 200, 1 / 20
"""Objects of a run: at most this many scores, and this share of all."""
OTHERS = 5
"""Scores above `SEEN`, per object."""
SEEN, LOW, HIGH = 0.05, 0.3, 0.95
"""Score of the last of the others, of the last and of the first object."""
LARGEST_GAIN = 2.0
SOFTMAX_GAIN = 2.0
"""Spread of the logits of a softmax."""
DELTA_GAIN, LARGEST_DELTA = 0.25, 1.0
"""Spread and bound of last outputs with exponents: sizes of boxes."""
REFINEMENT_GAIN = 0.1
"""Spread of what is added to reference points: large steps amplify rounding from layer to layer."""
DISTANCE = 2.0
"""Mean of last outputs whose negative values are cut off, in spreads."""
LEAST_STREAM, NARROW_SPREAD, NARROW_BIAS = 16, 1 / 8, 1 / 8
"""Layers with fewer channels make boxes or steps of boxes: their spread, and the factor of their biases.

Layers with `OFFSET` in their names get the same.
"""
OFFSET = 'offset'
"""Part of the names of layers that make steps to places, at which deformable operators read."""
BRANCH_GAIN = 0.25
"""Spread of what a residual branch adds to its input: branches as large amplify rounding from block to block.
"""

NORMS = nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm

MIXING = {'convolution', '_convolution', 'mm', 'addmm', 'bmm', 'baddbmm', 'addbmm', 'addmv', 'mv', 'linear'}
"""Operators that compute new features, as layers do."""
REDUCING = {'sum', 'mean', 'var', 'std', 'norm', 'linalg_vector_norm'}
RANKING = {'topk', 'sort', 'argsort', 'argmax', 'nms'}
PICKING = {'index', 'index_select', 'gather', 'grid_sampler_2d', 'take_along_dim', 'masked_select'}
"""Operators with values and places: the results are of the values alone."""
RESHAPING = {
    'view', '_unsafe_view', 'permute', 'transpose', 't', 'unsqueeze', 'squeeze', 'clone', 'alias', 'detach'
}  # fmt: skip


def draw(model: nn.Module, seed: int) -> None:
    """Draw all parameters of a model in place, each from the seed and its name.

    Weights get a variance of 1 / inputs, biases of layers a spread of `BIAS`, others 0, embeddings and other
    tables a variance of 1, or uniform numbers of 0 to 1 if the model's own initialisation puts them there:
    places. Buffers that the model's own initialisation writes keep its values. Tables that are not trained
    and weights of normalisations stay as they were built; the rest has its own initialisation, in 8 bits.
    """
    initialised = _initialised(model)
    places = {name for name, value in initialised.items() if _is_table_of_places(value)}
    norms = {id(part.weight) for part in model.modules() if isinstance(part, NORMS)}
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if not parameter.is_floating_point():
            continue
        if parameter.dim() >= 2:
            is_weight = name.endswith('weight') and id(parameter) not in embeddings
            if not (is_weight or parameter.requires_grad or name in places):
                continue
            drawn = rng.random(parameter.shape) if name in places else rng.standard_normal(parameter.shape)
            drawn = np.round(drawn / DRAWN_STEP) * DRAWN_STEP
            scale = (parameter.shape[0] / parameter.numel()) ** 0.5 if is_weight else 1.0
            parameter.copy_(torch.from_numpy(drawn * scale))
        elif name.endswith('bias'):
            parameter.zero_()
            if getattr(parameters.get(f'{name[:-4]}weight'), 'ndim', 0) >= 2:
                drawn = np.round(rng.standard_normal(parameter.shape) / DRAWN_STEP) * DRAWN_STEP
                parameter.copy_(torch.from_numpy(drawn * BIAS))
        else:  # some constructors leave memory as it is, such as L2Norm's of SSD
            value = parameter if id(parameter) in norms else initialised[name]
            parameter.copy_(value.bfloat16())


def _initialised(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters by name as the model's own initialisation sets them.

    Parameters are as before afterwards; buffers are initialised.
    """
    built = [parameter.clone() for parameter in model.parameters()]
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        initialise(model)
    values = {name: parameter.clone() for name, parameter in model.named_parameters() if parameter.dim() < 3}
    for parameter, value in zip(model.parameters(), built, strict=True):
        parameter.copy_(value)
    return values


def _is_table_of_places(value: torch.Tensor) -> bool:
    """Whether a parameter (rows, columns) is initialised with numbers of 0 to 1."""
    return value.dim() == 2 and value.numel() > 0 and 0 <= float(value.min()) < float(value.max()) <= 1


@dataclasses.dataclass(eq=False)
class Layer:
    """A layer with weights, and what became of its outputs.

    Attributes:
        module: convolution, linear layer or normalisation.
        outputs: of each call, calibrated, (n, channels); none if another layer takes them.
        is_inner: whether another layer takes its outputs.
        is_ranked: whether values of its outputs were ranked.
        steps: operators that its outputs went through.
        partners: layers whose probabilities were multiplied with its own.
        before: layers that its inputs were computed by.
        spread: of its outputs.
    """

    module: nn.Module
    spread: float = 1.0
    outputs: list[torch.Tensor] = dataclasses.field(default_factory=list)
    is_inner: bool = False
    is_ranked: bool = False
    steps: set[str] = dataclasses.field(default_factory=set)
    partners: set[Layer] = dataclasses.field(default_factory=set)
    before: set[Layer] = dataclasses.field(default_factory=set)

    @property
    def size(self) -> int:
        return sum(output.numel() for output in self.outputs)

    def take(self) -> None:
        self.is_inner = True
        self.outputs.clear()


Origin = tuple[Layer, bool]
"""A layer that a tensor comes from, and whether its values became probabilities on the way."""


class _Flow(TorchDispatchMode):
    """Follows outputs of layers through the operators."""

    def __init__(self, calm: set[nn.Module]) -> None:
        super().__init__()
        self.origins = WeakTensorKeyDictionary()
        self.makers = WeakTensorKeyDictionary()
        self.calm, self.calmed = calm, {*calm}

    def of(self, value: Any) -> set[Origin]:
        tensors = (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))
        return set().union(*(self.origins.get(tensor, ()) for tensor in tensors))

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = operator.overloadpacket.__name__.rstrip('_') or operator.overloadpacket.__name__
        if name == 'add':
            self._calm(*args[:2])
        result = operator(*args, **(kwargs or {}))
        if name in RESHAPING and args[0] in self.makers:
            self.makers[result] = self.makers[args[0]]
        self._rank(operator, name, args)
        if name in ('gt', 'ge'):
            result = self._fewer(result, args[0])
        if name == 'mul':
            self._pair(args)
        self._follow(name, self.of(args[:1] if name in PICKING else (args, kwargs)), args, result)
        return result

    def _follow(self, name: str, origins: set[Origin], args: Sequence[Any], result: Any) -> None:
        for layer, is_probability in origins:
            if not layer.is_ranked:
                layer.steps.add('relu' if name in ('clamp_min', 'clamp') and args[1:] == (0,) else name)
            if name in MIXING and not is_probability:  # such as the mean of the bins of a side
                layer.take()
        if name in ('sigmoid', '_softmax', '_log_softmax'):
            origins = {(layer, True) for layer, _ in origins}
        if name not in MIXING | REDUCING:
            for tensor in pytree.tree_leaves(result):
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and origins:
                    self.origins[tensor] = origins

    def _calm(self, *sides: Any) -> None:
        """Scale the branch of a residual block and the layer that made it, before it is added."""
        for branch, stream in (sides, sides[::-1]):
            if not isinstance(branch, torch.Tensor) or branch not in self.makers:
                continue
            module, made = self.makers[branch], {layer for layer, _ in self.of(branch)}
            given = {layer for layer, _ in self.of(stream)}
            if module in self.calmed or len(made) != 1 or not given or branch.shape != stream.shape:
                continue
            (layer,) = made
            if given <= layer.before and layer.spread == 1:
                self.calmed.add(module)
                if module is not layer.module:
                    self.calm.add(module)
                for tensor in (branch, module.weight, module.bias):
                    if tensor is not None:
                        tensor.mul_(BRANCH_GAIN)

    def _rank(self, operator: Any, name: str, args: Sequence[Any]) -> None:
        is_best = name == 'max' and 'dim' in operator._overloadname
        if name in RANKING or is_best:
            origins = self.of(args[1] if name == 'nms' else args[0])
            probabilities = {layer for layer, is_probability in origins if is_probability}
            for layer in probabilities or {layer for layer, _ in origins if not is_best}:
                layer.is_ranked = True

    def _fewer(self, passed: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Of probabilities beyond a threshold leave the largest: most pass before last layers are set."""
        if passed.numel() <= OBJECTS or not any(is_probability for _, is_probability in self.of(values)):
            return passed
        return passed & (values >= values.flatten().topk(OBJECTS).values[-1])

    def _pair(self, args: Sequence[Any]) -> None:
        sides = [{layer for layer, is_probability in self.of(value) if is_probability} for value in args[:2]]
        for first, second in itertools.product(*sides):
            if first is not second and not (first.is_ranked and second.is_ranked):
                first.partners.add(second)
                second.partners.add(first)


def calibrate(model: nn.Module, test: Callable[[], Iterator[Any]], seed: int = 0) -> nn.Module:
    """Draw the weights of a model and calibrate them in a run of its test path, in place; return the model.

    Args:
        model: any network in evaluation mode.
        test: runs the test path and yields a result for each sample. Each sample calibrates anew, so
            that layers behind a memory see a filled one.
        seed: of the weights.
    """
    with torch.no_grad():
        draw(model, seed)
        hooks, results = _Hooks(), iter(test())
        last: list[Layer] = []
        while True:
            with hooks.on(model) as layers:
                if next(results, hooks) is hooks:
                    break
            last = [layer for layer in layers if not layer.is_inner]
        for index, layer in enumerate(last):
            larger = {other for other in last if other.size > layer.size} | set(last[:index])
            _set_last(layer, layer.partners & {other for other in larger if other.size >= layer.size})
    return model


def initialise_again(model: nn.Module, seed: int = 0) -> None:
    """Give a model the weights with which its training begins, of a seed, in place."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for part in model.modules():
            if callable(getattr(part, 'reset_parameters', None)):
                part.reset_parameters()
    initialise(model)


def has_nan(model: nn.Module) -> bool:
    """Whether a weight or a buffer of a model is NaN."""
    return any(bool(value.isnan().any()) for value in model.state_dict().values())


class _Hooks:
    """Calibrates each layer of a model when it is called first for a sample.

    Attributes:
        layers: module -> layer, as they are called first.
        done: parameters and normalisations that are set; modules may share them.
        narrow: layers that make places and sizes.
        offsets: bias -> as it was drawn.
        calm: normalisations that are last in a residual branch, and scaled.
    """

    def __init__(self) -> None:
        self.offsets: dict[nn.Parameter, torch.Tensor] = {}
        self.calm: set[nn.Module] = set()

    @contextlib.contextmanager
    def on(self, model: nn.Module) -> Iterator[Collection[Layer]]:
        self.layers: dict[nn.Module, Layer] = {}
        self.narrow: set[nn.Module] = set()
        self.done: set[Any] = set()
        self.flow = _Flow(self.calm)
        with contextlib.ExitStack() as stack:
            for name, module in model.named_modules():
                weight = module._parameters.get('weight')
                if weight is not None and (len(weight) < LEAST_STREAM or OFFSET in name.rpartition('.')[2]):
                    self.narrow.add(module)
                if getattr(module, 'running_mean', None) is not None:
                    stack.callback(module.register_forward_pre_hook(self.before_norm).remove)
                    if weight is not None:
                        stack.callback(module.register_forward_hook(self.after_norm).remove)
                elif weight is not None and weight.dim() >= 2 and weight.is_floating_point():
                    stack.callback(module.register_forward_hook(self.after_layer).remove)
            stack.enter_context(self.flow)
            yield self.layers.values()

    def before_norm(self, module: nn.Module, args: Any) -> None:
        if module not in self.done and args and isinstance(args[0], torch.Tensor):
            self.done.add(module)
            _set_statistics(module, args[0])

    def after_norm(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            self.flow.makers[output] = module

    def after_layer(self, module: nn.Module, args: Any, output: Any) -> Any:
        given, values = [_values_of(value) for value in args], _values_of(output)
        if values is None or not any(tensor is not None and tensor.is_floating_point() for tensor in given):
            return output  # of an embedding
        before = {layer for layer, _ in self.flow.of(given)}
        for layer in before:
            layer.take()
        if id(module.weight) not in self.done:
            self.done.add(id(module.weight))
            values = self._standardise(module, values)
        layer = self.layers.setdefault(module, Layer(module, self.spread_of(module)))
        layer.before |= before.union(*(one.before for one in before))
        if not layer.is_inner:
            layer.outputs.append(_rows(module, values).clone())  # which code may change in place
        self.flow.origins[values] = {(layer, False)}
        self.flow.makers[values] = module
        return values if isinstance(output, torch.Tensor) else output.replace_feature(values)

    def _standardise(self, module: nn.Module, values: torch.Tensor) -> torch.Tensor:
        """Scale the weights, set the bias if there is one, and return the new outputs."""
        mean, gain = _moments(_rows(module, values))
        gain *= self.spread_of(module)
        bias = module._parameters.get('bias')
        module.weight.mul_(gain)
        if bias is None or bias.shape != mean.shape:
            return values * gain
        drawn = self.offsets.setdefault(bias, bias.clone())
        shift = drawn * (NARROW_BIAS if module in self.narrow else 1.0) - (mean * gain).to(values)
        bias.copy_(bias * gain + shift)
        axes = [1] * values.dim()
        axes[_channel_axis(module, values)] = -1
        return values * gain + shift.view(axes)

    def spread_of(self, module: nn.Module) -> float:
        return NARROW_SPREAD if module in self.narrow else 1.0


def _values_of(value: Any) -> torch.Tensor | None:
    """Return a tensor, or the features of a sparse one."""
    values = getattr(value, 'features', value)
    return values if isinstance(values, torch.Tensor) else None


def _channel_axis(module: nn.Module, values: torch.Tensor) -> int:
    return 1 if values.dim() == module.weight.dim() > 2 else values.dim() - 1


def _rows(module: nn.Module, values: torch.Tensor) -> torch.Tensor:
    axis = _channel_axis(module, values)
    return values.movedim(axis, -1).reshape(-1, values.shape[axis])


def _moments(rows: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return means (channels,) in steps of the spread, and the factor, a power of two, to spread 1."""
    rows = rows[:: -(-len(rows) // MOST_VALUES) or 1].double()
    mean, size = rows.new_zeros(rows.shape[1]), float(rows.square().mean().sqrt()) if rows.numel() else 0.0
    if not math.isfinite(size) or size == 0:
        return mean, 1.0
    spread = size
    if len(rows) >= LEAST_VALUES:
        centre = rows.mean(0)
        spread = float((rows - centre).square().mean().sqrt())
        mean, spread = (centre, spread) if spread > LEAST_SPREAD * size else (mean, size)
    gain = 2.0 ** -round(math.log2(spread))
    return (mean * gain / MEAN_STEP).round() * (MEAN_STEP / gain), gain


def _set_statistics(norm: nn.Module, values: torch.Tensor) -> None:
    mean, gain = _moments(values.movedim(1, -1).reshape(-1, values.shape[1]))
    norm.running_mean.copy_(mean)
    norm.running_var.fill_(gain**-2)


def _set_last(layer: Layer, larger: Collection[Layer]) -> None:
    """Set mean and spread of a last layer; `larger`: scores that it is a factor of."""
    gain, shift, spread = 1.0, 0.0, layer.spread
    if layer.is_ranked:
        if larger or 'exp' in layer.steps:  # a quality, or scores and boxes of one layer
            return
        rows = torch.cat(layer.outputs).double()
        mean = (rows.mean(0) / MEAN_STEP).round() * MEAN_STEP
        gain = SOFTMAX_GAIN
        if 'sigmoid' in layer.steps or not layer.steps & {'_softmax', '_log_softmax'}:
            gain, shift = _score_moments((rows - mean).flatten() / spread)
        gain /= spread
        shift = shift - gain * mean
    elif 'relu' in layer.steps:
        gain, shift = 1 / spread, DISTANCE
    elif {'add', 'sigmoid'} <= layer.steps:
        gain = REFINEMENT_GAIN / spread
    elif 'exp' in layer.steps:
        largest = max(float(output.abs().max()) for output in layer.outputs)
        gain = float(f'{min(DELTA_GAIN / spread, LARGEST_DELTA / max(largest, spread)):.1e}')
    layer.module.weight.mul_(gain)
    bias = layer.module._parameters.get('bias')
    if bias is not None:
        bias.copy_(bias * gain + shift)


def _score_moments(logits: torch.Tensor) -> tuple[float, float]:
    """Return factor and addend by which the highest logits are of scores `SEEN` to `HIGH`."""
    count = max(min(OBJECTS, int(len(logits) * SHARE)), 1)
    best = logits.topk(min(OTHERS * count, len(logits))).values
    first, object_, other = (float(best[index]) for index in (0, count - 1, -1))
    seen, low, high = (math.log(score / (1 - score)) for score in (SEEN, LOW, HIGH))
    gain = 1.0
    if other < object_ < first:
        gain = max((high - low) / (first - object_), (low - seen) / (object_ - other))
    gain = float(f'{min(gain, LARGEST_GAIN):.1e}')
    return gain, round(low - gain * object_, 1)
