"""Level 1: is every constant of a file a weight of the checkpoint, and is every weight there?

What the exporter computes from config and options (anchors, coordinates, periods of sines) is in no
checkpoint. A family names such constants; their values are compared with those of a fresh export.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.graph.constants import Constant, constants, quantised, read_only_by
from mmdeploy_ext.verify.half import HALF_FORM
from mmdeploy_ext.verify.verdict import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    import onnx

TITLE = 'weights come from the checkpoint'
DERIVED_ELEMENTS = 64
"""Constants of zeros or ones up to this size are helpers of normalisation layers, identities are poses; whole
numbers up to this size are shapes, axes and places."""
FRESH_RTOL = 1e-6
"""Of the largest value: what another machine may compute differently in a constant that is no weight."""


@dataclasses.dataclass(frozen=True)
class Derived:
    """What a family says of constants that are in no checkpoint.

    Attributes:
        prefixes: of the names of constants that the exporter computes; a fresh export has to hold the values.
        by_value: tells by its value whether a constant is one that the family computes.
        fresh: returns fresh exports with the options of the file, one after the other while they are asked
            for; none without it, and then no constant is known to be computed but those of `by_value`.
    """

    prefixes: tuple[str, ...] = ()
    by_value: Callable[[np.ndarray], bool] = lambda array: False
    fresh: Callable[[], Iterable[onnx.ModelProto]] = tuple


def check_weights(model: onnx.ModelProto, weights: Mapping[str, np.ndarray], derived: Derived) -> Check:
    """Every constant is bit for bit a weight, as stored or transposed, or known to be none; none is missing.

    A constant that bears the name of a parameter has to be that parameter, whatever its size. Any other one
    has to be some weight, unless it is computed (see `Derived`), a single number, a few zeros or ones, an
    identity, a scale that only Resize reads, the zeros and ones of a LayerNormalization without parameters,
    or zeros for the bias that a DeformConv has not. A weight that the file lacks is one that a fresh export
    lacks, too, such as the branches of a block that became one convolution.
    """
    stored = quantised(model)
    if stored:
        return Check(
            TITLE,
            False,
            f'{len(stored)} are stored quantised ({", ".join(stored[:3])}): they are not those of the '
            f'checkpoint, so evaluate the file (docs/int8-images.md, "The metric before and after")',
        )
    known = Known(weights)
    found = list(constants(model))
    unknown, computed, matched = _sorted(model, found, known, derived)
    if unknown:
        return Check(TITLE, False, f'{len(unknown)} are not in the checkpoint: {", ".join(unknown[:5])}')
    missing = known.missing(found)
    differing, missing = _beside_fresh(known, computed, missing, derived)
    if differing:
        return Check(
            TITLE,
            False,
            f'{len(differing)} are neither in the checkpoint nor in a fresh export: '
            f'{", ".join(map(_text, differing[:5]))}',
        )
    if missing:
        return Check(
            TITLE, False, f'{len(missing)} of the checkpoint are not in the file: {", ".join(missing[:5])}'
        )
    return Check(TITLE, matched > 0, f'{matched} found')


class Known:
    """The weights of a model, in the forms in which a file may hold them."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        """Digest all weights.

        Args:
            weights: name -> array, see `half.with_half_weights`.
        """
        self.weights = weights
        self._forms = {name: _forms(name, array) for name, array in weights.items()}
        self._digests = {digest for forms in self._forms.values() for part in forms for digest in part}

    def has(self, array: np.ndarray) -> bool:
        """Return whether an array is some weight, or a part of one that exporters take apart."""
        return _digest(array) in self._digests

    def missing(self, found: Iterable[Constant]) -> list[str]:
        """Return the weights that live constants do not hold; zeros are left out, as exporters do."""
        held = {_digest(constant.array) for constant in found if constant.is_live}
        there = {name.removeprefix(HALF_FORM) for name, forms in self._forms.items() if _held(forms, held)}
        return [
            name
            for name, array in self.weights.items()
            if not name.startswith(HALF_FORM)
            and name not in there
            and array.dtype.kind == 'f'
            and array.any()
        ]


def _forms(name: str, array: np.ndarray) -> list[set[str]]:
    """Return digests of a weight, stored or transposed, and then those of its parts."""
    # exporters take the packed projections of nn.MultiheadAttention apart
    packed = name.endswith(('in_proj_weight', 'in_proj_bias'))
    return [
        {_digest(part)} | ({_digest(part.T)} if part.ndim == 2 else set())
        for part in (array, *(np.split(array, 3) if packed else ()))
    ]


def _held(forms: list[set[str]], held: set[str]) -> bool:
    whole, *parts = ({*form} & held for form in forms)
    return bool(whole) or (bool(parts) and all(parts))


def _sorted(
    model: onnx.ModelProto, found: Iterable[Constant], known: Known, derived: Derived
) -> tuple[list[str], list[Constant], int]:
    """Return what is surely wrong, what a fresh export has to show, and how many weights there are."""
    only = {kind: read_only_by(model, kind) for kind in ('Resize', 'LayerNormalization', 'DeformConv')}
    unknown, computed, matched = [], [], 0
    for constant in found:
        array, tensor = constant.array, constant.tensor
        if constant.is_input or array.dtype.kind == 'b':
            continue
        if array.dtype.kind in 'iu':
            if array.size > DERIVED_ELEMENTS and not known.has(array):
                computed.append(constant)
            continue
        if constant.is_sparse or array.dtype.kind not in 'fV':
            unknown.append(_text(constant))
            continue
        parameter = known.weights.get(constant.name.rsplit('/', 1)[-1].removeprefix('model.'))
        if parameter is not None and _digest(parameter) != _digest(array):
            unknown.append(_text(constant))
        elif known.has(array):
            matched += 1
        elif (
            tensor in only['Resize']
            or _plain(array, any_size=tensor in only['LayerNormalization'])
            or (tensor in only['DeformConv'] and not array.any())
            or derived.by_value(array)
        ):
            continue
        elif constant.name.startswith(derived.prefixes or ('\0',)):
            computed.append(constant)
        else:
            unknown.append(_text(constant))
    return unknown, computed, matched


def _beside_fresh(
    known: Known, computed: list[Constant], missing: list[str], derived: Derived
) -> tuple[list[Constant], list[str]]:
    """Return the computed constants that no fresh export holds, and the weights that only the file lacks."""
    if not computed and not missing:
        return [], []
    fresh = iter(derived.fresh())
    while computed or missing:
        model = next(fresh, None)
        if model is None:
            return computed, missing
        there = list(constants(model))
        pool = [constant.array for constant in there if not known.has(constant.array)]
        digests = {_digest(array) for array in pool}
        computed = [
            constant
            for constant in computed
            if _digest(constant.array) not in digests and not _near(constant.array, pool)
        ]
        missing_there = set(known.missing(there))
        missing = [name for name in missing if name not in missing_there]
    return [], []


def _near(array: np.ndarray, pool: Iterable[np.ndarray]) -> bool:
    """Return whether a constant is one of a pool, up to the rounding of another machine."""
    if array.dtype.kind != 'f':
        return False
    for other in pool:
        if other.shape == array.shape and other.dtype == array.dtype:
            finite = np.abs(other[np.isfinite(other)]).max(initial=0.0)
            if np.allclose(array, other, rtol=0, atol=FRESH_RTOL * float(finite), equal_nan=True):
                return True
    return False


def _digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _plain(array: np.ndarray, any_size: bool = False) -> bool:
    """Return whether a small constant can be no weight: one number, all zeros or ones, the identity."""
    plain = bool((array == 0).all() or (array == 1).all())
    plain |= array.ndim == 2 and np.array_equal(array, np.eye(*array.shape))
    return array.size <= 1 or ((any_size or array.size <= DERIVED_ELEMENTS) and plain)


def _text(constant: Constant) -> str:
    return f'{constant.name} {constant.array.shape}'
