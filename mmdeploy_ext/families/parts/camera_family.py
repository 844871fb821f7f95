"""The base of families of several cameras, and two classes that families derive from beside it.

These are `QueryBoxes`, of queries that become boxes without NMS, and `BoxConvention`, of models that were
trained with boxes of mmdet3d 0.17 or of 1.x: `class PetrFamily(BoxConvention, QueryBoxes, CameraFamily)`.
What the other attributes of the classes are for is documented where they are defined first:
`families/sequence.py` and `families/base.py`.
"""

import abc
import inspect
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from mmdet.models.builder import MODELS as MMDET_MODELS
from mmdet3d.models import build_model
from mmdet3d.models.builder import MODELS
from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.config import refused_by_name, test_pipeline
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.base import Claim
from mmdeploy_ext.families.building import build_without_weights, nearest_base
from mmdeploy_ext.families.parts.box_conventions import note_convention, state_convention
from mmdeploy_ext.families.parts.camera_reference import trained_convention
from mmdeploy_ext.families.parts.detector_parts import part_cfg
from mmdeploy_ext.families.parts.query_limits import other_limits, synthetic_outputs
from mmdeploy_ext.families.parts.runtime.query_boxes import PREDICTIONS
from mmdeploy_ext.families.parts.runtime.rig_frames import moments
from mmdeploy_ext.families.parts.samples import arrays, result
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.models.catalogue import MODULES, register_named
from mmdeploy_ext.models.query_boxes import QueryBoxCoder
from mmdeploy_ext.preprocess.cameras import MultiViewRule, multiview_rule
from mmdeploy_ext.runtime.frames import Stepper

Z_AFTER_TWO_SIZES = (0, 1, 3, 4, 2, 5, 6, 7, 8, 9)
"""For each number of a box code its index in `query_limits.IN_ORDER`: the centre's z follows two sizes."""
DEFAULT_CAMERAS = 6
"""Number of cameras of a config without `num_cams`."""
CODER = 'NMSFreeCoder'
"""Type of the box coder that this package's heads have, whatever a config names."""


def is_one_of(types: Sequence[str], part: Mapping[str, Any]) -> bool:
    """Return whether the type of a part of a config is one of `types`, or its class is derived from one."""
    name = part.get('type')
    for registry in (MMDET_MODELS, MODELS):
        if inspect.isclass(kind := registry.module_dict.get(name)):
            return (nearest_base(kind, MODULES) or name) in types
    return name in types


