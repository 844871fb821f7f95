"""Pipeline steps that mmdet3d 1.0.0rc6 lacks, under StreamPETR's names."""

from .augmentation import GlobalRotScaleTransImage, ResizeCropFlipRotImage
from .formatting import PETRFormatBundle3D
from .multi_view_image import NormalizeMultiviewImage, PadMultiViewImage

__all__ = [
    'GlobalRotScaleTransImage',
    'NormalizeMultiviewImage',
    'PETRFormatBundle3D',
    'PadMultiViewImage',
    'ResizeCropFlipRotImage',
]
