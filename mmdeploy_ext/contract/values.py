"""Checks of single values that several entries of the metadata have; need neither torch nor numpy."""

from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.contract.schema import Check, Mismatch, exactly, items, number, one_of, text

FLAG, NAME = one_of(True, False), text(r'(?s).+', 'a text that is not empty')
SIZE = number(0, 16_384, whole=True)
"""Pixels; 0 where the size is not fixed."""
COUNT, PIXELS = number(1, 100_000, whole=True), number(1, 16_384, whole=True)
LIMIT = number(-1, 10**9, whole=True)
"""Of a number of results: -1 and 0 have none."""
POSITIVE, FRACTION = number(above=0), number(0, 1)
TRIPLE = exactly(3, COUNT)
RANGE = exactly(6, number())
STRIDES = items(number(1, 4096, whole=True), 1, 64)
DIGEST = text('[0-9a-f]{64}', '64 hexadecimal digits')


def equal_lengths(*keys: str) -> Check:
    """Return a check of a record that its lists of these names have one length, where they are there."""

    def check(facts: Mapping[str, Any], where: str) -> None:
        lengths = {key: len(facts[key]) for key in keys if key in facts}
        if len(set(lengths.values())) > 1:
            raise Mismatch(', '.join(f'{key} has {length} entries' for key, length in lengths.items()))

    return check
