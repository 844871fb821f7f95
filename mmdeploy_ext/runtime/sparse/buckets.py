"""The inputs of a portable file for one set of voxels, without torch and onnx.

Output rows are sorted by their neighbours: the K offsets are cut into groups of up to nine, and each group's
rows go to the smallest of up to 8 buckets that holds their pattern. A bucket is one dense product (rows, s*I)
x (s*I, O). On the goldens' sweep 80-91 % of a submanifold convolution's products are real, by tables 12-53 %
(strided 52-74 %, 8-23 %).

N input and M output rows, K kernel offsets, G groups, B buckets per group, s offsets of a bucket, L input
rows of all buckets, I input and O output channels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.runtime.sparse import bucket_loops
from mmdeploy_ext.runtime.sparse.rulebook import on_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.sparse.ir import Triple
    from mmdeploy_ext.runtime.sparse.plan import Plan
    from mmdeploy_ext.runtime.sparse.rulebook import Rulebook

FORMS = ('buckets', 'tables')
VOXELS, BEV = 'voxels', 'bev'
"""Names of the input of features and of the output."""
FACTS = 'mm2onnx.scn'
"""Metadata key of a portable graph's form, order, channels, output shape and plan."""
GROUP = 9
BUCKETS = 8
"""Buckets per group; 16 multiply 5-10 % less in 2-4 % less time, with twice the nodes."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kernel's offsets are cut into groups.

    Attributes:
        groups: (first, last + 1) offset of each group.
        buckets: B.
        bias_group: group that adds the bias: the middle one.
    """

    groups: tuple[tuple[int, int], ...]
    buckets: int
    bias_group: int

    @classmethod
    def of(cls, kernel_size: Triple) -> Layout:
        size = math.prod(kernel_size)
        group = min(GROUP, size)
        groups = tuple((first, min(first + group, size)) for first in range(0, size, group))
        return cls(groups, min(BUCKETS, 2**group - 1), (size // 2) // group)


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """The buckets of one table.

    Attributes:
        rows: (L,) int32 input rows, bucket after bucket; N is a row of zeros.
        lengths: (G*B,) int64 entries of `rows` per bucket.
        sizes: (G*B,) int64 offsets per output row, at least 1.
        offsets: (sum of sizes,) int32.
        positions: per group (M+1,) int32 result of each output row, T without neighbours; the last is the row
            of zeros: T, or T + 1 in the bias group.
    """

    rows: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    positions: tuple[np.ndarray, ...]


def arrange(
    tables: Mapping[str, np.ndarray],
    rows_in: Mapping[str, int],
    layouts: Mapping[str, Layout],
    threads: int = 1,
) -> dict[str, Arrangement]:
    """Buckets of each table by name, from tables (K, M) int32 (N for none), their N and layouts."""
    jobs = [(name, group) for name in tables for group in range(len(layouts[name].groups))]
    arranged: dict[tuple[str, int], tuple[np.ndarray, ...]] = {}

    def work(thread: int) -> None:
        for name, group in jobs[thread::threads]:
            arranged[name, group] = _arrange_group(tables[name], rows_in[name], layouts[name], group)

    on_threads(work, threads)
    arrangements = {}
    for name, layout in layouts.items():
        groups = [arranged[name, group] for group in range(len(layout.groups))]
        *lists, positions = zip(*groups, strict=True)
        arrangements[name] = Arrangement(*map(np.concatenate, lists), positions)
    return arrangements


def _arrange_group(
    table: np.ndarray, no_neighbour: int, layout: Layout, group: int
) -> tuple[np.ndarray, ...]:
    first, end = layout.groups[group]
    size, rows_out, buckets = end - first, table.shape[1], layout.buckets
    rows, offsets = np.empty(size * rows_out, np.int32), np.empty(size * buckets, np.int32)
    lengths, sizes = np.empty((2, buckets), np.int64)
    positions, bias = np.empty(rows_out + 1, np.int32), int(group == layout.bias_group)
    used, count = bucket_loops.arrange(
        table[first:end], no_neighbour, buckets, bias, rows, lengths, sizes, offsets, positions
    )
    return rows[:used], lengths, sizes, offsets[:count] + np.int32(first), positions


def feeds(plan: Plan, rulebook: Rulebook, form: str = 'buckets', threads: int = 1) -> dict[str, np.ndarray]:
    """Inputs of a portable file for one set of voxels, all but the features.

    SCATTER.cells (n,) int64, places in the flattened dense grid. Per table, form 'tables': TABLE.table (M,
    K), N for none; form 'buckets': TABLE.rows, .lengths, .offsets, .sizes (G*B, 1) and .position0, ... per
    group, see `Arrangement`.
    """
    arrays = {f'{name}.cells': cells for name, cells in rulebook.cells.items()}
    if form == 'tables':
        tables = {f'{name}.table': np.ascontiguousarray(table.T) for name, table in rulebook.tables.items()}
        return arrays | tables
    layouts = {table.name: Layout.of(table.kernel_size) for table in plan.tables}
    rows_in = {table.name: len(rulebook.levels[table.level_in]) for table in plan.tables}
    for name, arrangement in arrange(rulebook.tables, rows_in, layouts, threads).items():
        arrays[f'{name}.rows'] = arrangement.rows
        arrays[f'{name}.lengths'] = arrangement.lengths
        arrays[f'{name}.offsets'] = arrangement.offsets
        arrays[f'{name}.sizes'] = arrangement.sizes[:, None]
        for group, positions in enumerate(arrangement.positions):
            arrays[f'{name}.position{group}'] = positions
    return arrays
