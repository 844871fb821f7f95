"""Families of several cameras: models and frames of their data sets."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from mmdet.models.builder import MODELS as MMDET_MODELS
from mmdet3d.models import build_model
from mmdet3d.models.builder import MODELS
from torch import Tensor, nn

from mm2onnx_driving.common.runtime.bev_frames import frame_with_record
from mm2onnx_driving.common.runtime.lift_splat import rig_in_key_ego
from mm2onnx_driving.common.runtime.query_boxes import PREDICTIONS
from mmdeploy_ext.base.config import (
    refused_by_name,
    refused_values,
    test_dataset,
    test_datasets,
    test_pipeline,
)
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.base.source_code import nearest_base
from mmdeploy_ext.families.base import Claim, check_settings, section_of
from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.families.common.samples import check_dumped, only, picture_files, result
from mmdeploy_ext.families.contracts import PUBLISHED
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.families.sequence_data import SequenceData
from mmdeploy_ext.families.synthetic.info_files import generated_dataset, write_infos
from mmdeploy_ext.runtime.bev_motion import CAN_BUS
from mmdeploy_ext.runtime.frames import Frame
from mmdeploy_ext.runtime.infos import INFOS, RigFrame, read_frames, read_infos
from mmdeploy_ext.runtime.preprocess.cameras import multiview_rule
from mmdeploy_ext.runtime.streams import frame_of_rig
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.spec.results import widened
from mmdeploy_ext.spec.tensors import Graph, GraphSpec
from mmdeploy_ext.upstream.models import catalogue
from mmdeploy_ext.upstream.models.building import build_without_weights
from mmdeploy_ext.upstream.models.catalogue import MODULES, register_named

# Pictures to feature maps in the graphs of detectors of cameras, on the layers of the live model.
#
# Glossary: N cameras, C channels, h, w feature map, H, W network input in pixels.


# ---- seeded inputs to trace graphs of frames


def with_examples(model: nn.Module, parts: Sequence[tuple[str, nn.Module, GraphSpec]]) -> list[Graph]:
    """Return graphs of (name, module, contract) with examples to trace, on the model's device.

    Examples are random floats in 0..1, near the identity for (4, 4) matrices, and 0 for integers.
    """
    device = next(model.parameters()).device
    return [
        Graph(name, module.eval().to(device), contract, _example(contract, device))
        for name, module, contract in parts
    ]


def _example(contract: GraphSpec, device: torch.device) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    example = {}
    for tensor in contract.inputs:
        if tensor.dtype.startswith('int'):  # sizes of nothing: none is out of range
            axes = [1 if isinstance(axis, str) else axis for axis in tensor.axes]
            example[tensor.name] = torch.zeros(axes, dtype=getattr(torch, tensor.dtype), device=device)
            continue
        values = torch.rand(tensor.axes, generator=generator)
        if len(tensor.axes) > 2 and tensor.axes[-2:] == (4, 4):
            values = torch.eye(4) + 0.01 * values
        dtype = torch.float64 if tensor.dtype == 'float64' else torch.float32
        example[tensor.name] = values.to(device, dtype)
    return example


# ---- graphs


def camera_graphs(
    model: nn.Module, options: Options, parts: Sequence[tuple[str, nn.Module, GraphSpec]]
) -> list[Graph]:
    """Return graphs of (name, module, contract); outputs get the tolerances of the precision."""
    widened_parts = []
    for name, module, spec in parts:
        outputs = (
            dataclasses.replace(tensor, groups=widened(tensor.groups, options.precision))
            for tensor in spec.outputs
        )
        widened_parts.append((name, module, dataclasses.replace(spec, outputs=tuple(outputs))))
    return with_examples(model, widened_parts)


def feature_maps(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Return the feature maps (N, C, h, w) of each level."""
    maps = model.img_backbone(images)
    maps = list(maps.values()) if isinstance(maps, dict) else list(maps)
    neck = getattr(model, 'img_neck', None)
    return maps if neck is None else list(neck(maps))


