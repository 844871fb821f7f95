"""Files of BEVDet's TensorRT converter and of bevdet-tensorrt-cpp as streams, their plug-ins in numpy.

bevdet_vendor is a copy of bevdet-tensorrt-cpp. Its plug-in `Preprocess` takes pictures as they were taken.
The pictures of a frame are prepared already, so the loop makes the pictures whose nearest pixels are the
prepared ones.

Source: LCH1238/bevdet-tensorrt-cpp e6e2cff, autowarefoundation/bevdet_vendor c93c876, src/bevdet.cpp (order,
state and formulas; facts, no code).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.bevdet.runtime import VIEW, BevDetOnnx, cell_motion
from mm2onnx_driving.common.runtime.lift_splat import camera_poses
from mm2onnx_driving.plugin_bevdet import PoolLoop, network_size, packed, sampled_places

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mmdeploy_ext.runtime.frames import Frame, StreamState
    from mmdeploy_ext.spec.preparation import MultiViewRule


# ---- BEVDet's converter


class PoolOnnx(PoolLoop, BevDetOnnx):
    """The file with the plug-in."""

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        outputs = super().run(frame, memory)
        names = self.metadata.postprocess.output_names
        return dict(zip(names, outputs.values(), strict=True))


# ---- bevdet-tensorrt-cpp


FILE, PRESENT = 'bevdet_one_lt_d', 'curr_bevfeat'
"""Name of the file, and of its output that the memory keeps."""


def grey_levels(images: np.ndarray, rule: MultiViewRule) -> np.ndarray:
    """Return normalised pictures (N, 3, H, W) as whole grey levels, uint8."""
    mean, std = (np.array(values)[:, None, None] for values in (rule.mean, rule.std))
    return np.rint(images * std + mean).clip(0, 255).astype(np.uint8)


def normalised(levels: np.ndarray, rule: MultiViewRule) -> np.ndarray:
    """Return grey levels (N, 3, H, W) as the network takes them, float32."""
    mean, std = (np.float32(values)[:, None, None] for values in (rule.mean, rule.std))
    return (levels.astype(np.float32) - mean) / std


def picture_places(rule: MultiViewRule) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of a picture as taken that `Preprocess` reads."""
    axes = zip(rule.source, rule.crop, strict=True)
    rows, columns = (
        sampled_places(network_size(source, crop, rule.scale), source, crop, rule.scale)
        for source, crop in axes
    )
    return rows, columns


def camera_vectors(rule: MultiViewRule, sensor2keyego: np.ndarray, intrinsics: np.ndarray) -> np.ndarray:
    """Return the vectors (N, 27) float32 of cameras.

    Args:
        rule: has resize and crop, the same for all cameras.
        sensor2keyego: (N, 4, 4), camera to key ego.
        intrinsics: (N, 3, 3), camera to picture as taken.
    """
    crop, count = rule.crop_matrix(), len(intrinsics)
    numbers = [intrinsics[:, 0, 0], intrinsics[:, 1, 1], intrinsics[:, 0, 2], intrinsics[:, 1, 2]]
    resize = [*crop[0], *crop[1], 1.0, 0.0, 0.0, 1.0, 1.0]  # then the unit matrix of an augmentation
    poses = sensor2keyego[:, :3].reshape(count, -1)
    return np.concatenate([np.stack(numbers, 1), np.tile(resize, (count, 1)), poses], 1).astype(np.float32)


class CppOnnx(PoolOnnx):
    """The file with the program's inputs; a scene begins with another token alone."""

    files, gap_s = (FILE,), None

    def prepared_shape(self) -> tuple[int, ...]:
        return self.rule.num_cameras, 3, *self.rule.input_size

    def feeds_of(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        feeds, rule = BevDetOnnx.feeds_of(self, frame, memory), self.rule
        rows, columns = picture_places(rule)
        pictures = np.zeros((len(frame.images), 3, *rule.source), np.uint8)
        pictures[:, :, rows[:, None], columns] = grey_levels(frame.images, rule)
        return dict(
            images=packed(pictures),
            mean=np.float32(rule.mean),
            std=np.float32(rule.std),
            cam_params=camera_vectors(rule, feeds['sensor2keyego'], feeds['intrinsics'])[None],
            **self.rig_tables(feeds),
            adj_feats=feeds['prev_bev'][None],
            transforms=self.transforms(frame, memory)[None],
            flag=np.int32([[memory is not None]]),
        )

    def transforms(self, frame: Frame, memory: StreamState | None) -> np.ndarray:
        """Return the motion (A, 6) float32, from a cell (column, row, 1) to its source cell of each slot."""
        present, kept = camera_poses(frame)[0], self.moved_memory(frame, memory)['camera2ego']
        slots = [cell_motion(self.metadata.postprocess, present, other)[:2].ravel() for other in kept]
        return np.stack(slots).astype(np.float32)

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        outputs = BevDetOnnx.run(self, frame, memory)
        return {VIEW if name == PRESENT else name: value for name, value in outputs.items()}

    def next_memory(
        self, frame: Frame, memory: StreamState | None, outputs: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Return the slots; the first frame of a scene fills all of them."""
        if memory is not None:
            return super().next_memory(frame, memory, outputs)
        count = self.metadata.postprocess.adjacent
        newest = dict(views=outputs[VIEW], exists=np.ones(1, np.float32), camera2ego=camera_poses(frame)[:1])
        return {name: np.repeat(rows, count, 0) for name, rows in newest.items()}

    def memory_shapes(self) -> dict[str, tuple[int, ...]]:
        views = tuple(self.graphs[FILE].spec.tensor('adj_feats').axes[1:])
        return dict(views=views, exists=views[:1], camera2ego=(views[0], 4, 4))
