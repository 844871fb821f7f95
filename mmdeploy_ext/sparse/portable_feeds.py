"""The inputs of a portable file for one set of voxels: what its runtime needs, without the onnx package."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mmdeploy_ext.sparse.buckets import Layout, arrange

if TYPE_CHECKING:
    from mmdeploy_ext.sparse.plan import Plan
    from mmdeploy_ext.sparse.rulebook import Rulebook

FORMS = ('buckets', 'tables')
VOXELS, BEV = 'voxels', 'bev'
FACTS = 'mm2onnx.scn'
"""Key of the metadata that say what the graph is: form, order, channels, output shape and plan."""


def feeds(plan: Plan, rulebook: Rulebook, form: str = 'buckets', threads: int = 1) -> dict[str, np.ndarray]:
    """Return all inputs but the features, for one set of voxels.

    Args:
        plan: of the graph.
        rulebook: of the voxels.
        form: as it was written.
        threads: how many threads sort; the result does not depend on it.

    Returns:
        Input name -> array: see `portable._Writer.table_inputs`.
    """
    arrays = {f'{name}.cells': cells for name, cells in rulebook.cells.items()}
    if form == 'tables':
        tables = {f'{name}.table': np.ascontiguousarray(table.T) for name, table in rulebook.tables.items()}
        return arrays | tables
    layouts = {table.name: Layout.of(table.kernel_size) for table in plan.tables}
    rows_in = {table.name: len(rulebook.levels[table.level_in]) for table in plan.tables}
    for name, found in arrange(rulebook.tables, rows_in, layouts, threads).items():
        arrays[f'{name}.rows'], arrays[f'{name}.lengths'] = found.rows, found.lengths
        arrays[f'{name}.offsets'], arrays[f'{name}.sizes'] = found.offsets, found.sizes[:, None]
        arrays |= {f'{name}.position{group}': entry for group, entry in enumerate(found.positions)}
    return arrays
