"""For each rule of the linter a module with the pitfall, the same one without it, and other forms of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ROWS = torch.arange(12.0).reshape(4, 3) / 10
FALLING = 0.5 - ROWS
MORE = torch.arange(18.0).reshape(6, 3) / 10


class Model(nn.Module):
    """Calls a function with itself and the inputs."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer('table', torch.tensor([2.0, 4.0]))
        self.register_buffer('memory', torch.zeros(4, 3))
        self.norm = nn.BatchNorm1d(3)
        self.function = forward
        self.eval()

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


@dataclasses.dataclass(frozen=True)
class Example:
    """A module, the tensors that the export sees, and tensors that it never saw."""

    forward: Callable[..., Any]
    traced: tuple[Tensor, ...] = (ROWS,)
    unseen: tuple[Tensor, ...] = (FALLING,)
    dynamic: bool = False  # the rows of input 0 are dynamic
    opset: int | None = None
    training: bool = False

    def build(self) -> nn.Module:
        return Model(self.forward).train(self.training)

    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in self.traced)


def rows(forward: Callable[..., Any], traced: Tensor = ROWS, unseen: Tensor = MORE) -> Example:
    return Example(forward, (traced,), (unseen,), dynamic=True)


def two(forward: Callable[..., Any]) -> Example:
    return Example(forward, (ROWS, FALLING), (FALLING, ROWS + 1))


def if_positive(self: Model, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return x * 2
    return -x


def repeated(self: Model, x: Tensor, n: Tensor) -> Tensor:
    for _ in range(int(n)):
        x = x * 1.5
    return x


def doubled_when_many(self: Model, x: Tensor) -> Tensor:
    if x.shape[0] > 5:
        return x * 2
    return x


def writes_column_of_mask(self: Model, x: Tensor) -> Tensor:
    x = x.clone()
    first = x[:, 0]
    first[first < 0.4] = 9.0
    return x


def where_column(self: Model, x: Tensor) -> Tensor:
    first = x[:, :1]
    return torch.cat([torch.where(first < 0.4, 9.0, first), x[:, 1:]], 1)


def adds_into_view(self: Model, x: Tensor) -> Tensor:
    x = x.clone()
    first, second, _ = x.unbind(1)
    first.add_(second)
    return x


def rectifies_slice(self: Model, x: Tensor) -> Tensor:
    x = x - 0.5
    F.relu(x[:, :2], inplace=True)
    return x


def keeps_memory(self: Model, x: Tensor) -> Tensor:
    self.memory = self.memory * 0.5 + x
    return self.memory * 1.0


TIMES = (ROWS, torch.tensor(2)), (FALLING, torch.tensor(3))
BESSEL = Example(lambda self, x: torch.special.bessel_j0(x))
BESSEL_SERIES = Example(lambda self, x: 1 - x * x / 4 + (x * x / 4) ** 2 / 4 - (x * x / 4) ** 3 / 36)

# rule -> the pitfall, the same without it, other forms of the pitfall
EXAMPLES: dict[str, tuple[Example, Example, list[Example]]] = {
    'value-to-python': (
        Example(lambda self, x: x * x.max().item()),
        Example(lambda self, x: x * x.max()),
        [
            Example(lambda self, x: x[:, :2] / torch.tensor([x[:, 0].max(), x[:, 1].max()])),
        ],
    ),
    'value-in-branch': (
        Example(if_positive),
        Example(lambda self, x: torch.where(x.sum() > 0, x * 2, -x)),
        [Example(repeated, *TIMES)],
    ),
    'size-to-python': (
        rows(lambda self, x: x.sum(0) / len(x)),
        rows(lambda self, x: x.sum(0) / x.shape[0]),
        [
            rows(lambda self, x: x[: int(x.shape[0] / 2)]),
        ],
    ),
    'size-in-branch': (
        rows(doubled_when_many),
        rows(lambda self, x: torch.where(torch.ones_like(x[:, 0]).sum() > 5, x * 2, x)),
        [],
    ),
    'size-in-loop': (
        rows(lambda self, x: torch.stack([row * (index + 1) for index, row in enumerate(x)])),
        rows(lambda self, x: x * torch.arange(1, x.shape[0] + 1)[:, None]),
        [
            rows(lambda self, x: torch.stack([x[index] for index in range(x.shape[0])])),
        ],
    ),
    'tensor-data': (
        Example(lambda self, x: x + x.data * 2),
        Example(lambda self, x: x + x.detach() * 2),
        [],
    ),
    'write-to-view': (
        Example(writes_column_of_mask),
        Example(where_column),
        [
            Example(adds_into_view),
            Example(rectifies_slice),
        ],
    ),
    'unused-input': (two(lambda self, x, y: x * 2), two(lambda self, x, y: x * 2 + y), []),
    'state-written': (
        Example(keeps_memory),
        two(lambda self, x, memory: memory * 0.5 + x),
        [Example(lambda self, x: self.memory.add_(x) * 1.0)],
    ),
    'training-mode': (
        Example(lambda self, x: self.norm(x), training=True),
        Example(lambda self, x: self.norm(x)),
        [],
    ),
    'random': (
        Example(lambda self, x: x + torch.rand_like(x)),
        two(lambda self, x, noise: x + noise),
        [
            Example(lambda self, x: F.dropout(x, 0.5)),
        ],
    ),
    'unsupported-operator': (
        BESSEL,
        BESSEL_SERIES,
        [
            Example(lambda self, x: x.triu(1), opset=13),
        ],
    ),
}
