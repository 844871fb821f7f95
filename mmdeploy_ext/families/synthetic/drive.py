"""A drive for a proof without a data set: cameras, textured surroundings, ego motion, scene changes."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.geometry import invert_pose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mmdeploy_ext.spec.preparation import MultiViewRule

NUSCENES_SIZE = 900, 1600
"""Height, width in pixels of the intrinsics' pictures."""
NUSCENES_CAMERAS = (
    # yaw from straight ahead (degrees, to the left), focal length, principal point (pixels)
    (0.0, 1266.4, 816.3, 491.5),
    (-56.0, 1260.8, 807.9, 495.3),
    (55.0, 1272.6, 826.6, 479.8),
    (180.0, 809.2, 829.2, 481.8),
    (108.0, 1256.7, 792.1, 492.8),
    (-110.0, 1259.5, 807.3, 501.2),
)
"""FRONT, FRONT_RIGHT, FRONT_LEFT, BACK, BACK_LEFT, BACK_RIGHT, rounded. Source: calibration of nuScenes."""
MEAN_RGB = 123.675, 116.28, 103.53
STD_RGB = 58.395, 57.12, 57.375
"""Mean and deviation of ImageNet's channels in 0..255."""
CAMERA_BELOW_M = 0.33
"""Metres of the cameras below the LiDAR."""
CAMERA_OUT_M = 0.8
"""Metres of the cameras from the LiDAR along their view."""
PANORAMA = 192, 1536
"""Height, width in pixels of a scene's surroundings, once around."""
BLOBS = 24
"""Coloured rectangles that drift through a scene."""
SCENE_PAUSE_S = 10.0
"""Seconds between two scenes."""


