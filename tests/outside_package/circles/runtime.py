import dataclasses

import cv2
import numpy as np

from mmdeploy_ext.contract.facts import Count, Facts, Stride
from mmdeploy_ext.runtime.detections import Scored
from mmdeploy_ext.runtime.draw import class_colour


@dataclasses.dataclass(frozen=True)
class CircleFacts(Facts):
    count: Count
    stride: Stride


@dataclasses.dataclass(frozen=True)
class Circles(Scored):
    circles: np.ndarray  # (n, 3) float32: x, y, r in pixels
    scores: np.ndarray
    labels: np.ndarray

    def scaled(self, ratios):
        return dataclasses.replace(self, circles=(self.circles / ratios[:3]).astype(np.float32))

    def place(self, index):
        return dict(circle=self.circles[index].tolist())


def detections(metadata, outputs, feeds):
    facts, results = metadata.postprocess, []
    for index, (heat, radius) in enumerate(zip(outputs['heat'], outputs['radius'], strict=True)):
        cells = np.argsort(-heat, axis=None, kind='stable')[: facts.count]
        labels, y, x = np.unravel_index(cells, heat.shape)
        pixels = np.exp(radius[0, y, x]) if metadata.options['radius'] == 'log' else radius[0, y, x]
        places = np.stack([x * facts.stride, y * facts.stride, pixels], -1).astype(np.float32)
        circles = Circles(places, heat.ravel()[cells], labels)
        results.append(circles.scaled(feeds['scale_factor'][index]) if 'scale_factor' in feeds else circles)
    return results


def draw(image_bgr, results, classes, score_thr, marked=None):
    picture = image_bgr.copy()
    for (x, y, radius), label in zip(results.circles, results.labels, strict=True):
        cv2.circle(picture, (round(x), round(y)), max(1, round(radius)), class_colour(int(label)))
    return picture
