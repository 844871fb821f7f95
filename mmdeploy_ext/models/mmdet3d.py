"""Models and data sets of 3D that no installed library has: registered in mmdet3d by this import."""

from mmdeploy_ext.models import (  # noqa: F401
    bevfusion,
    cp_fpn,
    datasets,
    sparse_backbone,
    streampetr,
    vovnet,
)
