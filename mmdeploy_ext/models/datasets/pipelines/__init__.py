"""Pipeline steps that mmdet3d 1.0.0rc6 lacks, under StreamPETR's and BEVFusion's names."""

from .augmentation import GlobalRotScaleTransImage, ResizeCropFlipRotImage
from .fusion import ImageAug3D, ImageNormalize
from .lidar_aug import FoldHeading, LidarAugMatrix
from .multi_view_image import NormalizeMultiviewImage, PadMultiViewImage, PETRFormatBundle3D

__all__ = [
    'FoldHeading', 'GlobalRotScaleTransImage', 'ImageAug3D', 'ImageNormalize', 'LidarAugMatrix',
    'NormalizeMultiviewImage', 'PETRFormatBundle3D', 'PadMultiViewImage', 'ResizeCropFlipRotImage',
]  # fmt: skip
