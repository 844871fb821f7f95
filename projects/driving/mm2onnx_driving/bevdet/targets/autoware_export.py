"""BEVDet4D as Autoware's tensorrt_bevdet loads it: the file of bevdet_vendor, and the node's parameters.

Source: autoware_universe, autoware_tensorrt_bevdet (node at 04e1fee4 and a164223f, parameters at 563bc062;
facts, no code).
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from mm2onnx_driving.autoware.contract import AutowareContract, companion_texts, published
from mm2onnx_driving.autoware.nodes import BEVDET, BEVDET_CAMERAS
from mm2onnx_driving.bevdet.targets.bevdet_plugins_export import NOTES, SETTINGS, CppFiles
from mmdeploy_ext.base.errors import ConfigError

SCORE_THRESHOLD = 0.2
"""Score that a box has to reach, the node's default; tune it there."""
NO_POSE = (
    'AUTOWARE PASSES NO EGO POSE: the node sets neither scene_token nor ego2global, so previous views are '
    'not moved with the car, start as zeros, and no scene ever starts; this proof passes poses and scenes '
    'and does not cover the node without them'
)


LAUNCH = (
    'ros2 launch autoware_tensorrt_bevdet tensorrt_bevdet.launch.xml model_path:={place} '
    f'model_config:={{place}}/{SETTINGS} param_file:={{place}}/{BEVDET.manifest} precision:=fp32'
)
"""Command that gives the node a folder; the launch file's own precision is fp16."""


class BevDetFiles(CppFiles):
    """The one graph, the program's settings, and the node's parameters."""

    node, used_by = BEVDET, f'{AutowareContract.used_by}   # then {LAUNCH}'
    notes = (NO_POSE, *NOTES)

    def check(self, cfg: Any) -> None:
        super().check(cfg)
        cameras = self.family.preprocess_rule(cfg).cameras
        is_other_order = sorted(cameras) == sorted(BEVDET_CAMERAS) and cameras != BEVDET_CAMERAS
        if len(cameras) != len(BEVDET_CAMERAS) or is_other_order:
            raise ConfigError(
                f'{cfg.filename}: --contract autoware: the cameras are {", ".join(cameras)}; expected the '
                f'order of the topics of the node, {", ".join(BEVDET_CAMERAS)}'
            )

    def companions(self, model: nn.Module) -> Mapping[str, str]:
        rule = model.rule
        parameters = dict(  # keys of the nodes before and since 04e1fee4; the launch file gives model_config
            onnx_path='$(var model_path)/$(var model_name).onnx',
            engine_path='$(var model_path)/$(var model_name).engine',
            precision='fp32',
            debug=False,
            debug_mode=False,
            data_params=dict(
                CAM_NUM=rule.num_cameras, camera_count=rule.num_cameras, cams=list(rule.cameras)
            ),
            post_process_params=dict(
                score_threshold=SCORE_THRESHOLD, class_names=published(BEVDET.classes, model.CLASSES)
            ),
        )
        return {**super().companions(model), **companion_texts(BEVDET, parameters)}