def map_shapes(model: nn.Module, height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """Return (C, h, w) of each level, by running the network once."""
    with torch.no_grad():
        picture = next(model.parameters()).new_zeros((1, 3, height, width))
        return tuple(tuple(level.shape[1:]) for level in feature_maps(model, picture))


# Frames of several cameras from samples of the test loader and from dumps.
#
# Glossary: N cameras.


KEYS = dict(
    lidar2img=('lidar2img', 'projection_mat'),
    intrinsics=('intrinsics',),
    ego_pose=('ego_pose', 'T_global'),
    ego_pose_inv=('ego_pose_inv',),
    timestamp_s=('timestamp',),
    camera_times_s=('img_timestamp',),
    can_bus=('can_bus',),
    command=('gt_ego_fut_cmd', 'ego_fut_cmd'),
    scene_token=('scene_token',),
)
"""Field of a frame -> its keys in a sample or its metas."""
AXES = dict(
    lidar2img=3,
    intrinsics=3,
    ego_pose=2,
    ego_pose_inv=2,
    timestamp_s=0,
    camera_times_s=1,
    can_bus=1,
    command=1,
)
"""Field of numbers -> its number of axes; leading axes of length 1 are dropped."""


def loaded_frame(data: Mapping[str, Any], needed: Collection[str] = ()) -> Frame:
    """Return a collated sample (batch 1, one augmentation) as a frame; raises DataError if one is missing."""
    for key in ('img', 'img_metas'):
        if key not in data:
            raise DataError(f'the test pipeline does not return {key}; add it to the keys of its last step')
    meta = only(data['img_metas'], 'img_metas')
    fields = {}
    for name, keys in KEYS.items():
        values = [only(data[key], key) for key in keys if key in data]
        values += [meta[key] for key in keys if isinstance(meta, dict) and key in meta]
        if values and not _is_of_pictures(name, values[0]):
            fields[name] = str(values[0]) if name == 'scene_token' else as_array(values[0], AXES[name])
    for name in ('lidar2img', *needed):
        if name not in fields:
            raise DataError(
                f'the test pipeline does not return {" or ".join(KEYS[name])}; add it to the keys or '
                'meta_keys of its last step'
            )
    return camera_frame(only(data['img'], 'img'), fields, meta)


def _is_of_pictures(name: str, values: Any) -> bool:
    return name == 'timestamp_s' and np.asarray(values).size > 1


def dumped_frame(
    tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any], needed: Collection[str] = ()
) -> Frame:
    """Return the frame of a dump; raises DataError if `img`, `lidar2img` or a `needed` field is missing."""
    fields: dict[str, Any] = dict(scene_token=str(manifest.get('scene_token') or ''))
    for name, axes in AXES.items():
        for key in (name, *KEYS[name]):
            if key in tensors and name not in fields:
                fields[name] = as_array(tensors[key], axes)
    check_dumped({**fields, **tensors}, ('img', 'lidar2img', *needed))
    return camera_frame(tensors['img'], fields, dict(sample_idx=manifest.get('frame', '')))


def camera_frame(images: Any, fields: Mapping[str, Any], meta: Mapping[str, Any]) -> Frame:
    """Return a frame of images (N, 3, H, W), maybe with leading axes of length 1."""
    absent = dict(ego_pose=None, timestamp_s=None, scene_token=None)
    fields = {**absent, **fields}
    fields.setdefault('intrinsics', np.tile(np.eye(4), (len(fields['lidar2img']), 1, 1)))
    pictures = images.cpu().numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
    return Frame(
        images=np.ascontiguousarray(pictures, np.float32).reshape(pictures.shape[-4:]),
        name=str(meta.get('sample_idx', '')),
        image_files=picture_files(meta),
        **fields,
    )


