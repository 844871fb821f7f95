"""A sparse LiDAR backbone from its portable ONNX file: points or voxels to a bird's-eye view. No torch."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.errors import DataError, InferenceError, ModelFileError
from mmdeploy_ext.engines import BACKENDS, build_backend
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.runtime.preprocess.points import voxelise
from mmdeploy_ext.runtime.sparse.buckets import BEV, FACTS, VOXELS
from mmdeploy_ext.runtime.sparse.buckets import feeds as table_feeds
from mmdeploy_ext.runtime.sparse.engine import checked_features
from mmdeploy_ext.runtime.sparse.plan import PortableFacts
from mmdeploy_ext.runtime.sparse.rulebook import build
from mmdeploy_ext.spec.metadata import PREFIX, check_entries, damaged, read_entry, read_props
from mmdeploy_ext.spec.preparation import FusionRule, VoxelRule

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnxruntime


class _Session(OnnxRuntimeBackend):
    """A session without a memory plan, which takes seconds with unknown lengths, quadratic in the graph."""

    def _options(self) -> onnxruntime.SessionOptions:
        options = super()._options()
        options.enable_mem_reuse = False
        return options


class ScnOnnx(contextlib.ExitStack):
    """One portable file on ONNX Runtime or OpenVINO; a context manager.

    Attributes:
        form: rulebook inputs, 'buckets' or 'tables', see `runtime.sparse.buckets.feeds`.
        order: coordinate axes of the graph, 'xyz' or 'zyx'.
        output_shape: (1, C, H, W), rows along y, columns along x (BEVFusion: x, y).
        milliseconds: last step's 'voxelise', 'rulebook', 'network'.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        engine: str = 'OnnxRuntimeBackend',
        threads: int = 0,
        **options: Any,
    ) -> None:
        """Open a file of `portable.to_onnx`; OpenVINO needs a file of `pytorch2onnx.py`.

        `threads` 0 uses all cores. `spinning` is off: the next sweep's rulebook needs the cores.
        """
        super().__init__()
        if not threads:
            has_affinity = hasattr(os, 'sched_getaffinity')
            threads = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        self.threads = threads
        if engine == 'OnnxRuntimeBackend':
            self.session = _Session(str(path), **{'threads': self.threads, 'spinning': 'never', **options})
            self.session.open_session()
            self.callback(self.session.deactivate)
            self.props = self.session.session.get_modelmeta().custom_metadata_map
        else:
            if engine in BACKENDS and 'threads' in BACKENDS[engine].keys:
                options = dict(threads=self.threads, **options)
            self.session = self.enter_context(build_backend(engine, str(path), **options))
            self.props = read_props(path)
        facts, self.rule = _read_facts(self.props, path)
        self.path, self.form, self.order = str(path), facts.form, facts.order
        self.in_channels, self.output_shape, self.plan = facts.in_channels, facts.output_shape, facts.plan
        self.milliseconds: dict[str, float] = {}

    def step(
        self, points: np.ndarray | None = None, voxels: tuple[np.ndarray, np.ndarray] | None = None
    ) -> np.ndarray:
        """Map (1, C, H, W) float32 of one sweep, given as points or voxels.

        `points` (P, D) metres, LiDAR frame; points out of range and voxels beyond `max_voxels` are dropped.
        `voxels`: features (N, `in_channels`) and distinct coordinates (N, 4) integers, sample 0 and axes in
        `order`.

        Raises:
            DataError: malformed input, or no point in range.
            InferenceError: the engine failed.
        """
        if (points is None) == (voxels is None):
            raise DataError('step: pass either points or voxels')
        start = time.perf_counter()
        if voxels is None:
            features, coordinates = self.voxels(points)
        else:
            features, coordinates = voxels
            if self.rule.mode == 'hard' and len(features) > self.rule.max_voxels:
                raise DataError(
                    f'voxels: got {len(features)}, the model accepts at most {self.rule.max_voxels} '
                    '(max_voxels); remove some, or pass points'
                )
        voxelised = time.perf_counter()
        feeds = self.feeds(features, coordinates)
        built = time.perf_counter()
        dense = self.session.run(feeds)[BEV]
        done = time.perf_counter()
        spent = dict(voxelise=voxelised - start, rulebook=built - voxelised, network=done - built)
        self.milliseconds = {part: seconds * 1e3 for part, seconds in spent.items()}
        if dense.shape != self.output_shape:
            raise InferenceError(f'{self.path}: returned shape {dense.shape}, expected {self.output_shape}')
        return dense

    def feeds(self, features: np.ndarray, coordinates: np.ndarray) -> dict[str, np.ndarray]:
        rulebook = build(self.plan, coordinates, self.threads)
        features = checked_features(features, len(rulebook.levels[0]), self.in_channels)
        return {VOXELS: features, **table_feeds(self.plan, rulebook, self.form, self.threads)}

    def voxels(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean features (N, values) and coordinates (N, 4) in `order` of points."""
        features, coordinates = voxelise(points, self.rule)
        if not len(features):
            raise DataError(
                f'points: none of {len(points)} is inside the range {self.rule.point_cloud_range} m; '
                f'check the frame and unit of the sweep'
            )
        if self.rule.order != self.order:
            coordinates = coordinates[:, [0, 3, 2, 1]]
        return features, coordinates


def _read_facts(props: Mapping[str, str], path: object) -> tuple[PortableFacts, VoxelRule]:
    if FACTS not in props:
        raise ModelFileError(
            f'{path}: is not a portable sparse backbone ({FACTS} is missing from its metadata); '
            f'export it with {tool("export --backbone")} --target portable'
        )
    check_entries(props, path)
    facts = read_entry(props, FACTS.removeprefix(PREFIX), path, PortableFacts)
    key = 'voxels' if PREFIX + 'voxels' in props else 'preprocess'
    rule = read_entry(props, key, path, VoxelRule | FusionRule)
    rule = getattr(rule, 'voxels', rule)
    if rule is None:
        raise damaged(path, key, 'voxels is None, expected the rule that turns points into voxels')
    return facts, rule
