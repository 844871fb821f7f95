# RT-DETR R34vd: as R18vd with four decoder layers.
_base_ = ['./rtdetr_r18vd.py']
model = dict(backbone=dict(depth=34), decoder=dict(num_layers=4))
