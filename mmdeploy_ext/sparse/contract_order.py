"""Signs that a libspconv file is not in the coordinate order that it states."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.sparse.contract_fields import WARNING, Violation
from mmdeploy_ext.sparse.contract_rules import FORMATS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.sparse.contract_fields import Layer

FLAT = 4
"""A grid is flat along z: with this many times the cells of its shortest axis, z is probably another axis."""


def order_rules(layers: list[Layer], file_order: str) -> Iterator[Violation]:
    """Yield signs that the coordinate order that the file states is not the one that it has.

    Args:
        layers: as the engine read them.
        file_order: of the file's name, '' when it says none.
    """
    consumers = {layer.inputs[0]: layer for layer in layers if layer.inputs}
    for layer in layers:
        order, grid = layer.values.get('format'), layer.values.get('input_spatial_shape', ())
        if layer.op_type != 'ScatterDense' or order not in FORMATS:
            continue
        if file_order and order != file_order:
            message = (
                f"format={order!r}, the file's name says {file_order!r}: coordinates would be fed in the "
                f'wrong order'
            )
            yield Violation(layer.name, 'format', 'order', message)
        height = order.index('z')
        first = next((entry for entry in layers if entry.is_convolution), None)
        for where, shape in ((layer, grid), (first, first.written['input_spatial_shape'] if first else ())):
            if len(shape) == 3 and shape[height] > FLAT * min(shape):
                message = (
                    f'format={order!r} makes axis {height} z, but {list(shape)} of {where.name} has its '
                    f'shortest axis elsewhere: are coordinates, weights and shapes in the other order?'
                )
                yield Violation(layer.name, 'format', 'order', message, WARNING)
                break
        yield from _tail(layer, consumers.get(layer.output), order)


def _tail(scatter: Layer, after: Layer | None, order: str) -> Iterator[Violation]:
    """Yield a dense tail that merges another axis than z into the channels."""
    dims = after.values['dims'] if after and after.op_type == 'Transpose' else (0, 1, 2, 3, 4)
    if len(dims) == 5 and dims[2] != 2 + order.index('z'):
        name = after.name if after and after.op_type == 'Transpose' else scatter.name
        message = (
            f'axis {dims[2]} of the dense tensor lies beside the channels, but format={order!r} of '
            f'{scatter.name} has z on axis {2 + order.index("z")}: the BEV map would be seen from the side'
        )
        yield Violation(name, 'dims', 'order', message)
