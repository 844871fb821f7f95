"""The attention of flash_attn in PyTorch's own operators, for models that a repository wrote around it.

Its kernels need a GPU and float16, and a graph cannot contain them. Repositories have a module around a
kernel (`FlashAttention` of flash_attn 1.0, and copies of it) that holds no weights.

Glossary: B batch, T queries, S keys, H heads, D channels of a head.
"""

import contextlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

KERNELS = ('flash_attn_unpadded_kvpacked_func', 'flash_attn_varlen_kvpacked_func', 'flash_attn_kvpacked_func')
"""Functions of flash_attn 1 and 2 that take queries, and keys and values in one tensor."""
ARGUMENTS = ('q', 'kv', 'causal', 'key_padding_mask')
"""Arguments of the module around a kernel; the last two have defaults, or are missing."""


def plain_attention(
    q: Tensor,
    kv: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Return the attention (B, T, H, D) of queries (B, T, H, D) to keys and values (B, S, 2, H, D).

    The result of a query that sees no key is NaN.

    Args:
        q: queries.
        kv: on axis 2 keys, then values.
        softmax_scale: factor of the scores; the default is D ** -0.5.
        causal: query T - i sees the keys up to S - i, i from 1 on, and none after it, as in flash_attn 2.1.
        key_padding_mask: (B, S) bool, or a number that is not 0, for keys that are seen; None: all are.
    """
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    queries = q.transpose(1, 2) * scale
    keys, values = (part.transpose(1, 2) for part in kv.unbind(dim=2))
    scores = queries @ keys.transpose(-1, -2)
    if key_padding_mask is not None:
        scores = scores.masked_fill(~key_padding_mask[:, None, None].bool(), float('-inf'))
    if causal:
        num_queries, num_keys = scores.shape[-2:]
        hidden = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device)
        hidden = hidden.triu(num_keys - num_queries + 1)
        scores = scores.masked_fill(hidden, float('-inf'))
    return (scores.softmax(dim=-1) @ values).transpose(1, 2)


def calls_kernel(kind: type) -> bool:
    """Return whether the code of the `forward` of a class of modules names a kernel of `KERNELS`.

    A function that a decorator wraps is looked into, those that it calls are not.
    """
    functions = [inspect.unwrap(kind.forward)]
    for cell in getattr(kind.forward, '__closure__', None) or ():  # mmcv's auto_fp16 keeps no `__wrapped__`
        with contextlib.suppress(ValueError):  # of a name that has no value yet
            functions.append(cell.cell_contents)
    codes = [getattr(function, '__code__', None) for function in functions]
    return any(code is not None and not set(KERNELS).isdisjoint(code.co_names) for code in codes)


def use_plain_attention(model: nn.Module) -> list[str]:
    """Let the modules of a model that call a kernel of flash_attn compute by PyTorch's own operators.

    These are those of `calls_kernel`, but no scripted ones. They are taken to have no weights, and compute in
    the type of their inputs, without dropout. It is their classes that get another `forward`, so that other
    models of these classes have it, too; it returns the attention and None, as those of flash_attn 1.0 do.

    Returns:
        The qualified names of these classes, in order, without those that an earlier call has changed.

    Raises:
        ValueError: a module takes other arguments than those of flash_attn's own.
    """
    # the class of scripted modules has no `forward` of its own
    kinds = {type(module) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)}
    replaced = []
    for kind in sorted(kinds, key=lambda kind: kind.__qualname__):
        if kind.forward.__module__ == __name__ or not calls_kernel(kind):
            continue
        names = tuple(inspect.signature(inspect.unwrap(kind.forward)).parameters)[1:]
        if names[:2] != ARGUMENTS[:2] or set(names) - set(ARGUMENTS):
            raise ValueError(
                f'{kind.__module__}.{kind.__qualname__}.forward calls a kernel of flash_attn and takes '
                f'{", ".join(names)}; expected {", ".join(ARGUMENTS)}: write it with PyTorch operators'
            )
        kind.forward = _forward
        replaced.append(kind.__qualname__)
    return replaced


def notes_on(model: nn.Module) -> list[str]:
    """Return a sentence for a verdict of each class of a model that `use_plain_attention` has changed.

    They are in the order of the classes' names; [] if it has changed none.
    """
    kinds = {type(module) for module in model.modules()}
    kinds = {kind for kind in kinds if inspect.getattr_static(kind, 'forward', None) is _forward}
    return [
        f"{kind.__module__}.{kind.__qualname__} computes by operators of PyTorch, in its inputs' type, and "
        f'not by a kernel of flash_attn, which needs a GPU and float16'
        for kind in sorted(kinds, key=lambda kind: kind.__qualname__)
    ]


def _forward(
    self: Any, q: Tensor, kv: Tensor, causal: bool = False, key_padding_mask: Tensor | None = None
) -> tuple[Tensor, None]:
    """Compute what a kernel of flash_attn computes, in evaluation mode."""
    return plain_attention(q, kv, getattr(self, 'softmax_scale', None), causal, key_padding_mask), None
