"""The `model` section of FlashOcc's configs, for tests: BEVDet's with a head of occupancy."""

from collections.abc import Mapping, Sequence
from typing import Any

from projects.configs.bevdet_model import bevdet, head


def flashocc(
    backbone: Mapping[str, Any],
    maps: Sequence[int],
    neck: int = 256,
    channels: int = 64,
    depth_step: float = 0.5,
    widths: Sequence[int] = (128, 256, 512),
    view: int = 256,
    size: tuple[int, int] = (256, 704),
    side: float = 40.0,
    cell: float = 0.4,
    heights: int = 16,
) -> dict[str, Any]:
    """Return the model.

    Args:
        backbone: of the pictures.
        maps: channels of its maps.
        neck: channels of the feature map.
        channels: channels of the view.
        depth_step: metres between depth bins.
        widths: channels of the stages of the view's backbone.
        view: channels of the encoded view.
        size: (H, W) of the network's pictures.
        side: metres from the car to the sides of the view.
        cell: metres of a voxel along x and y.
        heights: number of voxels of a column, from -1 to 5.4 m.
    """
    model = bevdet(backbone, maps, neck, channels, depth_step, size=size, view=view)
    for key in ('pts_bbox_head', 'test_cfg'):
        del model[key]
    grid = dict(x=[-side, side, cell], y=[-side, side, cell], z=[-1, 5.4, 6.4], depth=[1.0, 45.0, depth_step])
    model['img_view_transformer'].update(grid_config=grid, sid=False, collapse_z=True)
    model['img_bev_encoder_backbone']['num_channels'] = list(widths)
    model['img_bev_encoder_neck']['in_channels'] = widths[2] + widths[0]
    of_voxels = dict(
        type='BEVOCCHead2D', in_dim=view, out_dim=view, Dz=heights, num_classes=18, use_predicter=True
    )
    return dict(model, type='BEVDetOCC', occ_head=of_voxels)


def panoptic(model: dict[str, Any], side: float = 40.0, cell: float = 0.4, most: int = 500) -> dict[str, Any]:
    """Return a model of `flashocc` with a head of centres; `most` are decoded."""
    centers = head(model['occ_head']['in_dim'], [-side, -side, -5.0, side, side, 3.0], most=most)
    centers.update(type='Centerness_Head')
    centers['bbox_coder'].update(out_size_factor=4, voxel_size=[cell / 4, cell / 4], score_threshold=0.3)
    model['img_view_transformer'].update(
        type='LSSViewTransformerBEVDepth', depthnet_cfg=dict(use_dcn=False, aspp_mid_channels=96)
    )
    return dict(model, type='BEVDepthPano', aux_centerness_head=centers)
