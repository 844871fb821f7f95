# ATSS R50 on COCO in data/coco, in the layout that OpenMMLab documents (mmdet itself says where).
_base_ = ['./atss.py']
