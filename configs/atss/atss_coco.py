# ATSS R50 on COCO in data/coco, in the layout that OpenMMLab documents.
_base_ = ['./atss.py']
data_root = 'data/coco/'
