"""The inputs of a portable file for one set of voxels, without the onnx package.

Output rows of a convolution are sorted by which neighbours they have, so that few zeros are multiplied.
Most neighbours of a LiDAR voxel are empty. The K offsets of a kernel are cut into groups of up to nine;
within a group, a row's pattern is the set of offsets at which it has a neighbour. For each group and sweep,
up to 8 patterns are chosen as buckets, greedily by what they save, and every row that has a neighbour in the
group goes to the smallest bucket that holds its pattern. A bucket is then one dense matrix product: (rows,
s*I) x (s*I, O), s offsets per row. On the goldens' sweep 80-91 % of what a submanifold convolution multiplies
is real, instead of 12-53 % by whole tables; of what a strided one does, 52-74 % instead of 8-23 %. Needs no
torch.

Glossary: N input and M output rows, K kernel offsets, G groups, B buckets per group, s offsets of a bucket,
L input rows of all buckets, I input and O output channels.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.sparse import bucket_loops
from mmdeploy_ext.sparse.rulebook import on_threads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.sparse.ir import Triple
    from mmdeploy_ext.sparse.plan import Plan
    from mmdeploy_ext.sparse.rulebook import Rulebook

FORMS = ('buckets', 'tables')
"""Forms of a portable file, see `sparse/portable.py`."""
VOXELS, BEV = 'voxels', 'bev'
"""Names of its input of features and of its output."""
FACTS = 'mm2onnx.scn'
"""Key of the metadata of a portable graph: form, order, channels, output shape and plan."""
GROUP = 9
"""Largest number of offsets in a group."""
BUCKETS = 8
"""Largest number of buckets of a group.

With 16, 5-10 % less is multiplied in 2-4 % less time, but the graph has twice the nodes.
"""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a kernel's offsets are cut into groups: by its size alone, so that a graph can be written for it.

    Attributes:
        groups: (first, last + 1) offset of each group.
        buckets: B, of each group.
        bias_group: index of the group whose buckets add the bias: the one in the middle, which holds the
            centre of a kernel of odd sizes.
    """

    groups: tuple[tuple[int, int], ...]
    buckets: int
    bias_group: int

    @classmethod
    def of(cls, kernel_size: Triple) -> Layout:
        """Return the layout of a kernel of `kernel_size` (k0, k1, k2), each at least 1: k0 k1 k2 offsets."""
        size = math.prod(kernel_size)
        group = min(GROUP, size)
        groups = tuple((first, min(first + group, size)) for first in range(0, size, group))
        return cls(groups, min(BUCKETS, 2**group - 1), (size // 2) // group)


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """The buckets of one table.

    Attributes:
        rows: (L,) int32 input rows, bucket after bucket, output row by output row; N is a row of zeros.
        lengths: (G*B,) int64 how many of `rows` each bucket has: output rows times offsets.
        sizes: (G*B,) int64 offsets per output row in each bucket, at least 1.
        offsets: (sum of sizes,) int32 which offsets those are.
        positions: per group (M+1,) int32, the index of each output row among the results of the group's
            buckets, or their number T if it has no neighbour in the group. The last entry is the index of a
            row of zeros: T, and T + 1 in the bias group, where result T is the bias alone.
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
    """Return the buckets of each table by its name; they do not depend on the number of threads.

    Args:
        tables: name -> (K, M) int32 input rows, N for no neighbour, as in `Rulebook.tables`.
        rows_in: name -> N.
        layouts: name -> layout of the table's kernel; same names as `tables`.
        threads: how many threads sort, at least 1.
    """
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
    """Return rows, lengths, sizes, offsets and positions of one group, as an `Arrangement` has them.

    For `table` and `no_neighbour` see `bucket_loops.arrange`; `table` is of all groups.
    """
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
    """Return the inputs of a portable file for one set of voxels, all but the features.

    Names begin with that of a table or scatter of the plan: SCATTER.cells (n,) int64, the place of each of
    the n sites of its level in the flattened dense grid (`Rulebook.cells`), and per table TABLE.table (M, K)
    in the form 'tables', N for no neighbour, or in the form 'buckets' TABLE.rows, .lengths, .offsets, .sizes
    (G*B, 1) and, per group, .position0, .position1, ... as in `Arrangement`. They do not depend on the number
    of threads.

    Args:
        plan: plan of the file.
        rulebook: what `rulebook.build` gave for this plan.
        form: form of the file, one of `FORMS`.
        threads: how many threads sort, at least 1.
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
