"""Options of BEVFusion."""

import dataclasses

from mmdeploy_ext.spec.options import SPARSE_FORM, own_contract

OPTIONS = (
    own_contract('portable', 'graphs of standard operators, points to boxes'),
    dataclasses.replace(SPARSE_FORM, only_with=('contract', 'portable')),
)
