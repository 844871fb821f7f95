"""PETR and PETRv2: options of exports. No torch."""

from mmdeploy_ext.contract.options import own_contract

OPTIONS = (
    own_contract(
        'portable',
        'three graphs, the position embedding is one of its own and the head refuses that of another '
        'calibration',
    ),
)
"""Options of the family."""