def as_array(value: Any, axes: int) -> Any:
    array = np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value, np.float64)
    if not axes:
        return float(array.reshape(-1)[0])
    return np.array(array.reshape(array.shape[array.ndim - axes :]))


# The frames of families of several cameras; each class of a family's frames derives from one of these.


class CameraData(SequenceData):
    """Frames of several cameras on a drive.

    Attributes:
        needed: fields of a `Frame` that samples and dumps must have.
        frame_of: makes a frame of pictures, infos and a rule; None: `frame_of_rig`.
        dataset_type: data set that reads generated infos if the config's own cannot.
        entries: of generated infos, see `write_infos`.
    """

    compared = PREDICTIONS
    needed: ClassVar[tuple[str, ...]] = ()
    frame_of: ClassVar[Callable[..., Frame] | None] = None
    dataset_type: ClassVar[str] = 'CustomNuScenesDataset'
    entries: ClassVar[Callable[..., dict[str, Any]] | None] = None

    def frame(self, data: Mapping[str, Any]) -> Frame:
        return loaded_frame(data, self.needed)

    def dumped_frame(self, tensors: Mapping[str, np.ndarray], manifest: Mapping[str, Any]) -> Frame:
        return dumped_frame(tensors, manifest, self.needed)

    def moments(
        self, cfg: Any, rule: MultiViewRule, infos: Path, root: str | Path | None = None
    ) -> Iterator[Frame]:
        frame_of = self.frame_of or frame_of_rig
        for rig in read_frames(infos, rule, root):
            yield frame_of(rig.read_pictures(), rig, rule)

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        dataset = dict(type=self.dataset_type)
        return generated_dataset(folder, cfg, dataset, views=rule, entries=self.entries)


# ---- frames with a record of motion


