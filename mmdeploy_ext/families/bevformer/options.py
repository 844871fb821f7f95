"""BEVFormer: options of exports. No torch."""

import dataclasses

from mmdeploy_ext.contract import options
from mmdeploy_ext.families.parts.options import AUTOWARE, GRID_SAMPLE

PORTABLE, TRT_PLUGIN = 'portable', 'trt-plugin'
"""Choices of `--contract`, beside `AUTOWARE`."""
OPTIONS = (
    dataclasses.replace(
        options.CONTRACT,
        default=PORTABLE,
        help="portable: one graph of plain operators; motion and the last bird's-eye view are inputs; "
        'trt-plugin: the graph that TensorRT deployments of BEVFormer load, with their plug-ins; autoware: '
        "the file that Autoware's tensorrt_bevformer loads, of plain operators",
        choices=(PORTABLE, TRT_PLUGIN, AUTOWARE),
        fixes={
            TRT_PLUGIN: dict(precision='fp32', grid_sample='operator'),
            AUTOWARE: dict(precision='fp32'),
        },
    ),
    GRID_SAMPLE,
)
"""Options of the family."""
