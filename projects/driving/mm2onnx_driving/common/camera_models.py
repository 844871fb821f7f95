"""Families of several cameras: models and frames of their data sets."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet.models.builder import MODELS as MMDET_MODELS
from mmdet3d.models import build_model
from mmdet3d.models.builder import MODELS
from torch import nn

from mmdeploy_ext.base.config import refused_by_name, refused_values, test_datasets, test_pipeline
from mmdeploy_ext.base.errors import ConfigError, DataError
from mmdeploy_ext.base.source_code import nearest_base
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.common.detector_parts import part_cfg
from mmdeploy_ext.families.common.samples import result
from mmdeploy_ext.families.contracts import PUBLISHED
from mmdeploy_ext.runtime.infos import INFOS, read_infos
from mmdeploy_ext.runtime.preprocess.cameras import multiview_rule
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.upstream.models.building import build_without_weights
from mmdeploy_ext.upstream.models.catalogue import MODULES, register_named

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


@dataclasses.dataclass(frozen=True)
class CameraModels:
    """Supported models of a family of several cameras, by types and settings of configs.

    Attributes:
        head_key: key of a model's config that has the head.
        needed_settings: setting of the head -> its only supported value.
        absent_settings: setting -> its default.
        check_further: refuses a config for other reasons (ConfigError), or None.
        camera_settings: returns the part of a config with `num_cams`.
        camera_steps: returns test pipeline steps for `multiview_rule`.
    """

    detectors: tuple[str, ...]
    heads: tuple[str, ...]
    head_key: str = 'pts_bbox_head'
    needed_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    absent_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check_further: Callable[[Any], None] | None = None
    camera_settings: Callable[[Any], Mapping[str, Any]] = stated_cameras
    camera_steps: Callable[[Any], Sequence[Mapping[str, Any]]] = test_pipeline

    def head_of(self, cfg: Any) -> Mapping[str, Any]:
        return part_cfg(cfg.model, self.head_key)

    def claims(self, cfg: Any) -> Claim:
        if not is_one_of(self.heads, self.head_of(cfg)):
            return Claim.NO  # other models have a detector of the same type
        return Claim.DETECTOR if is_one_of(self.detectors, cfg.model) else Claim.HEAD

    def check(self, cfg: Any) -> None:
        types = (
            ('type', cfg.model, self.detectors),
            (f'{self.head_key}.type', self.head_of(cfg), self.heads),
        )
        for key, part, exported in types:
            if not is_one_of(exported, part):
                raise ConfigError(
                    f'{cfg.filename}: model.{key}={part.get("type")!r}; expected {" or ".join(exported)}'
                )
        head = {**self.absent_settings, **self.head_of(cfg)}
        wrong = [key for key, value in self.needed_settings.items() if head.get(key) != value]
        if wrong:
            raise ConfigError(
                f'{cfg.filename}: {", ".join(f"{self.head_key}.{key}={head.get(key)}" for key in wrong)}; '
                f'expected {", ".join(str(self.needed_settings[key]) for key in wrong)}, as in the published '
                'configs'
            )
        with refused_by_name(cfg), refused_values(cfg, f'model.{self.head_key}.bbox_coder'):
            self.check_coder(self.head_of(cfg).get('bbox_coder') or {}, f'model.{self.head_key}.bbox_coder')
        if self.check_further:
            with refused_values(cfg, f'model.{self.head_key}'):
                self.check_further(cfg)

    def check_coder(self, coder: Mapping[str, Any], key: str) -> None:
        """Refuse ranges and numbers of boxes; `key` is the coder's place in the config."""
        _check_coder(coder, key)

    def build(self, cfg: Any) -> nn.Module:
        """Return the model without weights, in evaluation mode, with `input_sizes`."""
        self.check(cfg)
        register_named(cfg)  # several models have a detector of the same type
        model = build_without_weights(cfg, build_model, 'img_backbone')
        rule = self.preprocess_rule(cfg)
        model.input_sizes = (rule.num_cameras, *rule.input_size)
        return model

    def preprocess_rule(self, cfg: Any) -> MultiViewRule:
        with refused_values(cfg, f'model.{self.head_key}'):
            cameras = self.camera_settings(cfg).get('num_cams', DEFAULT_CAMERAS)
        if type(cameras) is not int or cameras < 1:
            raise ConfigError(f'{cfg.filename}: num_cams={cameras!r}, expected a number of cameras')
        with refused_values(cfg, 'the test pipeline'):
            steps = self.camera_steps(cfg)
            with refused_by_name(cfg):
                return multiview_rule(steps, cameras)


def _check_coder(coder: Mapping[str, Any], key: str) -> None:
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


class CameraFamily:
    """Methods of families of several cameras; derive from this class before `SequenceFamily`."""

    models: CameraModels
    samples, memory = 'frames', True
    settings = PUBLISHED
    result = staticmethod(result)

    def claims(self, cfg: Any) -> Claim:
        return self.models.claims(cfg)

    def check(self, cfg: Any, options: Options) -> None:
        self.models.check(cfg)

    def preprocess_rule(self, cfg: Any) -> MultiViewRule:
        return self.models.preprocess_rule(cfg)

    def build(self, cfg: Any) -> nn.Module:
        return self.models.build(cfg)

    def box_facts(self, model: nn.Module) -> dict[str, Any]:
        coder = model.pts_bbox_head.bbox_coder
        return dict(
            max_num=int(coder.max_num),
            post_center_range=tuple(float(value) for value in coder.post_center_range),
            score_threshold=coder.score_threshold,
            num_classes=self.num_classes(model),
            box_convention=getattr(model, 'box_convention', '1.x'),
        )
