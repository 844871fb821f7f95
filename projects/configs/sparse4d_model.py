"""The `model` section of Sparse4D v3's configs, at test time: they differ in the backbone and in sizes."""

from typing import Any

R50 = dict(
    type='ResNet',
    depth=50,
    num_stages=4,
    out_indices=(0, 1, 2, 3),
    norm_cfg=dict(type='BN', requires_grad=True),
    style='pytorch',
)
FIXED_POINTS = [
    [0, 0, 0],
    [0.45, 0, 0],
    [-0.45, 0, 0],
    [0, 0.45, 0],
    [0, -0.45, 0],
    [0, 0, 0.45],
    [0, 0, -0.45],
]
"""Fixed key points, in shares of length, width and height from the centre."""
ATTEND = ['temp_gnn', 'gnn', 'norm']
REFINE = ['deformable', 'ffn', 'norm', 'refine']


def sparse4d(
    backbone: dict[str, Any] = R50,
    in_channels: tuple[int, ...] = (256, 512, 1024, 2048),
    channels: int = 256,
    groups: int = 8,
    encoder: tuple[int, ...] = (128, 32, 32, 64),
    layers: int = 6,
    instances: int = 900,
    kept: int = 600,
    boxes: int = 300,
    learned_points: int = 6,
) -> dict[str, Any]:
    """Return the `model` section.

    Args:
        backbone: its config.
        in_channels: channels of the backbone's levels.
        channels: number of channels of features and instances.
        groups: of channels, and heads of the attentions.
        encoder: channels of the embeddings of place, sizes, yaw and velocity.
        layers: refinements.
        instances: number of instances of a frame.
        kept: instances of the last frame among them.
        boxes: most boxes of a frame.
        learned_points: key points besides the fixed ones.
    """
    attention = dict(
        type='MultiheadAttention', embed_dims=2 * channels, num_heads=groups, batch_first=True, dropout=0.1
    )
    points = dict(
        type='SparseBox3DKeyPointsGenerator', num_learnable_pts=learned_points, fix_scale=FIXED_POINTS
    )
    head = dict(
        type='Sparse4DHead',
        decouple_attn=True,
        num_single_frame_decoder=1,
        operation_order=REFINE + (ATTEND + REFINE) * (layers - 1),
        instance_bank=dict(
            type='InstanceBank',
            num_anchor=instances,
            embed_dims=channels,
            anchor='nuscenes_kmeans900.npy',
            anchor_handler=dict(type='SparseBox3DKeyPointsGenerator'),
            num_temp_instances=kept,
            confidence_decay=0.6,
            feat_grad=False,
        ),
        anchor_encoder=dict(
            type='SparseBox3DEncoder',
            vel_dims=3,
            embed_dims=list(encoder),
            mode='cat',
            output_fc=False,
            in_loops=1,
            out_loops=4,
        ),
        temp_graph_model=attention,
        graph_model=attention,
        norm_layer=dict(type='LN', normalized_shape=channels),
        ffn=dict(
            type='AsymmetricFFN',
            in_channels=2 * channels,
            pre_norm=dict(type='LN'),
            embed_dims=channels,
            feedforward_channels=4 * channels,
            num_fcs=2,
            act_cfg=dict(type='ReLU', inplace=True),
        ),
        deformable_model=dict(
            type='DeformableFeatureAggregation',
            embed_dims=channels,
            num_groups=groups,
            num_levels=len(in_channels),
            num_cams=6,
            use_deformable_func=True,
            use_camera_embed=True,
            residual_mode='cat',
            kps_generator=points,
        ),
        refine_layer=dict(
            type='SparseBox3DRefinementModule',
            embed_dims=channels,
            num_cls=10,
            refine_yaw=True,
            with_quality_estimation=True,
        ),
        decoder=dict(type='SparseBox3DDecoder', num_output=boxes),
    )
    neck = dict(
        type='FPN',
        num_outs=len(in_channels),
        start_level=0,
        out_channels=channels,
        add_extra_convs='on_output',
        relu_before_extra_convs=True,
        in_channels=list(in_channels),
    )
    depth = dict(type='DenseDepthNet', embed_dims=channels, num_depth_layers=min(3, len(in_channels)))
    return dict(
        type='Sparse4D',
        use_deformable_func=True,
        img_backbone=backbone,
        img_neck=neck,
        depth_branch=depth,
        head=head,
    )
