"""Options of BEVFusion."""

import dataclasses

from mmdeploy_ext.contract.options import CONTRACT as DECLARED
from mmdeploy_ext.contract.options import SPARSE_FORM

PORTABLE, CUDA, AUTOWARE = 'portable', 'cuda-bevfusion', 'autoware'
"""Choices of `--contract`."""
CONTRACT = dataclasses.replace(
    DECLARED,
    default=PORTABLE,
    help='portable: graphs of standard operators, points to boxes (default); cuda-bevfusion: the files '
    "that NVIDIA's CUDA-BEVFusion loads, by its names and shapes; autoware: the file that Autoware's "
    'bevfusion loads, of models of LiDAR alone',
    choices=(PORTABLE, CUDA, AUTOWARE),
    fixes={CUDA: dict(opset=13, exporter='torchscript', precision='fp32'), AUTOWARE: dict(precision='fp32')},
)
OPTIONS = (CONTRACT, dataclasses.replace(SPARSE_FORM, only_with=('contract', PORTABLE)))
"""Options of the family."""
