"""The `model` section of SparseDrive's configs, at test time: they differ in the backbone and in sizes."""

from typing import Any

from projects.configs.sparse4d_model import FIXED_POINTS, R50

HEIGHTS = (0, 0.5, -0.5, 1, -1)
"""Key points of a line, metres from the ground."""
REFINE = ['gnn', 'norm', 'deformable', 'ffn', 'norm', 'refine']
PLAN = ['temp_gnn', 'gnn', 'norm', 'cross_gnn', 'norm', 'ffn', 'norm']


def sparsedrive(
    backbone: dict[str, Any] = R50,
    in_channels: tuple[int, ...] = (256, 512, 1024, 2048),
    channels: int = 256,
    groups: int = 8,
    encoder: tuple[int, ...] = (128, 32, 32, 64),
    layers: int = 6,
    plan_layers: int = 3,
    instances: tuple[int, int] = (900, 600),
    lines: tuple[int, int] = (100, 33),
    chosen: tuple[int, int] = (50, 10),
    boxes: int = 300,
    learned_points: tuple[int, int] = (6, 3),
    last_map: tuple[float, float] = (8, 22),
) -> dict[str, Any]:
    """Return the `model` section.

    Args:
        backbone: its config.
        in_channels: channels of the backbone's levels.
        channels: number of channels of features and instances.
        groups: of channels, and heads of the attentions.
        encoder: channels of the embeddings of place, sizes, yaw and velocity.
        layers, plan_layers: refinements of boxes and lines, and repetitions before the plan.
        instances, lines: number in a frame, and kept ones of the last frame among them.
        chosen: instances and lines that the plan attends to.
        boxes: most boxes of a frame.
        learned_points: key points besides the fixed ones, of boxes and of lines.
        last_map: height and width of the last feature map.
    """

    def attention(kind: str, factor: int) -> dict[str, Any]:
        return dict(type=kind, embed_dims=factor * channels, num_heads=groups, batch_first=True, dropout=0.1)

    def ffn(inputs: int, inner: int) -> dict[str, Any]:
        return dict(
            type='AsymmetricFFN',
            in_channels=inputs * channels,
            pre_norm=dict(type='LN'),
            embed_dims=channels,
            feedforward_channels=inner * channels,
            num_fcs=2,
            act_cfg=dict(type='ReLU', inplace=True),
        )

    def head(
        decoupled: bool, counts: tuple[int, int], handler: str, points: dict[str, Any]
    ) -> dict[str, Any]:
        attend = attention('MultiheadFlashAttention', 2 if decoupled else 1)
        return dict(
            type='Sparse4DHead',
            decouple_attn=decoupled,
            num_single_frame_decoder=1,
            operation_order=(REFINE + ['temp_gnn', *REFINE] * (layers - 1))[2 * decoupled :],
            instance_bank=dict(
                type='InstanceBank',
                num_anchor=counts[0],
                embed_dims=channels,
                anchor=f'data/kmeans/kmeans_{"det" if decoupled else "map"}_{counts[0]}.npy',
                anchor_handler=dict(type=handler),
                num_temp_instances=counts[1],
                confidence_decay=0.6,
            ),
            temp_graph_model=attend,
            graph_model=attend,
            norm_layer=dict(type='LN', normalized_shape=channels),
            ffn=ffn(2, 4),
            deformable_model=dict(
                type='DeformableFeatureAggregation',
                embed_dims=channels,
                num_groups=groups,
                num_levels=len(in_channels),
                num_cams=6,
                use_deformable_func=True,
                use_camera_embed=True,
                residual_mode='cat',
                kps_generator=dict(points, type=handler),
            ),
        )

    det_head = dict(
        head(
            True,
            instances,
            'SparseBox3DKeyPointsGenerator',
            dict(num_learnable_pts=learned_points[0], fix_scale=FIXED_POINTS),
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
        refine_layer=dict(
            type='SparseBox3DRefinementModule',
            embed_dims=channels,
            num_cls=10,
            refine_yaw=True,
            with_quality_estimation=True,
        ),
        decoder=dict(type='SparseBox3DDecoder', num_output=boxes),
    )
    of_lines = dict(
        embed_dims=channels,
        num_sample=20,
        num_learnable_pts=learned_points[1],
        fix_height=HEIGHTS,
        ground_height=-1.84023,
    )
    map_head = dict(
        head(False, lines, 'SparsePoint3DKeyPointsGenerator', of_lines),
        anchor_encoder=dict(type='SparsePoint3DEncoder', embed_dims=channels, num_sample=20),
        refine_layer=dict(
            type='SparsePoint3DRefinementModule', embed_dims=channels, num_sample=20, num_cls=3
        ),
        decoder=dict(type='SparsePoint3DDecoder'),
    )
    modes = dict(fut_ts=12, fut_mode=6, ego_fut_ts=6, ego_fut_mode=6)
    motion_plan_head = dict(
        type='MotionPlanningHead',
        **modes,
        motion_anchor='data/kmeans/kmeans_motion_6.npy',
        plan_anchor='data/kmeans/kmeans_plan_6.npy',
        embed_dims=channels,
        decouple_attn=True,
        instance_queue=dict(
            type='InstanceQueue',
            embed_dims=channels,
            queue_length=4,
            tracking_threshold=0.2,
            feature_map_scale=last_map,
        ),
        operation_order=[*PLAN * plan_layers, 'refine'],
        temp_graph_model=attention('MultiheadAttention', 2),
        graph_model=attention('MultiheadFlashAttention', 2),
        cross_graph_model=attention('MultiheadFlashAttention', 1),
        norm_layer=dict(type='LN', normalized_shape=channels),
        ffn=ffn(1, 2),
        refine_layer=dict(type='MotionPlanningRefinementModule', embed_dims=channels, **modes),
        motion_decoder=dict(type='SparseBox3DMotionDecoder'),
        planning_decoder=dict(
            type='HierarchicalPlanningDecoder', ego_fut_ts=6, ego_fut_mode=6, use_rescore=True
        ),
        num_det=chosen[0],
        num_map=chosen[1],
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
    return dict(
        type='SparseDrive',
        use_deformable_func=True,
        img_backbone=backbone,
        img_neck=neck,
        head=dict(
            type='SparseDriveHead',
            task_config=dict(with_det=True, with_map=True, with_motion_plan=True),
            det_head=det_head,
            map_head=map_head,
            motion_plan_head=motion_plan_head,
        ),
    )
