_base_ = ['./stream_petr_r50_704_bs2_seq_428q_nui_60e.py']
attention = dict(embed_dims=256, num_heads=8, dropout=0.1)
model = dict(
    pts_bbox_head=dict(
        transformer=dict(
            decoder=dict(
                transformerlayers=dict(
                    attn_cfgs=[
                        dict(type='MultiheadAttention', **attention),
                        dict(type='PETRMultiheadFlashAttention', **attention),
                    ]
                )
            )
        )
    )
)