@dataclasses.dataclass(frozen=True)
class SyntheticDrive:
    """A synthetic drive; frames are made one after the other.

    Attributes:
        size: (H, W) pixels of the network input.
        cameras: N; six are the nuScenes rig, else spread evenly.
        scenes: parts of about equal length; each resets the memory.
        period_s: time between frames.
        jump_s: one gap within the first scene, too short to reset a memory.
        origin_m: (x, y) of the first frame, near 0: a float32 memory in global coordinates moves boxes by
            several mm at 1600 m.
        exact_poses: float64 poses; else rounded to float32 as by data loaders.
        start_s: absolute time of the first frame.
        mean, std, to_rgb: normalisation, in the network's order of channels.
    """

    frames: int = 100
    size: tuple[int, int] = (256, 704)
    cameras: int = 6
    seed: int = 0
    scenes: int = 3
    period_s: float = 0.5
    jump_s: float = 1.3
    origin_m: tuple[float, float] = (0.0, 0.0)
    exact_poses: bool = False
    start_s: float = 1.53e9
    mean: tuple[float, float, float] = MEAN_RGB
    std: tuple[float, float, float] = STD_RGB
    to_rgb: bool = True

    def __iter__(self) -> Iterator[Frame]:
        intrinsics, lidar2img, yaws = rig(self.cameras, self.size)
        poses, times = self.poses(), self.times()
        for index in range(self.frames):
            scene = self.scene(index)
            if scene != self.scene(index - 1):
                surroundings, first = Surroundings(self.seed * 1009 + scene), index
            pictures = surroundings.pictures(self.size, yaws, poses[index], index - first)
            yield Frame(
                images=self.normalised(pictures),
                lidar2img=lidar2img,
                intrinsics=intrinsics,
                ego_pose=poses[index],
                timestamp_s=times[index],
                scene_token=f'synthetic scene {scene}',
                name=f'scene {scene} frame {index - first}',
                ego_pose_inv=invert_pose(poses[index]),
                command=np.eye(3)[index % 3],
            )

    def scene(self, index: int) -> int:
        return min(index * self.scenes // max(self.frames, 1), self.scenes - 1) if index >= 0 else -1

    def times(self) -> list[float]:
        gaps = np.full(self.frames, self.period_s)
        firsts = [index for index in range(self.frames) if self.scene(index) != self.scene(index - 1)]
        gaps[firsts] = SCENE_PAUSE_S
        end = [*firsts[1:], self.frames][0]
        if self.jump_s and 0 < (end + 1) // 2 < end:
            gaps[(end + 1) // 2] = self.jump_s
        return (self.start_s + np.cumsum(gaps) - gaps[0]).tolist()

    def poses(self) -> np.ndarray:
        """Return the poses, LiDAR to global (frames, 4, 4) float64."""
        rng = np.random.default_rng([self.seed, 1])
        phases, step = rng.uniform(0, 2 * math.pi, 5), np.arange(self.frames) * self.period_s
        yaw_rate = 0.25 * np.sin(0.21 * step + phases[0]) + 0.1 * np.sin(0.55 * step + phases[1])
        speed = 6.0 + 4.0 * np.sin(0.13 * step + phases[2])
        yaw = phases[3] + np.cumsum(yaw_rate) * self.period_s
        along = np.stack([-np.sin(yaw), np.cos(yaw)], 1) * (speed * self.period_s)[:, None]
        place = np.cumsum(along, 0) - along[:1]
        pitch, roll = 0.01 * np.sin(0.9 * step + phases[4]), 0.015 * np.sin(0.7 * step + phases[0])
        poses = np.stack([_rotation(*angles) for angles in zip(yaw, pitch, roll, strict=True)])
        poses[:, :2, 3] = place + self.origin_m
        poses[:, 2, 3] = 1.84 + 0.05 * np.sin(0.4 * step)
        return poses if self.exact_poses else poses.astype(np.float32).astype(np.float64)

    def __len__(self) -> int:
        return self.frames

    def normalised(self, pictures_bgr: np.ndarray) -> np.ndarray:
        """Return pictures (N, H, W, 3) uint8 BGR normalised, (N, 3, H, W) float32."""
        colours = pictures_bgr[..., ::-1] if self.to_rgb else pictures_bgr
        values = (colours.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


def synthetic_drive(frames: int, rule: MultiViewRule, **options: Any) -> SyntheticDrive:
    colours = dict(mean=tuple(rule.mean), std=tuple(rule.std), to_rgb=rule.to_rgb)
    return SyntheticDrive(frames, rule.input_size, rule.num_cameras, **colours, **options)


class Surroundings:
    """Surroundings of a scene: a panorama of noise at several scales, and drifting blobs."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        height, width = PANORAMA
        layers = np.zeros((height, width, 3), np.float32)
        for cells, strength in ((6, 60), (24, 40), (96, 30)):
            noise = rng.normal(0, strength, (cells // 3, cells * 2, 3)).astype(np.float32)
            noise = np.concatenate([noise, noise[:, :1]], 1)
            layers += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        self.panorama = np.clip(layers + rng.uniform(80, 150), 0, 255).astype(np.uint8)
        self.places = rng.uniform((0, 0.45), (1, 0.75), (BLOBS, 2))
        self.drift = rng.uniform(-0.006, 0.006, BLOBS)
        self.sizes = rng.uniform((10, 8), (70, 40), (BLOBS, 2))
        self.colours = rng.integers(0, 256, (BLOBS, 3))
        self.rng = rng

    def pictures(
        self, size: tuple[int, int], yaws: np.ndarray, ego_pose: np.ndarray, step: int
    ) -> np.ndarray:
        """Return each camera's picture (N, H, W, 3) uint8 BGR: a third of the panorama, with new noise.

        Args:
            size: (H, W) pixels.
            yaws: (N,) radians, from straight ahead to the left.
            ego_pose: (4, 4) LiDAR to global.
            step: frames since the scene began.
        """
        height, width = PANORAMA
        around = self.panorama.copy()
        for (x, y), drift, (wide, high), colour in zip(
            self.places, self.drift, self.sizes, self.colours, strict=True
        ):
            x1, y1 = int((x + drift * step) % 1 * width), int(y * height)
            x2, y2 = x1 + int(wide * (1 + 0.01 * step)), y1 + int(high)
            cv2.rectangle(around, (x1, y1), (x2, y2), colour.tolist(), cv2.FILLED)
        heading, third = math.atan2(ego_pose[1, 1], ego_pose[0, 1]), width // 6 * 2
        around = np.concatenate([around, around[:, :third]], 1)  # a third from any column on is a slice
        pictures = np.empty((len(yaws), *size, 3), np.uint8)
        for index, yaw in enumerate(yaws):
            middle = int(-(heading + yaw) / (2 * math.pi) * width)
            first = (middle - third // 2) % width
            view = around[:, first : first + third]
            pictures[index] = cv2.resize(view, size[::-1], interpolation=cv2.INTER_LINEAR)
        noise = self.rng.integers(-6, 7, pictures.shape, dtype=np.int16)
        return np.clip(pictures + noise, 0, 255).astype(np.uint8)


def rig(cameras: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a rig of N cameras for a network input of (H, W) pixels.

    Returns:
        intrinsics (N, 4, 4), lidar2img (N, 4, 4), float64, and yaws (N,) in radians to the left.
    """
    high, wide = NUSCENES_SIZE
    scale = max(size[0] / high, size[1] / wide)
    cut_y, cut_x = high * scale - size[0], (wide * scale - size[1]) / 2
    layout = NUSCENES_CAMERAS
    if cameras != len(layout):
        layout = tuple((360.0 * index / cameras, *layout[0][1:]) for index in range(cameras))
    intrinsics = np.tile(np.eye(4), (cameras, 1, 1))
    extrinsics = np.empty((cameras, 4, 4))
    for index, (degrees, focal, x, y) in enumerate(layout):
        intrinsics[index, [0, 1], [0, 1]] = focal * scale
        intrinsics[index, :2, 2] = x * scale - cut_x, y * scale - cut_y
        # LiDAR (x right, y ahead, z up) to camera (x right, y down, z ahead)
        yaw = math.radians(degrees)
        ahead, down = np.array([-math.sin(yaw), math.cos(yaw), 0.0]), np.array([0.0, 0.0, -1.0])
        turn = np.stack([np.cross(down, ahead), down, ahead])
        extrinsics[index] = np.eye(4)
        extrinsics[index, :3, :3] = turn
        extrinsics[index, :3, 3] = -turn @ (ahead * CAMERA_OUT_M + down * CAMERA_BELOW_M)
    return intrinsics, intrinsics @ extrinsics, np.radians([camera[0] for camera in layout])


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    turn = np.eye(4)
    turn[:3, :3] = (
        np.array([[math.cos(yaw), -math.sin(yaw), 0], [math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
        @ np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
        @ np.array([[math.cos(roll), 0, math.sin(roll)], [0, 1, 0], [-math.sin(roll), 0, math.cos(roll)]])
    )
    return turn
