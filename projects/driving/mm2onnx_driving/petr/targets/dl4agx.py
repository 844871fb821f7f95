"""DL4AGX's graphs of PETR and PETRv2 as a stream, with the caller's computations.

Glossary: N cameras, C channels, h, w feature map.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mm2onnx_driving.petr.runtime import EMBEDDING, PetrOnnx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mm2onnx_driving.petr.runtime import Arrays
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import Frame, StreamState

BOUND_NAMES = {name: f'out.{name}' for name in PREDICTIONS}
"""Output of the portable head -> its name in DL4AGX."""
BOUND_POSITIONS, BOUND_TIME = 'img_metas.0[coords_position_embeding]', 'img_metas.0[mean_time_stamp]'
"""Inputs of DL4AGX's head that its caller computes."""


def bound_files(frames: int) -> tuple[str, str, str]:
    """Return the file names for PETR (`frames` 1) or PETRv2 (2)."""
    return f'PETRv{frames}.extract_feat', f'PETRv{frames}.pts_bbox_head.forward', EMBEDDING


def bound_note(frames: int) -> str:
    note = 'contract dl4agx: run position_embedding.onnx, whose weights are not in the two graphs, '
    if frames == 1:
        return f'{note}whenever calibration, resize or crop changes'
    return (
        f'{note}for EVERY frame: the matrices of the previous frame change with the motion of the car, '
        'and mean_time_stamp with the time gap. Values that are loaded once (v2_coords_pe.bin, '
        'v2_mean_time_stamp.bin) belong to another frame, and velocities are wrong by the ratio of the '
        'gaps'
    )


class PetrBound(PetrOnnx):
    def __init__(self, paths: Paths, frames: int = 1, **options: Any) -> None:
        features, head, positions = bound_files(frames)
        # the order in which a frame goes through them; results are the head's
        self.files = features, positions, head
        super().__init__(paths, **options)
        self.further_maps: tuple[np.ndarray, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        return (bound_note(self.frames),)

    def features(self, frame: Frame, memory: StreamState | None) -> np.ndarray:
        graph, last_maps = self.graphs[self.files[0]], ()
        if memory is not None and self.frames > 1:
            last_maps = memory.tensors['img_feats'], *self.further_maps
        feeds = dict(img=frame.images)
        for level, name in enumerate(graph.spec.input_names[1:]):  # prev.0, prev.1
            # no layer of the head reads further levels, which a state does not have
            axes = graph.spec.tensor(name).axes
            feeds[name] = last_maps[level] if level < len(last_maps) else np.zeros(axes, np.float32)
        outputs, count = graph.run(feeds), self.num_cameras
        # of PETR the cameras are on the first axis, of PETRv2 behind the batch
        maps = [
            np.ascontiguousarray(level.reshape(1, -1, *level.shape[-3:])[:, :count])
            for level in (outputs[name] for name in graph.spec.output_names)
        ]
        self.further_maps = tuple(maps[1:])
        return maps[0]

    def head_outputs(self, parts: Sequence[Arrays], gap: np.float32 | None) -> dict[str, np.ndarray]:
        feeds = {
            'mlvl_feats.0': np.concatenate([part['img_feats'] for part in parts], 1),
            BOUND_POSITIONS: np.concatenate([part['pos_embed'] for part in parts], 1),
        }
        if gap is not None:
            feeds[BOUND_TIME] = np.array([gap], np.float32)
        outputs = self.graphs[self.files[-1]].run(feeds)
        return {name: outputs[bound] for name, bound in BOUND_NAMES.items()}


petrv2_bound = functools.partial(PetrBound, frames=2)
