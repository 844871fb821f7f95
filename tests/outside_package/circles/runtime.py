"""From what a file gives to circles, without PyTorch."""

import dataclasses

import cv2
import numpy as np

from mmdeploy_ext.runtime.detections import Scored
from mmdeploy_ext.runtime.draw import class_colour


@dataclasses.dataclass(frozen=True)
class Circles(Scored):
    circles: np.ndarray  # (n, 3) float32: x, y, r in pixels
    scores: np.ndarray
    labels: np.ndarray

    def scaled(self, ratios):
        return dataclasses.replace(self, circles=self.circles / ratios[:3])

    def place(self, index):
        return dict(circle=self.circles[index].tolist())


def detections(metadata, outputs, feeds):
    facts, found = metadata.postprocess, []
    for image, (heat, radius) in enumerate(zip(outputs['heat'], outputs['radius'], strict=True)):
        cells = np.argsort(-heat, axis=None, kind='stable')[: facts['count']]
        label, y, x = np.unravel_index(cells, heat.shape)
        pixels = np.exp(radius[0, y, x]) if metadata.options['radius'] == 'log' else radius[0, y, x]
        circles = np.stack([x * facts['stride'], y * facts['stride'], pixels], -1).astype(np.float32)
        scale = feeds['scale_factor'][image, :3] if 'scale_factor' in feeds else np.float32(1)
        found.append(Circles(circles / scale, heat.ravel()[cells], label))
    return found


def draw(image_bgr, found, classes, score_thr, marked=None):
    picture = image_bgr.copy()
    for (x, y, radius), label in zip(found.circles, found.labels, strict=True):
        cv2.circle(
            picture,
            (round(float(x)), round(float(y))),
            max(round(float(radius)), 1),
            class_colour(int(label)),
        )
    return picture
