"""ImVoxelNet as mmdet3d runs it: the reference of a proof.

Half-way between two cells, rounding of float32 decides: 2 to 5 of KITTI's 642,816 voxels differ (measured
with three cameras).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import Box3DMode, LiDARInstance3DBoxes
from mmdet3d.models.fusion_layers import point_fusion

from mmdeploy_ext.base.config import replaced_entry
from mmdeploy_ext.families.common import image_graphs
from mmdeploy_ext.families.common.anchor_heads import flat_outputs
from mmdeploy_ext.families.common.mmdet_reference import batch_of, metas_of
from mmdeploy_ext.families.common.samples import BOX_TYPES, detections_in_1x
from mmdeploy_ext.families.imvoxelnet.graphs import facts_of
from mmdeploy_ext.families.imvoxelnet.runtime import PictureDetections3D
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.families.synthetic.picture_cameras import lidar_camera
from mmdeploy_ext.runtime.preprocess.cam2img import check_projection, original
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage


def original_camera(image: PreparedImage) -> np.ndarray:
    """Return the camera (4, 4) float32 of the picture on disk, or `lidar_camera`."""
    if image.cam2img is None:
        return lidar_camera(image)
    camera = original(image.cam2img, image.to_input).astype(np.float32)
    check_projection(camera, image.ori_shape)
    return camera


def feeds(images: Sequence[PreparedImage], rescale: bool) -> dict[str, np.ndarray]:
    """Return the inputs of pictures of one size, and arrays for the runtime.

    `input` (B, 3, H, W), `lidar2img` (B, 4, 4), `scale_factor` (B, 4) `w h w h`, input / picture on disk, all
    float32; `drawn_camera` (B, 4, 4) float64, of the picture on disk with `rescale`, otherwise of the network
    input.
    """
    cameras = np.stack([original_camera(image) for image in images])
    batch = image_graphs.feeds(images, rescale=True)
    ratios = batch['scale_factor']
    drawn = cameras.astype(np.float64)
    if not rescale:
        drawn[:, :2] *= ratios[:, :2, None]
    return dict(input=batch['input'], scale_factor=ratios, drawn_camera=drawn, lidar2img=cameras)


def metas(images: Sequence[PreparedImage]) -> list[dict[str, Any]]:
    """Return mmdet3d's `img_metas` of pictures, with the cameras of the pictures on disk."""
    batch = metas_of(images)
    for meta, image, fed in zip(batch, images, feeds(images, rescale=True)['lidar2img'], strict=True):
        meta |= of_camera(fed if image.cam2img is None else camera_on_disk(image))
    return batch


def camera_on_disk(image: PreparedImage) -> np.ndarray:
    """Return the camera (4, 4) float32 of a picture on disk."""
    camera, (top, left) = np.array(image.cam2img, np.float64), image.border
    camera[0] = (camera[0] - left * camera[2]) / image.scale_factor[0]
    camera[1] = (camera[1] - top * camera[2]) / image.scale_factor[1]
    return camera.astype(np.float32)


def of_camera(lidar2img: np.ndarray) -> dict[str, Any]:
    """Return a meta's entries of a camera (4, 4), and the kind of boxes."""
    return dict(
        box_type_3d=LiDARInstance3DBoxes,
        box_mode_3d=Box3DMode.LIDAR,
        lidar2img=lidar2img,
        flip=False,
    )


class ImVoxelNetReference(ImageReference):
    def tensors(self, feeds: Mapping[str, np.ndarray], form: str, **_: Any) -> dict[str, np.ndarray]:
        device = next(self.model.parameters()).device
        image = torch.from_numpy(feeds['input'])
        ratios = feeds.get('scale_factor', np.ones((len(image), 4), np.float32))
        size = (*image.shape[2:], 3)
        batch = [
            dict(img_shape=size, pad_shape=size, scale_factor=ratio, **of_camera(camera))
            for ratio, camera in zip(ratios, feeds['lidar2img'], strict=True)
        ]
        with torch.no_grad(), replaced_entry(vars(point_fusion), 'points_cam2img', project_in_pairs):
            outputs, _ = self.model.extract_feat(image.to(device), batch)
        names = facts_of(self.model).output_names
        return {name: maps.cpu().numpy() for name, maps in zip(names, flat_outputs(outputs), strict=True)}

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[PictureDetections3D]:
        cameras = feeds(images, rescale)['drawn_camera']
        with torch.no_grad():
            batch, batch_metas = batch_of(self.model, images), metas(images)
            for meta in batch_metas:
                meta['box_type_3d'] = BOX_TYPES[self.model.box_convention]
            results = self.model(return_loss=False, img=batch, img_metas=batch_metas)
        pictures = []
        for result, camera in zip(results, cameras, strict=True):
            boxes = detections_in_1x(result, self.model.box_convention)
            rows = tuple(map(tuple, camera.tolist()))
            pictures.append(PictureDetections3D(boxes.boxes, boxes.scores, boxes.labels, camera=rows))
        return pictures


def project_in_pairs(points: torch.Tensor, proj_mat: torch.Tensor) -> torch.Tensor:
    """Return pixels (N, 2) of points (N, 3) by a camera (4, 4), summed in the graph's order."""
    x, y, z = (points[:, None, axis] * proj_mat[:, axis] for axis in range(3))
    pixels_times_depth = (x + z) + (y + proj_mat[:, 3])
    return pixels_times_depth[:, :2] / pixels_times_depth[:, 2:3]
