"""The base of families of several cameras whose queries become boxes without NMS."""

import abc
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

from torch import nn

from mmdeploy_ext.contract.spec import GraphSpec
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.parts.query_limits import other_limits, synthetic_outputs
from mmdeploy_ext.families.parts.runtime.query_boxes import PREDICTIONS
from mmdeploy_ext.families.parts.samples import result
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.runtime.frames import Stepper

Z_AFTER_TWO_SIZES = (0, 1, 3, 4, 2, 5, 6, 7, 8, 9)
"""Columns of a box code in the order of `query_limits.IN_ORDER`: the centre's z is between the sizes."""
DEFAULT_CAMERAS = 6
"""Number of cameras of a config without `num_cams`."""


def cameras_of(cfg: Any) -> int:
    """Return `num_cams` of a config, the number of its cameras; ConfigError if that is no number of them."""
    cameras = cfg.get('num_cams', DEFAULT_CAMERAS)
    if type(cameras) is not int or cameras < 1:
        raise ConfigError(f'{cfg.filename}: num_cams={cameras!r}, expected a number of cameras')
    return cameras


class CameraQueryFamily(SequenceFamily):
    """Frames of cameras in, the best pairs of query and class out as boxes; a memory between frames.

    Attributes:
        columns: of the model's box code, see `query_limits.synthetic_outputs`.
    """

    of_config = "size and cameras are the config's"
    task = 'bbox3d'
    samples = 'frames'
    memory = True
    compared = PREDICTIONS
    columns: ClassVar[Sequence[int]] = Z_AFTER_TWO_SIZES
    result = staticmethod(result)

    @abc.abstractmethod
    def num_queries(self, model: nn.Module) -> int:
        """Return the number of queries in the outputs of the head."""

    def box_facts(self, model: nn.Module) -> dict[str, Any]:
        """Return the entries of `postprocess_facts` that every decoding of queries to boxes reads."""
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
        queries, classes = self.num_queries(model), self.num_classes(model)
        return synthetic_outputs(runner.metadata.postprocess, queries, classes, self.columns)

    def other_limits(
        self, model: nn.Module, runner: Stepper, spec: GraphSpec
    ) -> Iterable[tuple[str, AbstractContextManager[None]]]:
        pairs = self.num_queries(model) * self.num_classes(model)
        return other_limits(model.pts_bbox_head.bbox_coder, runner.metadata.postprocess, pairs)
