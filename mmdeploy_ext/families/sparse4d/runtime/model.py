"""Sparse4D as a stream: images, calibration, pose and time in, boxes with track ids out.

    runtime = Sparse4DOnnx('work_dirs/sparse4d')          # the folder that pytorch2onnx.py wrote
    calibration = runtime.rule.calibrate(intrinsics, lidar2cam)
    boxes = runtime.detect(images_bgr, calibration, ego_pose, timestamp_s)

Needs numpy, OpenCV and ONNX Runtime, no PyTorch.

Glossary: N cameras, H, W network input in pixels, h, w pictures as taken, A instances, C channels, K classes.
The columns of an anchor (11) are in `bank.py`; the two of the quality are logits of centerness and yaw.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.commands import tool
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.families.parts.runtime import frame_checks
from mmdeploy_ext.families.parts.runtime.rig_frames import CameraRuntime, scene_of
from mmdeploy_ext.families.sparse4d.runtime.bank import BankRule, InstanceBank, TemporalInputs
from mmdeploy_ext.families.sparse4d.runtime.boxes import InstanceBoxes, decode
from mmdeploy_ext.runtime.exported import check_finite, check_forms, model_files
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.contract.spec import GraphSpec
    from mmdeploy_ext.runtime.exported import Paths

FAMILY = 'sparse4d'
"""Name of the family in the metadata."""
PORTABLE = 'sparse4d'
"""Name of the one graph of the contract `portable`, and of its file."""
BACKBONE, FIRST, NEXT = DEPLOY_FILES = ('sparse4dbackbone', 'sparse4dhead1st', 'sparse4dhead2nd')
"""Names of those of the contract `deploy`."""
CONSTANTS = 'sparse4dconstants.json'
"""File beside those of `deploy`: the numbers of `CONSTANT_INPUTS` by name."""
CONSTANT_INPUTS = ('instance_feature', 'anchor', 'spatial_shapes', 'level_start_index')
"""Inputs of the heads of `deploy` that are constants of a model."""
PREDICTIONS = ('pred_instance_feature', 'pred_anchor', 'pred_class_score', 'pred_quality_score')
"""Outputs of every contract: features (1, A, C), anchors (1, A, 11), logits (1, A, K) and (1, A, 2)."""


class Sparse4DOnnx(CameraRuntime):
    """An exported Sparse4D with its instance bank: a `Stepper` of frames. For `detect` see `CameraRuntime`.

    Attributes:
        bank: the memory.
        graphs: name of each graph -> the engine with its file.
        is_portable: whether it is the one graph of the contract `portable`.
        constants: the constant inputs of the heads of `deploy` by name; empty for `portable`.
        seconds: spent so far, of all frames together, in the graphs: `network`.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        repairs: Sequence[str] = (),
        engine: str = 'OnnxRuntimeBackend',
        **options: Any,
    ) -> None:
        """Open the files.

        Args:
            paths: the files of an export, the one file of `portable`, or the folder of an export and of no
                other. Graphs are known by their metadata, whatever the names of their files.
            repairs: keys of `bank.REPAIRS`: behaviour of the published model that is left out.
            engine: see `Runtime.opened`.
            options: see `Runtime.opened`.

        Raises:
            ModelFileError: one is missing, of another family or export, or there twice.
            EngineError: the engine is not here.
            ConfigError: no such engine, or one without these options.
            ValueError: there is no such repair.
        """
        super().__init__()
        files = model_files(paths) if isinstance(paths, str) or hasattr(paths, 'is_dir') else list(paths)
        self.graphs = self.opened_by_form(files, engine, options, [FAMILY])
        by_form = {form: graph.path for form, graph in self.graphs.items()}
        contract = (PORTABLE,) if PORTABLE in by_form else DEPLOY_FILES
        if missing := [form for form in contract if form not in by_form]:
            raise ModelFileError(
                f'{", ".join(map(str, by_form.values()))}: {", ".join(missing)} of this export is missing; '
                f'give its folder, or export it again with {tool("export")}'
            )
        check_forms(by_form, {form: graph.metadata for form, graph in self.graphs.items()}, FAMILY)
        self.is_portable = PORTABLE in self.graphs
        images, last = (PORTABLE, PORTABLE) if self.is_portable else (BACKBONE, NEXT)
        self.metadata: Metadata = self.graphs[last].metadata
        self.image_shape = tuple(self.graphs[images].spec.tensor('img').axes[-4:])
        self.constants = {} if self.is_portable else read_constants(by_form[NEXT], self.graphs[NEXT].spec)
        rule = BankRule.from_facts(self.metadata.postprocess, tuple(repairs))
        channels = self.graphs[last].spec.tensor('pred_instance_feature').axes[-1]
        self.bank = InstanceBank(rule, int(channels))
        self.seconds = dict(network=0.0)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is the first one, and its ids begin at 0."""
        self.bank.reset()
        self._scene = ''
        self.was_reset = False

    def step(self, frame: Frame) -> StepResult:
        """Run a prepared frame, see `Frame`, and keep its instances.

        The result has all outputs of the graphs that ran, and of the bank `instance_id` (1, A) int64 and
        `confidence` (1, A) float32; its `detections` are `InstanceBoxes`. It says
        `was_reset` if no frame before belongs to this one, also after a longer gap than the bank's
        `max_time_interval`.

        Raises:
            ShapeError: images of another shape.
            DataError: a pose that is not rigid, a time or a calibration that is not of finite numbers, or one
                that is missing.
            InferenceError: the engine failed, or the network gave NaN or infinity; the bank stays as it was,
                or is empty if this frame begins a scene and the repair `scene` has emptied it.
        """
        images = frame_checks.check_prepared(frame.images, self.image_shape)
        lidar2img = frame_checks.check_lidar2img(frame.lidar2img, self.num_cameras)
        pose = frame_checks.check_pose(frame.ego_pose)
        timestamp_s = frame_checks.check_time(frame.timestamp_s)
        last = self.state
        if 'scene' in self.bank.rule.repairs and self.begins_scene(last, timestamp_s, frame.scene_token):
            self.bank.reset()
        inputs = self.bank.get(pose, timestamp_s)
        start = time.perf_counter()
        outputs = self._infer(images, np.float32(lidar2img), inputs)
        self.passed('network', start)
        check_finite(outputs, frame.name or 'frame')
        feature, anchor, logits, quality = (outputs[name] for name in PREDICTIONS)
        update = self.bank.update(inputs, feature, anchor, logits)
        outputs |= dict(instance_id=update.ids, confidence=update.confidence)
        self._scene, self.was_reset = scene_of(frame.scene_token, last), not inputs.mask[0]
        rule, facts = self.bank.rule, self.metadata.postprocess
        boxes = decode(logits, anchor, quality, facts, update.ids, rule.repairs)
        return StepResult(outputs, boxes, self.was_reset)

    def _infer(
        self, images: np.ndarray, lidar2img: np.ndarray, inputs: TemporalInputs
    ) -> dict[str, np.ndarray]:
        """Return the outputs of the graphs for a frame."""
        temporal = dict(temp_instance_feature=inputs.temp_feature, temp_anchor=inputs.temp_anchor)
        if self.is_portable:
            has_temp = np.float32([inputs.exists])
            feeds = dict(temporal, img=images, lidar2img=lidar2img, time_interval=inputs.time_interval)
            return self.graphs[PORTABLE].infer(dict(feeds, mask=inputs.mask, has_temp=has_temp))
        features = self.graphs[BACKBONE].infer(dict(img=images[None]))
        height, width = self.image_shape[2:]
        feeds = dict(
            self.constants,
            time_interval=inputs.time_interval,
            image_wh=np.tile(np.float32([width, height]), (1, self.num_cameras, 1)),
            lidar2img=lidar2img[None],
        )
        if not inputs.exists:
            ids = dict(pred_track_id=np.full_like(inputs.track_id, -1, np.int32))
            return features | ids | self.graphs[FIRST].infer(features | feeds)
        ids = dict(mask=inputs.mask.astype(np.int32), track_id=inputs.track_id.astype(np.int32))
        return features | self.graphs[NEXT].infer(features | feeds | temporal | ids)

    @property
    def state(self) -> StreamState | None:
        """A copy of the bank after the last frame, with the tensors of `InstanceBank.shapes`.

        It is None before the first frame after a reset. The token of a scene that no frame has named is ''.

        ShapeError: an assigned one lacks a tensor of the bank, or one has another shape, NaN or infinity.
            DataError: its pose or time is not valid. The bank stays as it was then.
        """
        tensors = self.bank.tensors
        if tensors is None:
            return None
        return StreamState(tensors, self.bank.ego_pose.copy(), self.bank.timestamp_s, self._scene)

    @state.setter
    def state(self, state: StreamState | None) -> None:
        if state is None:
            self.reset()
            return
        pose = frame_checks.check_pose(state.ego_pose, 'state: ego_pose')
        self.bank.load(state.tensors, pose, frame_checks.check_time(state.timestamp_s))
        self._scene, self.was_reset = state.scene_token or '', False


def read_constants(head: str | Path, spec: GraphSpec) -> dict[str, np.ndarray]:
    """Return the constant inputs of the heads of `deploy` by name, from the file beside them.

    `head` is the path of one of the heads, `spec` its contract, which decides dtypes and shapes.

    Raises:
        ModelFileError: the file or one of them is missing, or it is not of these files.
    """
    path = Path(head).with_name(CONSTANTS)
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        tensors = [spec.tensor(name) for name in CONSTANT_INPUTS]
        return {
            tensor.name: np.array(content[tensor.name], tensor.dtype).reshape(tensor.axes)
            for tensor in tensors
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(
            f'{path}: is no constants of these files ({error}); export them again'
        ) from error


def boxes_of_outputs(metadata: Metadata, outputs: Mapping[str, np.ndarray]) -> InstanceBoxes:
    """Return the boxes of a frame's outputs; see `mmdeploy_ext/runtime/detect.py`.

    `outputs` have those of `PREDICTIONS` but for the features. Without `instance_id`, which the bank gives,
    instances are numbered by their rows. Boxes are those of `step`; only their `class_scores` are in
    the published order, by these scores and not that of the boxes, as no repair is applied.
    """
    _, anchor, logits, quality = (outputs.get(name) for name in PREDICTIONS)
    rows = np.arange(logits.shape[1])[None]
    return decode(logits, anchor, quality, metadata.postprocess, outputs.get('instance_id', rows))


QUANTISED = PORTABLE
"""Name of the graph whose layers `quantize.py` puts in INT8; of `deploy` it is the one of pictures alone."""
OPENS = Sparse4DOnnx
"""Class that opens an export, see `mmdeploy_ext/runtime/detect.py`."""
