"""ImVoxelNet as mmdet3d runs it, unpatched: what a proof compares the graphs with.

Features are those of the nearest cell of a map. Where a place is half-way between two cells, up to the
rounding of float32, engines that add up a projection in another order take the other cell; of 642,816 voxels
of the config for KITTI 2 to 5 were (measured with three cameras). mmdet3d with its projection added up in
each of `ORDERS` shows what that changes.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmdet3d.core.bbox import Box3DMode, LiDARInstance3DBoxes
from mmdet3d.models.fusion_layers import point_fusion

from mmdeploy_ext.contract.spec import DEFAULT_RTOL
from mmdeploy_ext.core.arrays import ArrayDistance
from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.families.imvoxelnet.graphs import facts_of
from mmdeploy_ext.families.imvoxelnet.runtime import PictureDetections3D
from mmdeploy_ext.families.imvoxelnet.samples import feeds
from mmdeploy_ext.families.parts.anchor_heads import flat_outputs
from mmdeploy_ext.families.parts.mmdet_reference import batch_of, metas_of
from mmdeploy_ext.families.parts.samples import detections as detections_of
from mmdeploy_ext.families.reference import ImageReference
from mmdeploy_ext.preprocess.pictures import PreparedImage


def metas(images: Sequence[PreparedImage]) -> list[dict[str, Any]]:
    """Return mmdet3d's `img_metas` of pictures, with the cameras of the pictures on disk.

    ShapeError: as of `samples.feeds`.
    """
    batch = metas_of(images)
    for meta, image, fed in zip(batch, images, feeds(images, rescale=True)['lidar2img'], strict=True):
        meta |= of_camera(fed if image.cam2img is None else camera_on_disk(image))
    return batch


def camera_on_disk(image: PreparedImage) -> np.ndarray:
    """Return the camera (4, 4) float32 of a picture on disk, which `image` has for the network input.

    A runner undoes resize and padding by other code, see `preprocess.cam2img.original`.
    """
    camera, (top, left) = np.array(image.cam2img, np.float64), image.border
    camera[0] = (camera[0] - left * camera[2]) / image.scale_factor[0]
    camera[1] = (camera[1] - top * camera[2]) / image.scale_factor[1]
    return camera.astype(np.float32)


def of_camera(lidar2img: np.ndarray) -> dict[str, Any]:
    """Return the entries of a meta about a camera (4, 4), and the kind of boxes."""
    return dict(
        box_type_3d=LiDARInstance3DBoxes,
        box_mode_3d=Box3DMode.LIDAR,
        lidar2img=lidar2img,
        flip=False,
    )


class ImVoxelNetReference(ImageReference):
    """mmdet3d's `ImVoxelNet`."""

    def tensors(self, feeds: Mapping[str, np.ndarray], form: str, **_: Any) -> dict[str, np.ndarray]:
        """Return the outputs of the head by name, by mmdet3d's own network, for inputs by name.

        These are the outputs of the form 'raw'; `form` and further options are not read.
        """
        device = next(self.model.parameters()).device
        image = torch.from_numpy(feeds['input'])
        ratios = feeds.get('scale_factor', np.ones((len(image), 4), np.float32))
        size = (*image.shape[2:], 3)
        batch = [
            dict(img_shape=size, pad_shape=size, scale_factor=ratio, **of_camera(camera))
            for ratio, camera in zip(ratios, feeds['lidar2img'], strict=True)
        ]
        with torch.no_grad():
            outputs, _ = self.model.extract_feat(image.to(device), batch)
        names = facts_of(self.model).output_names
        return {name: maps.cpu().numpy() for name, maps in zip(names, flat_outputs(outputs), strict=True)}

    def results(self, images: Sequence[PreparedImage], rescale: bool) -> list[PictureDetections3D]:
        """Return the results of the detector's own test path, in descending order of scores.

        Their camera, to draw them with, is that of the picture on disk with `rescale`, otherwise that of the
        network input. ShapeError: a camera is not finite, or its last row is not 0 0 0 1.
        """
        cameras = feeds(images, rescale)['drawn_camera']
        with torch.no_grad():
            results = self.model(return_loss=False, img=batch_of(self.model, images), img_metas=metas(images))
        pictures = []
        for result, camera in zip(results, cameras, strict=True):
            boxes = detections_of(result)
            rows = tuple(map(tuple, camera.tolist()))
            pictures.append(PictureDetections3D(boxes.boxes, boxes.scores, boxes.labels, camera=rows))
        return pictures

    def expected_tensors(
        self,
        feeds: Mapping[str, np.ndarray],
        outputs: Mapping[str, np.ndarray],
        form: str,
        **_: Any,
    ) -> dict[str, np.ndarray]:
        """Return mmdet3d's outputs, its projection added up as it is, or in one of `ORDERS` that are nearer.

        The orders are tried until the largest error, over the largest value of its tensor, is at most
        `DEFAULT_RTOL`; else the nearest outputs are returned. Nothing is tried if an
        output is missing or of another shape.
        """
        nearest = self.tensors(feeds, form)
        if any(name not in outputs or outputs[name].shape != array.shape for name, array in nearest.items()):
            return nearest  # the comparison states it
        error = _worst_error(outputs, nearest)
        for order in ORDERS:
            if error <= DEFAULT_RTOL:
                break
            with projected_in(order):
                candidate = self.tensors(feeds, 'raw')
            candidate_error = _worst_error(outputs, candidate)
            if candidate_error < error:
                nearest, error = candidate, candidate_error
        return nearest


def _in_pairs(points: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
    """Return the projections (N, 4) of homogeneous points by a camera (4, 4): 1st + 3rd + (2nd + 4th)."""
    first, second, third, fourth = (points[:, None, axis] * camera[:, axis] for axis in range(4))
    return (first + third) + (second + fourth)


def _in_order(points: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
    """Return the same, added up one after the other."""
    first, second, third, fourth = (points[:, None, axis] * camera[:, axis] for axis in range(4))
    return ((first + second) + third) + fourth


def _fused(points: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
    """Return the same by operations that multiply and add with one rounding, as processors have them."""
    total = points[:, None, 0] * camera[:, 0]
    for axis in range(1, 4):
        product = points[:, None, axis].double() * camera[:, axis].double()
        total = (product + total.double()).float()
    return total


ORDERS = (_in_pairs, _in_order, _fused)
"""Orders in which engines add up projections."""


@contextlib.contextmanager
def projected_in(order: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Inside the block mmdet3d adds up the projections of voxels in another order, one of `ORDERS`."""

    def project(points: torch.Tensor, proj_mat: torch.Tensor) -> torch.Tensor:
        homogeneous = torch.cat([points, points.new_ones((len(points), 1))], 1)
        pixels_times_depth = order(homogeneous, proj_mat)
        return pixels_times_depth[:, :2] / pixels_times_depth[:, 2:3]

    with replaced_entry(vars(point_fusion), 'points_cam2img', project):
        yield


def _worst_error(outputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """Return the largest error of all tensors, each as a share of its largest expected value."""
    return max(ArrayDistance(outputs[name], array).max_rel for name, array in expected.items())
