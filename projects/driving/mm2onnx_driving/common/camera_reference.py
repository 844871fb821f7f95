"""Detectors of several cameras in PyTorch as steppers, by their own test path.

Glossary: N cameras, L decoder layers, Q queries.
"""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from mmdet3d.core.bbox import LiDARInstance3DBoxes
from torch import Tensor, nn

from mmdeploy_ext.base.errors import ShapeError
from mmdeploy_ext.base.taps import collect_taps, tap
from mmdeploy_ext.exporting.last_test import LastTest
from mmdeploy_ext.families.common.lidar_parts import Hook, collected
from mmdeploy_ext.families.common.samples import detections_in_1x
from mmdeploy_ext.families.sequence import not_compared
from mmdeploy_ext.families.synthetic.moments import special_drive
from mmdeploy_ext.runtime import frame_checks
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import Frame, StepResult, StreamState
from mmdeploy_ext.spec.preparation import MultiViewRule


class CameraReference:
    """An unpatched detector in its own test path, which keeps its memory itself.

    By default the loader gives `img` and `img_metas`, the head returns the outputs, and there is no memory.

    Attributes:
        reads: fields of a `Frame` that the detector reads besides its images.
        outputs: tensors that are compared, by the names of the graphs, from `hooks` or taps.
        head_name: attribute of the detector; '' is `pts_bbox_head`, or `head`.
        device: device of the weights.
        convention: box convention of the training (`box_conventions`), or ''.
        notes: sentences for the verdict.
    """

    reads: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]
    head_name = ''

    def __init__(self, model: nn.Module, notes: Sequence[str] = ()) -> None:
        self.model, self.test = model, LastTest(model)
        self.head_name = self.head_name or ('pts_bbox_head' if hasattr(model, 'pts_bbox_head') else 'head')
        self.head = getattr(model, self.head_name)
        self.device = next(model.parameters()).device
        self.convention: str = getattr(model, 'box_convention', '')
        self._notes = tuple(notes)
        self._unread: set[str] = set()
        self.reset()

    # ---- what a family says

    def data(self, frame: Frame, is_first: bool) -> dict[str, Any]:
        """Return a copied frame as the test loader gives it."""
        images, meta = self.tensor(frame.images)[None], self.meta_of(frame)
        return dict(return_loss=False, rescale=True, img=[images], img_metas=[[meta]])

    def hooks(self, frame: Frame) -> Mapping[nn.Module, Hook]:
        """Return module -> function of its inputs and output that returns tensors by name."""
        return {self.head: lambda inputs, outputs: outputs}

    def forget(self) -> None:
        """Empty the memory of the detector."""

    def memory(self) -> dict[str, np.ndarray]:
        """Return the memory after the last frame, with the runtime's names."""
        return {}

    def remember(self, state: StreamState) -> None:
        """Give the detector, with an empty memory, another memory."""

    def timed_methods(self) -> dict[str, list[tuple[object, str]]]:
        """See `SequenceReference`."""
        return dict(network=[(self.model, 'forward')])

    def special_samples(self, rule: MultiViewRule, sample: Frame) -> Iterable[Frame]:
        """See `SequenceReference`."""
        return special_drive(sample)

    def voxel_layer(self) -> None:
        return None

    def tensors(self, values: Mapping[str, Tensor], was_reset: bool) -> dict[str, np.ndarray]:
        return {name: array(values[name]) for name in self.outputs}

    def was_reset(self, is_first: bool) -> bool:
        return is_first

    def results(self, results: Sequence[Mapping[str, Any]]) -> Detections3D:
        return self.detections(results[0]['pts_bbox'])

    def further_taps(self, frame: Frame) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    # ---- frames

    @property
    def notes(self) -> list[str]:
        notes = [*self._notes]
        if self.convention:
            about = f'trained with boxes of mmdet3d {self.convention}; results are compared as boxes of 1.x'
            notes.insert(0, about)
        return [*notes, *not_compared(self._unread)]

    def is_first(self, frame: Frame) -> bool:
        """Return whether the scene token changed; a gap is no new scene."""
        return self._last is None or self._last.scene_token != frame.scene_token

    def step(self, frame: Frame) -> StepResult:
        """Run a prepared frame; taps get the taps of the model, the frame and the outputs."""
        cameras = self.model.input_sizes[0]
        if len(frame.images) != cameras:
            raise ShapeError(
                f'{frame.name or "frame"}: got {len(frame.images)} images, the model has {cameras} '
                'cameras; set num_cams in the config'
            )
        frame_checks.check_fields(frame, self.reads, cameras)
        is_first = self.is_first(frame)
        data, hooks = self.data(frame, is_first), self.hooks(frame)
        with torch.no_grad(), collect_taps() as taps, collected(hooks) as values, self.further_taps(frame):
            results = self.test.run(**data)
        self._last = StreamState({}, copy.copy(frame.ego_pose), frame.timestamp_s, frame.scene_token)
        was_reset = self.was_reset(is_first)
        outputs = self.tensors({**taps, **values}, was_reset)
        shown = {name: torch.from_numpy(value) for name, value in outputs.items()}
        for name, value in {**dict(inputs_of(frame, is_first)), **taps, **shown}.items():
            tap(name, value)
        step = StepResult(outputs, self.results(results), was_reset)
        self._unread |= self.test.unread()
        return step

    def tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(np.array(values, np.float32)).to(self.device)

    def meta_of(self, frame: Frame) -> dict[str, Any]:
        shapes = [(*frame.images.shape[2:], 3)] * len(frame.images)
        return dict(
            scene_token=frame.scene_token,
            lidar2img=list(np.array(frame.lidar2img, np.float64)),
            img_shape=shapes,
            pad_shape=shapes,
            box_type_3d=LiDARInstance3DBoxes,
        )

    # ---- memory

    def reset(self) -> None:
        self._last: StreamState | None = None  # without tensors
        self.forget()

    @property
    def state(self) -> StreamState | None:
        """Memory after the last frame, or None; can be assigned."""
        if self._last is None:
            return None
        last = self._last
        return StreamState(self.memory(), last.ego_pose, last.timestamp_s, last.scene_token or '')

    @state.setter
    def state(self, state: StreamState | None) -> None:
        self.reset()
        if state is not None:
            self.remember(state)
            self._last = state

    # ---- boxes

    def detections(self, result: Mapping[str, Any]) -> Detections3D:
        return detections_in_1x(result, self.convention)

    def boxes_of(self, outputs: Mapping[str, np.ndarray]) -> Detections3D:
        """Return the boxes of the last frame, best first, by its test path with these outputs of the head."""
        arrays = {name: np.array(value, order='C') for name, value in outputs.items()}
        tensors = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        return self.results(self.test.again(self.substitutes(tensors)))

    def substitutes(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return path of a method -> what it returns for tensors of the files."""
        return {f'{self.head_name}.forward': self.head_outputs(tensors)}

    def head_outputs(self, tensors: Mapping[str, Tensor]) -> Any:
        """Return tensors of the files, (L, 1, Q, columns), as the head's `forward` does."""
        return dict(tensors)


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()


def inputs_of(frame: Frame, is_first: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of a frame for a dump (`dumped_cameras` reads it)."""
    yield 'img', torch.from_numpy(np.array(frame.images))
    yield 'prev_exists', torch.tensor([0.0 if is_first else 1.0])
    for name in ('lidar2img', 'intrinsics', 'ego_pose', 'can_bus', 'camera_times_s', 'command'):
        if (values := getattr(frame, name)) is not None:
            yield name, torch.from_numpy(np.array(values, np.float64))
    if frame.timestamp_s is not None:
        yield 'timestamp_s', torch.tensor([frame.timestamp_s], dtype=torch.float64)