def can_bus_entry(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return dict(can_bus=rng.uniform(-1, 1, CAN_BUS))


class BevData(CameraData):
    dataset_type = 'BevNuScenesDataset'
    entries = staticmethod(can_bus_entry)
    unread_fields = ('intrinsics', 'ego_pose', 'timestamp_s')
    frame_of = staticmethod(frame_with_record)

    def frame(self, data: Mapping[str, Any]) -> Frame:
        frame = loaded_frame(data, ('can_bus', 'scene_token', *self.needed))
        if frame.can_bus.shape != (CAN_BUS,):
            raise DataError(f'img_metas: can_bus has shape {frame.can_bus.shape}, expected ({CAN_BUS},)')
        pose = np.eye(4)
        pose[:3, 3] = frame.can_bus[:3]
        return dataclasses.replace(
            frame,
            ego_pose=pose if frame.ego_pose is None else frame.ego_pose,
            timestamp_s=frame.timestamp_s or 0.0,
        )


# ---- frames of detectors with a bank of instances


class InstanceData(CameraData):
    """Frames with pose and time."""

    unread_fields = ('intrinsics', 'scene_token')
    needed = ('ego_pose', 'timestamp_s')

    def frame(self, data: Mapping[str, Any]) -> Frame:
        frame = super().frame(data)
        return dataclasses.replace(frame, scene_token=frame.scene_token or '')

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        infos = write_infos(folder, test_pipeline(cfg), views=rule, entries=self.entries)
        return dict(test_dataset(cfg), ann_file=str(infos), data_root=f'{folder}/')


# ---- frames of detectors that lift pictures, in their key ego frame


INPUTS = 7
"""Tensors of `img_inputs`."""
DATASET = 'BEVDetNuScenesDataset'


class LiftData(CameraData):
    compared = ()
    unread_fields = ('camera_times_s',)

    def __init__(self, cameras: int = 6) -> None:
        self.cameras = cameras

    @staticmethod
    def frame_of(images_bgr: Sequence[np.ndarray], rig: RigFrame, rule: MultiViewRule) -> Frame:
        return frame_of_rig(images_bgr, rig_in_key_ego(rig, rule), rule)

    def frame(self, data: Mapping[str, Any]) -> Frame:
        """Return the present frame of a sample with `img_inputs`."""
        if 'img_inputs' not in data:
            raise DataError(
                'the test pipeline does not return img_inputs; add it to the keys of its last step'
            )
        inputs = data['img_inputs']
        while len(inputs) == 1:  # augmentations
            inputs = inputs[0]
        if len(inputs) != INPUTS:
            raise DataError(f'img_inputs: got {len(inputs)} tensors, expected {INPUTS}')
        images, sensor2ego, ego2global, intrins, rots, trans, _ = (
            np.asarray(value, np.float64)[0] for value in inputs
        )
        count = min(len(images), self.cameras)
        images = images[:: len(images) // count]  # camera by camera, of each the newest first
        key = ego2global[0]
        camera2key = np.linalg.inv(key) @ ego2global[:count] @ sensor2ego[:count]
        full = np.tile(np.eye(4), (count, 1, 1))
        full[:, :3, :3] = rots[:count] @ intrins[:count]
        full[:, :2, :3] += trans[:count, :2, None] * intrins[:count, 2:]
        meta = only(data.get('img_metas', {}), 'img_metas')
        fields = dict(lidar2img=full @ np.linalg.inv(camera2key), intrinsics=full, ego_pose=key)
        for name, entry in (('timestamp_s', 'timestamp'), ('scene_token', 'scene_token')):
            if meta.get(entry) is not None:
                fields[name] = meta[entry]
        return camera_frame(images, fields, meta)

    def generated_dataset(self, folder: Path, cfg: Any, rule: MultiViewRule) -> dict[str, Any]:
        steps = test_pipeline(cfg)
        catalogue.register([DATASET])
        return dict(
            type=DATASET,
            ann_file=str(write_infos(folder, steps, rule)),
            data_root=f'{folder}/',
            pipeline=steps,
            modality=dict(use_camera=True, use_lidar=False),
            test_mode=True,
        )


DEFAULT_CAMERAS = 6


def stated_cameras(cfg: Any) -> Mapping[str, Any]:
    """Return `num_cams` of a config, of data.test's first sample, or of the file; {}: none states it."""
    if 'num_cams' in cfg:
        return cfg
    files = [settings.get('ann_file') for settings in test_datasets(cfg)]
    paths = [Path(file) for file in files if isinstance(file, str) and Path(file).suffix in INFOS]
    cameras = first_cameras(paths[0], paths[0].stat().st_mtime_ns) if paths and paths[0].is_file() else 0
    cameras = cameras or cfg.get('cameras_of_file', 0)
    return dict(num_cams=cameras) if cameras else {}


@functools.lru_cache(maxsize=8)
def first_cameras(path: Path, _: int) -> int:
    """Return the number of cameras of the first info of a file; 0: it cannot be read."""
    try:
        first = read_infos(path)[0]
    except DataError:  # whoever builds the data set tells more
        return 0
    cameras = first.get('cams', first.get('images'))
    return len(cameras) if isinstance(cameras, dict) else 0


def is_one_of(types: Sequence[str], part: Mapping[str, Any]) -> bool:
    name = part.get('type')
    if not isinstance(name, str):
        return False
    for registry in (MMDET_MODELS, MODELS):
        if inspect.isclass(kind := registry.module_dict.get(name)):
            return (nearest_base(kind, MODULES) or name) in types
    return name in types


class CameraFamily(SequenceFamily):
    """The base class of families of several cameras.

    Attributes:
        detectors, heads: supported types; a class that derives from one is supported, too.
        head_key: key of a model's config that has the head.
        cameras_at: section of the model's config with `num_cams`; '': see `stated_cameras`.
    """

    detectors: ClassVar[tuple[str, ...]]
    heads: ClassVar[tuple[str, ...]]
    head_key: ClassVar[str] = 'pts_bbox_head'
    cameras_at: ClassVar[str] = ''
    samples, memory = 'frames', True
    settings = PUBLISHED
    result = staticmethod(result)

    def head_of(self, cfg: Any) -> Mapping[str, Any]:
        return part_cfg(cfg.model, self.head_key)

    def claims(self, cfg: Any) -> Claim:
        if not is_one_of(self.heads, self.head_of(cfg)):
            return Claim.NO  # other models have a detector of the same type
        return Claim.DETECTOR if is_one_of(self.detectors, cfg.model) else Claim.HEAD

    def check(self, cfg: Any, options: Options) -> None:
        self.check_model(cfg)

    def check_model(self, cfg: Any) -> None:
        """Raise ConfigError for other types, settings and boxes than the supported ones."""
        types = (
            ('type', cfg.model, self.detectors),
            (f'{self.head_key}.type', self.head_of(cfg), self.heads),
        )
        for key, part, exported in types:
            if not is_one_of(exported, part):
                raise ConfigError(
                    f'{cfg.filename}: model.{key}={part.get("type")!r}; expected {" or ".join(exported)}'
                )
        check_settings(cfg, self.expects)
        key = f'model.{self.head_key}'
        with refused_by_name(cfg), refused_values(cfg, f'{key}.bbox_coder'):
            self.check_coder(self.head_of(cfg).get('bbox_coder') or {}, f'{key}.bbox_coder')
        with refused_values(cfg, key):
            self.check_further(cfg)

    def check_coder(self, coder: Mapping[str, Any], key: str) -> None:
        """Refuse ranges and numbers of boxes; `key` is the coder's place in the config."""
        for name in ('pc_range', 'post_center_range'):
            values = coder.get(name)
            if name not in coder or (values is None and name == 'pc_range'):  # it may be the head's
                continue
            is_list = isinstance(values, list | tuple) and len(values) == 6
            if not is_list or not all(isinstance(value, int | float) for value in values):
                raise ConfigError(f'{key}.{name}={values!r}: expected six numbers, in metres')
        limit = coder.get('max_num', 1)
        if type(limit) is not int or limit < 1:
            raise ConfigError(f'{key}.max_num={limit!r}: expected a whole number of at least 1')

    def check_further(self, cfg: Any) -> None:
        """Raise ConfigError for a reason that a table of settings cannot say."""

    def build(self, cfg: Any) -> nn.Module:
        """Return the model without weights, in evaluation mode, with `input_sizes`."""
        self.check_model(cfg)
        register_named(cfg)  # several models have a detector of the same type
        model = build_without_weights(cfg, build_model, 'img_backbone')
        rule = self.preprocess_rule(cfg)
        model.input_sizes = (rule.num_cameras, *rule.input_size)
        return model

    def preprocess_rule(self, cfg: Any) -> MultiViewRule:
        section = section_of(cfg, self.cameras_at) if self.cameras_at else stated_cameras(cfg)
        cameras = section.get('num_cams', DEFAULT_CAMERAS)
        if type(cameras) is not int or cameras < 1:
            raise ConfigError(f'{cfg.filename}: num_cams={cameras!r}, expected a number of cameras')
        with refused_values(cfg, 'the test pipeline'), refused_by_name(cfg):
            return multiview_rule(self.camera_steps(cfg), cameras)

    def camera_steps(self, cfg: Any) -> Sequence[Mapping[str, Any]]:
        """Return the steps of the test pipeline for `multiview_rule`."""
        return test_pipeline(cfg)

    def box_facts(self, model: nn.Module) -> dict[str, Any]:
        coder = model.pts_bbox_head.bbox_coder
        return dict(
            max_num=int(coder.max_num),
            post_center_range=tuple(float(value) for value in coder.post_center_range),
            score_threshold=coder.score_threshold,
            num_classes=self.num_classes(model),
            box_convention=getattr(model, 'box_convention', '1.x'),
        )
