"""What a zoo says all together: counts, and one JSON file."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mmdeploy_ext.core.versions import versions
from mmdeploy_ext.zoo.record import NO_KERNEL, REASONS, Record, from_json


def content(records: Sequence[Record]) -> dict[str, Any]:
    """Return all records as plain JSON types, in the order of their names."""
    ordered = sorted(records, key=lambda record: record.config)
    return dict(versions=versions(), configs=[dataclasses.asdict(record) for record in ordered])


def records(read: Mapping[str, Any]) -> list[Record]:
    """Return the records of a JSON file that `content` made."""
    return [from_json(one) for one in read['configs']]


@dataclasses.dataclass(frozen=True)
class Count:
    """Of some configs.

    Attributes:
        configs: how many.
        referenced: of them that run on a CPU, so that there is something to compare with.
        fixed: of them proven with one size.
        dynamic: of them proven with any size.
        own_kernels: proven with one size against a kernel of this project; in no other count of proven ones.
        reasons: of those that are not proven with one size -> how many.
    """

    configs: int
    referenced: int
    fixed: int
    dynamic: int
    own_kernels: int
    reasons: dict[str, int]


def count(chosen: Sequence[Record]) -> Count:
    """Count records."""
    reasons = collections.Counter(one.fixed.reason for one in chosen if one.fixed and not one.proven)
    on_cpu = [one for one in chosen if not one.own_kernels]
    referenced = [one for one in on_cpu if one.fixed is None or one.fixed.reason != NO_KERNEL]
    return Count(
        len(chosen),
        len(referenced),
        sum(one.proven for one in referenced),
        sum(one.dynamic is not None and one.dynamic.proven for one in referenced),
        sum(one.proven for one in chosen if one.own_kernels),
        {reason: reasons[reason] for reason in REASONS if reasons[reason]},
    )


def line(chosen: Sequence[Record]) -> str:
    """Return the whole in one line."""
    whole = count(chosen)
    referenced = f'{whole.referenced} configs with a CPU reference'
    text = f'{whole.fixed} of {referenced} proven, {whole.dynamic} at any size'
    reasons = ', '.join(f'{number} {reason}' for reason, number in whole.reasons.items())
    return f'{text}; not proven: {reasons}' if reasons else text
