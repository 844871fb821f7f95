"""Options of one-stage heads of rotated boxes."""

from mmdeploy_ext.contract.options import MAX_CANDIDATES

OPTIONS = (MAX_CANDIDATES,)
