# 300 queries and 128 propagated ones, and a backbone that has seen nuImages.
_base_ = ['./stream_petr_r50.py']
model = dict(
    img_backbone=dict(
        init_cfg=dict(
            checkpoint='ckpts/cascade_mask_rcnn_r50_fpn_coco-20e_20e_nuim_20201009_124951-40963960.pth',
            prefix='backbone.',
        )
    ),
    pts_bbox_head=dict(num_query=300, memory_len=512, topk_proposals=128, num_propagated=128),
)
