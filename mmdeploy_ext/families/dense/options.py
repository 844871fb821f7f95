"""Options of dense heads."""

from mmdeploy_ext.contract.options import MAX_CANDIDATES

OPTIONS = (MAX_CANDIDATES,)
"""Options of the family."""
