"""tensorrt_vad: its three files; the command chooses the plan outside of them.

Unlike the node's, the record of the motion is the model's, and each scene begins with `head_no_prev`.

Source: autoware_universe, autoware_tensorrt_vad, src/vad_model.hpp@02fa6a08 (facts, no code).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mm2onnx_driving.autoware.nodes import VAD
from mm2onnx_driving.vad.runtime import VadOnnx
from mmdeploy_ext.runtime.driving import command_of

if TYPE_CHECKING:
    from mmdeploy_ext.runtime.frames import Frame, StreamState

BACKBONE, FIRST, NEXT = VAD.graphs
FEEDS = dict(shift='bev_shift', lidar2img='lidar2img', can_bus='can_bus')
"""Entry of `img_metas` in the files -> name in the portable graph."""


class AutowareVad(VadOnnx):
    files, parts = VAD.graphs, ('backbone', 'first head', 'next head')

    def run(self, frame: Frame, memory: StreamState | None) -> dict[str, np.ndarray]:
        feeds = self.feeds_of(frame, self.before(memory))
        (features,) = self.graphs[BACKBONE].run(dict(img=np.float32(feeds['img']))).values()
        graph = self.graphs[FIRST if memory is None else NEXT]
        given = {f'img_metas.0[{name}]': np.float32(feeds[ours]) for name, ours in FEEDS.items()}
        given['mlvl_feats.0'] = features
        if memory is not None:
            given['prev_bev'] = np.float32(memory.tensors['bev_embed'])
        axes = {tensor.name: tensor.axes for tensor in graph.spec.inputs}
        outputs = graph.run({name: values.reshape(axes[name]) for name, values in given.items()})
        found = {name.removeprefix('out.'): values for name, values in outputs.items()}
        plan = found['ego_fut_preds'][:, command_of(frame)].cumsum(1)
        return dict(found, ego_plan=plan)