class CameraFamily(SequenceFamily):
    """Frames of cameras in, boxes out, in the order of a drive.

    Most models keep tensors in a memory between frames; PETR, which sees one frame, keeps pose and time.

    A model that it builds has `input_sizes`: the number of cameras, and the height and the width of their
    pictures in the network's input.

    Attributes:
        detectors: types of the detectors that the family exports.
        heads: types of their heads.
        head_key: key of a model's config that has the head.
        needed_settings: setting of the head -> the value without which a model is refused.
        absent_settings: setting -> the value that a head without it has.
    """

    of_config = "size and cameras are the config's"
    task = 'bbox3d'
    samples = 'frames'
    memory = True
    detectors: ClassVar[tuple[str, ...]]
    heads: ClassVar[tuple[str, ...]]
    head_key: ClassVar[str] = 'pts_bbox_head'
    needed_settings: ClassVar[Mapping[str, Any]] = {}
    absent_settings: ClassVar[Mapping[str, Any]] = {}
    moments, dump_tensors = staticmethod(moments), staticmethod(arrays)

    def head_of(self, model: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the config of a model's head; empty if it has none, or a list of several."""
        return part_cfg(model, self.head_key)

    def claims(self, cfg: Any) -> Claim:
        """Return `NO` unless the head is one of `heads`, `DETECTOR` if the detector is one of `detectors`.

        A class that is derived from one of these counts as it. Of another detector with such a head it is
        `HEAD`, which `check` refuses by the detector's name.
        """
        if not is_one_of(self.heads, self.head_of(cfg.model)):
            return Claim.NO  # other models have a detector of the same type
        return Claim.DETECTOR if is_one_of(self.detectors, cfg.model) else Claim.HEAD

    def check_model(self, cfg: Any) -> None:
        """Refuse (ConfigError) types and settings of a config's model that are not exported."""
        types = (
            ('type', cfg.model, self.detectors),
            (f'{self.head_key}.type', self.head_of(cfg.model), self.heads),
        )
        for key, part, exported in types:
            if not is_one_of(exported, part):
                raise ConfigError(
                    f'{cfg.filename}: model.{key}={part.get("type")!r}; expected {" or ".join(exported)}'
                )
        head = {**self.absent_settings, **self.head_of(cfg.model)}
        wrong = [key for key, value in self.needed_settings.items() if head.get(key) != value]
        if wrong:
            raise ConfigError(
                f'{cfg.filename}: {", ".join(f"{self.head_key}.{key}={head.get(key)}" for key in wrong)}; '
                f'expected {", ".join(str(self.needed_settings[key]) for key in wrong)}, as in the published '
                'configs'
            )

    def check(self, cfg: Any, options: Options) -> None:
        """Do what `check_model` does; the options are not read."""
        self.check_model(cfg)

    def build(self, cfg: Any) -> nn.Module:
        """Return the model of a config, without weights, in evaluation mode; it has `input_sizes`.

        The `init_cfg` and `pretrained` of its `img_backbone` become None in `cfg` itself.

        ConfigError: it is not exported, or cannot be built.
        """
        self.check_model(cfg)
        register_named(cfg)  # several models have a detector of the same type
        model = build_without_weights(cfg, build_model, 'img_backbone')
        rule = self.preprocess_rule(cfg)
        model.input_sizes = (rule.num_cameras, *rule.input_size)
        return model

    def settings_of_cameras(self, cfg: Any) -> Mapping[str, Any]:
        """Return the part of a config that has `num_cams`, the number of cameras."""
        return cfg

    def camera_steps(self, cfg: Any) -> Sequence[Mapping[str, Any]]:
        """Return the steps of a config's test pipeline as `multiview_rule` reads them."""
        return test_pipeline(cfg)

    def preprocess_rule(self, cfg: Any) -> MultiViewRule:
        """Return the rule by which the config's test pipeline prepares the pictures of all cameras.

        ConfigError: `num_cams` is no whole number above 0, there is no test pipeline, or a step is not one of
        the rule's.
        """
        cameras = self.settings_of_cameras(cfg).get('num_cams', DEFAULT_CAMERAS)
        if type(cameras) is not int or cameras < 1:
            raise ConfigError(f'{cfg.filename}: num_cams={cameras!r}, expected a number of cameras')
        steps = self.camera_steps(cfg)
        with refused_by_name(cfg):
            return multiview_rule(steps, cameras)


class QueryBoxes(abc.ABC):
    """What a family has beside `CameraFamily` if its best pairs of query and class become boxes.

    Attributes:
        columns: of the model's box code: for each of its ten numbers the index in x, y, z, logarithms of
            three sizes, sine and cosine of the yaw, velocity in x and y.
    """

    compared = PREDICTIONS
    columns: ClassVar[Sequence[int]] = Z_AFTER_TWO_SIZES
    result = staticmethod(result)

    @abc.abstractmethod
    def num_queries(self, model: nn.Module) -> int:
        """Return the number of queries in the outputs of the head."""

    def box_facts(self, model: nn.Module) -> dict[str, Any]:
        """Return the entries of `postprocess_facts` that every decoding of queries to boxes reads.

        They are `max_num`, `post_center_range` (6 numbers, m), `score_threshold` (None: there is none) and
        `num_classes`.
        """
        coder = model.pts_bbox_head.bbox_coder
        return dict(
            max_num=int(coder.max_num),
            post_center_range=[float(value) for value in coder.post_center_range],
            score_threshold=coder.score_threshold,
            num_classes=self.num_classes(model),
        )

    def synthetic_outputs(
        self, model: nn.Module, runner: Stepper, spec: GraphSpec
    ) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield titles and outputs of the head by name that reach the limits of decoding them.

        The limits are those of the metadata of `runner`, the files on an engine; `spec` is not used.
        """
        queries, classes = self.num_queries(model), self.num_classes(model)
        return synthetic_outputs(runner.metadata.postprocess, queries, classes, self.columns)

    def other_limits(
        self, model: nn.Module, runner: Stepper, spec: GraphSpec
    ) -> Iterable[tuple[str, AbstractContextManager[None]]]:
        """Yield titles, and contexts in which a model and `runner`, its files, decode with other limits."""
        pairs = self.num_queries(model) * self.num_classes(model)
        return other_limits(model.pts_bbox_head.bbox_coder, runner.metadata.postprocess, pairs)


class BoxConvention:
    """What a family has before `CameraFamily` if its models know boxes of mmdet3d 0.17 and of 1.x.

    See `box_conventions`. Its methods do what `CameraFamily` does, and more.
    """

    def build(self, cfg: Any) -> nn.Module:
        """Return the model as `CameraFamily` does, with `box_convention` and `states_boxes` of the config.

        ConfigError: also if the config names another box coder than its head has, or a `box_convention` that
        there is not.
        """
        model = super().build(cfg)
        coder = (self.head_of(cfg.model).get('bbox_coder') or {}).get('type')
        if coder != CODER and isinstance(model.pts_bbox_head.bbox_coder, QueryBoxCoder):
            raise ConfigError(
                f'{cfg.filename}: model.{self.head_key}.bbox_coder.type={coder!r}; expected {CODER}, or a '
                f'head of your own code that builds it, by custom_imports'
            )
        state_convention(model, cfg)
        return model

    def load(self, model: nn.Module, path: str, weight_layout: str = 'auto') -> Any:
        """Read a checkpoint into the model and return the `Checkpoint`.

        The model's `box_convention` is set by the version of mmdet3d in it, unless the config states one.
        `weight_layout` has no effect. CheckpointError: no such file, damaged, or of another model.
        """
        checkpoint = super().load(model, path, weight_layout)
        note_convention(model, checkpoint)
        return checkpoint

    def added_settings(self, cfg: Any, meta: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the right `box_convention` by other code than `build` and `load` have.

        A proof compares the model's with it; `meta` is that of the checkpoint.
        """
        return dict(box_convention=trained_convention(cfg, meta))
