"""What the graphs of Sparse4D compute in place of methods of the live model, the user's or ours.

The graphs run backbone, neck, linear layers, norms and feed-forward networks of the model; what is around
them are functions of `network.py` and of `runtime/`.

Source of the names: HorizonRobotics/Sparse4D c41df4b (no code).
"""

from collections.abc import Iterator

from torch import nn

from mmdeploy_ext.families.replaced import Followed, Replaced, replaced_parts
from mmdeploy_ext.models.sparse4d import aggregation, bank, blocks, detector, head

FOLLOWED: Followed = (
    (detector.Sparse4D, ('extract_feat', 'forward')),
    (head.Sparse4DHead, ('forward', 'post_process')),
    (head.SparseBox3DDecoder, ('decode',)),
    (bank.InstanceBank, ('get', 'update', 'cache', 'get_instance_id')),
    (aggregation.DeformableFeatureAggregation, ('forward', 'weights_of', 'project')),
    (blocks.SparseBox3DEncoder, ('forward',)),
    (blocks.SparseBox3DRefinementModule, ('forward',)),
    (blocks.SparseBox3DKeyPointsGenerator, ('forward', 'anchor_projection')),
)
"""This package's classes, and methods of them that graphs and runtime compute by other code."""
UPSTREAM = dict(
    Sparse4D=('extract_feat', 'forward', 'forward_test', 'simple_test'),
    Sparse4DHead=('forward', 'graph_model', 'post_process'),
    SparseBox3DDecoder=('decode', 'decode_box'),
    InstanceBank=('get', 'update', 'cache', 'get_instance_id', 'update_instance_id'),
    DeformableFeatureAggregation=('forward', '_get_weights', 'project_points'),
    SparseBox3DEncoder=('forward',),
    SparseBox3DRefinementModule=('forward',),
    SparseBox3DKeyPointsGenerator=('forward', 'anchor_projection'),
)
"""The same of upstream's."""
FUNCTIONS = dict(Sparse4D=('feature_maps_format',), InstanceBank=('topk',))
"""Class of upstream -> functions that its module uses."""


def is_ours(model: nn.Module) -> bool:
    """Return whether the head is this package's or derived from it."""
    return isinstance(model.head, head.Sparse4DHead)


def replaced(model: nn.Module) -> Iterator[Replaced]:
    """Return the methods and functions of a live model that graphs and runtime compute by other code."""
    parts = {}
    for part in (model, model.head.decoder, *model.head.modules()):
        names = [base.__name__ for base in type(part).__mro__ if base.__name__ in UPSTREAM]
        if names:
            parts[part] = names[0]
    return replaced_parts(parts, is_ours(model), FOLLOWED, UPSTREAM, FUNCTIONS)
