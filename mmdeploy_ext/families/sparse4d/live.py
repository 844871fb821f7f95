"""What the graphs of Sparse4D compute in place of methods of the live model, the user's or ours.

The graphs run backbone, neck, linear layers, norms and feed-forward networks of the model; what is around
them are functions of `network.py` and of `runtime/`.

Source of the names: HorizonRobotics/Sparse4D c41df4b (no code).
"""

import sys
from collections.abc import Iterator

from mmcv.cnn.bricks.transformer import MultiheadAttention
from torch import nn

from mmdeploy_ext.families.replaced import Followed, Replaced, replaced_parts
from mmdeploy_ext.models.sparse4d import aggregation, bank, blocks, detector, head

FOLLOWED: Followed = (
    (detector.Sparse4D, ('extract_feat', 'forward')),
    (head.Sparse4DHead, ('forward', 'post_process')),
    (head.SparseBox3DDecoder, ('decode',)),
    (bank.InstanceBank, ('get', 'update', 'cache', 'reset', 'get_instance_id')),
    (aggregation.DeformableFeatureAggregation, ('forward', 'weights_of', 'project')),
    (blocks.SparseBox3DEncoder, ('forward',)),
    (blocks.SparseBox3DRefinementModule, ('forward',)),
    (blocks.SparseBox3DKeyPointsGenerator, ('forward', 'anchor_projection')),
    (MultiheadAttention, ('forward',)),
)
"""Classes of this package and mmcv, and methods of them that graphs and runtime compute by other code."""
UPSTREAM = dict(
    Sparse4D=('extract_feat', 'forward', 'forward_test', 'simple_test'),
    Sparse4DHead=('forward', 'graph_model', 'post_process'),
    SparseBox3DDecoder=('decode', 'decode_box'),
    InstanceBank=('get', 'update', 'cache', 'reset', 'get_instance_id', 'update_instance_id'),
    DeformableFeatureAggregation=('forward', '_get_weights', 'project_points'),
    SparseBox3DEncoder=('forward',),
    SparseBox3DRefinementModule=('forward',),
    SparseBox3DKeyPointsGenerator=('forward', 'anchor_projection'),
    MultiheadAttention=('forward',),
    GridMask=('forward',),
)
"""The same of upstream's."""
LAYERS = dict(
    gnn='MultiheadAttention',
    temp_gnn='MultiheadAttention',
    deformable='DeformableFeatureAggregation',
    refine='SparseBox3DRefinementModule',
)
"""Kind of an operation -> class of upstream of its layer, if the graphs compute its `forward`."""
FUNCTIONS = dict(Sparse4D=('feature_maps_format',), InstanceBank=('topk',))
"""Class of upstream -> functions that its module uses."""
SAMPLER, KERNEL = 'DAF', 'DeformableAggregationFunction'
"""Name by which upstream's aggregation calls the function that samples, and the class that this runs."""


def is_ours(model: nn.Module) -> bool:
    """Return whether the head is this package's or derived from it."""
    return isinstance(model.head, head.Sparse4DHead)


def replaced(model: nn.Module) -> Iterator[Replaced]:
    """Yield, for each part of a live model, its methods that graphs and runtime compute by other code.

    A proof names those of them that the user has changed. Parts are known by their place in the model,
    whatever the user calls their classes.
    """
    live_head = model.head
    instance_bank = live_head.instance_bank
    parts = {
        model: 'Sparse4D',
        live_head: 'Sparse4DHead',
        live_head.decoder: 'SparseBox3DDecoder',
        instance_bank: 'InstanceBank',
        getattr(instance_bank, 'anchor_handler', None): 'SparseBox3DKeyPointsGenerator',
        live_head.anchor_encoder: 'SparseBox3DEncoder',
    }
    if hasattr(model, 'grid_mask'):  # of upstream
        parts[model.grid_mask] = 'GridMask'
    for kind, layer in zip(live_head.operation_order, live_head.layers, strict=True):
        if kind in LAYERS:
            parts[layer] = LAYERS[kind]
        if kind == 'deformable':
            parts[layer.kps_generator] = 'SparseBox3DKeyPointsGenerator'
    yield from replaced_parts(parts, is_ours(model), FOLLOWED, UPSTREAM, FUNCTIONS)
    for module in {
        sys.modules[type(layer).__module__] for layer in parts if parts[layer] == LAYERS['deformable']
    }:
        sampler = getattr(module, SAMPLER, None)
        if sampler is None:  # ours, or upstream without its extension
            continue
        yield Replaced(module, f'functions of {LAYERS["deformable"]}', (SAMPLER,))
        if kernel := getattr(sys.modules[sampler.__module__], KERNEL, None):
            yield Replaced(kernel, KERNEL, ('forward',))
