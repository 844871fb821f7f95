"""SparseEnd2End's files of Sparse4D as a stream: a backbone, and heads of a first frame and of the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mm2onnx_driving.sparse4d.runtime import Sparse4DOnnx
from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.base.typed_json import parse_json

if TYPE_CHECKING:
    from mm2onnx_driving.sparse4d.memory import TemporalInputs
    from mmdeploy_ext.runtime.exported import Paths
    from mmdeploy_ext.runtime.frames import Frame

BACKBONE, FIRST, NEXT = FILES = ('sparse4dbackbone', 'sparse4dhead1st', 'sparse4dhead2nd')
CONSTANTS = 'sparse4dconstants.json'
"""File of the heads' constant inputs, by name."""
CONSTANT_INPUTS = ('instance_feature', 'anchor', 'spatial_shapes', 'level_start_index')


class SparseEnd2EndOnnx(Sparse4DOnnx):
    """The three files; `constants` are the heads' fixed inputs."""

    files, parts = FILES, ('backbone', 'first head', 'next head')

    def __init__(self, paths: Paths, **options: Any) -> None:
        super().__init__(paths, **options)
        head = self.graphs[NEXT]
        path = Path(head.backend.path).with_name(CONSTANTS)
        try:
            content = parse_json(path.read_text(encoding='utf-8'))
            self.constants = {
                tensor.name: np.array(content[tensor.name], tensor.dtype).reshape(tensor.axes)
                for tensor in map(head.spec.tensor, CONSTANT_INPUTS)
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(
                f'{path}: has no valid constants of these files ({error}); export them again'
            ) from error

    def infer(self, frame: Frame, inputs: TemporalInputs) -> dict[str, np.ndarray]:
        features = self.graphs[BACKBONE].run(dict(img=frame.images[None]))
        height, width = self.image_shape[2:]
        feeds = dict(
            self.constants,
            time_interval=inputs.time_interval,
            image_wh=np.tile(np.float32([width, height]), (1, self.num_cameras, 1)),
            lidar2img=frame.lidar2img[None].astype(np.float32),
        )
        if not inputs.exists:
            ids = dict(pred_track_id=np.full_like(inputs.track_id, -1, np.int32))
            return features | ids | self.graphs[FIRST].run(features | feeds)
        feeds |= dict(
            temp_instance_feature=inputs.feature,
            temp_anchor=inputs.anchor,
            mask=inputs.mask.astype(np.int32),
            track_id=inputs.track_id.astype(np.int32),
        )
        return features | self.graphs[NEXT].run(features | feeds)
