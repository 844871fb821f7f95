"""Parts as they are typed: `img_backbone+img_neck`, `pts_bbox_head.transformer`, `extract_img_feat()`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.base.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import torch

FORWARD = 'forward'
SUFFIX = '()'


@dataclasses.dataclass(frozen=True)
class Step:
    """One method of one module.

    Attributes:
        owner: path of the module in the model; '' is the model itself.
        method: name of the method, 'forward' for a module.
    """

    owner: str
    method: str = FORWARD

    @classmethod
    def parse(cls, text: str) -> Step:
        if not text.endswith(SUFFIX):
            return cls(text)
        owner, _, method = text.removesuffix(SUFFIX).rpartition('.')
        return cls(owner, method)

    @property
    def text(self) -> str:
        if self.method == FORWARD:
            return self.owner
        return f'{self.owner}.{self.method}{SUFFIX}'.lstrip('.')

    def owner_in(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the module that has the method; UsageError: the model has no such module or method."""
        try:
            owner = model.get_submodule(self.owner)
        except AttributeError as error:
            names = [name for name, _ in model.named_modules() if name]
            raise UsageError(
                f'--parts {self.text}: {type(model).__name__} has no module {self.owner!r}'
                f'{did_you_mean(self.owner, names)}'
            ) from error
        if not callable(getattr(owner, self.method, None)):
            raise UsageError(f'--parts {self.text}: {type(owner).__name__} has no method {self.method!r}')
        return owner


@dataclasses.dataclass(frozen=True)
class Part:
    """Steps that become one graph: tensors flow from each to later ones."""

    steps: tuple[Step, ...]

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read a part as typed; UsageError: a step is empty or repeated."""
        names = [name.strip() for name in text.split('+')]
        if not all(names) or len(set(names)) < len(names):
            raise UsageError(f'--parts {text}: expected paths of modules or methods, joined by +')
        return cls(tuple(map(Step.parse, names)))

    @property
    def text(self) -> str:
        return '+'.join(step.text for step in self.steps)

    @property
    def file(self) -> str:
        return f'{self.text.replace(SUFFIX, "")}.onnx'


def parse_parts(texts: list[str] | tuple[str, ...], model: torch.nn.Module) -> list[Part]:
    """Return the typed parts; UsageError: one is not in the model, or two share a step."""
    parts = [Part.parse(text) for text in texts]
    steps = [step for part in parts for step in part.steps]
    for step in steps:
        step.owner_in(model)
        if steps.count(step) > 1:
            raise UsageError(f'--parts {step.text}: belongs to two parts')
    return parts


@contextlib.contextmanager
def intercepted(model: torch.nn.Module, handlers: Mapping[Step, Callable[..., Any]]) -> Iterator[None]:
    """Inside the block `handler(original, args, kwargs)` replaces each step's method."""
    with contextlib.ExitStack() as stack:
        for step, handler in handlers.items():
            owner = step.owner_in(model)
            original = getattr(owner, step.method)
            stack.enter_context(replaced_entry(vars(owner), step.method, _handled(handler, original)))
        yield


def _handled(handler: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return handler(original, args, kwargs)

    return call
