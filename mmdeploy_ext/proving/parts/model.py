"""The model of any mmcv config, without a family."""

from __future__ import annotations

import copy
import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.base.config import config_sha256, load_config
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.files import sha256_file
from mmdeploy_ext.base.source_code import model_classes
from mmdeploy_ext.exporting.copy import copied, prepare
from mmdeploy_ext.families.base import DETECTOR, claiming_family
from mmdeploy_ext.upstream import compat
from mmdeploy_ext.upstream.models.building import build_without_weights, registered_class
from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint, load_strict

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclasses.dataclass
class ModelFactory:
    """A config and its weights; `make` returns fresh models.

    Attributes:
        config: path of the config.
        checkpoint: path of the weights.
        cfg: mmcv's config.
        cfg_options: overrides of the config.
    """

    config: str
    checkpoint: str
    cfg: Any
    cfg_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    _can_be_copied: bool = True

    @functools.cached_property
    def pristine(self) -> torch.nn.Module:
        """The model to copy; it never runs."""
        return self._build()

    def make(self) -> torch.nn.Module:
        """Return a fresh model with its weights, in evaluation mode.

        Copied, or rebuilt if it cannot be copied: queues, locks.
        """
        if self._can_be_copied:
            pristine = self.pristine
            try:
                return copied(pristine)
            except Exception:
                self._can_be_copied = False
        return self._build()

    def make_prepared(self) -> torch.nn.Module:
        """Return a model in forms for the exporters."""
        return prepare(self.make())

    def build(self) -> torch.nn.Module:
        """Return the model without its weights, in evaluation mode."""
        model = build_without_weights(copy.deepcopy(self.cfg), _builder(self.cfg))
        model.eval()
        return model

    def _build(self) -> torch.nn.Module:
        model, family = self.build(), claiming_family(self.cfg, DETECTOR)
        model.requires_grad_(False)  # the tracer refuses argument weights with gradients
        checkpoint = load_checkpoint(self.checkpoint).renamed(model, self.cfg.model.get('type', ''))
        if family is None or self.cfg.get('fork'):
            load_strict(model, checkpoint)
        else:  # sparse kernels of any layout
            family.load_weights(model, checkpoint)
        return model

    def facts(self) -> dict[str, Any]:
        """Return the hashes of config, checkpoint and the user's classes for proofs."""
        return dict(
            config=Path(self.config).name,
            config_sha256=config_sha256(self.cfg),
            checkpoint_sha256=sha256_file(self.checkpoint),
            classes=[entry.to_json() for entry in model_classes(self.pristine)],
        )


def read_model(config: str, checkpoint: str, cfg_options: Mapping[str, Any] | None = None) -> ModelFactory:
    """Read a config and its imports; ConfigError: unreadable, or no model."""
    compat.apply()
    cfg = load_config(str(config), dict(cfg_options or {}))
    if not cfg.get('model'):
        raise ConfigError(f'{config}: has no `model`; expected a detector config')
    import mmdeploy_ext.families.common.upstream_layers  # noqa: F401, it adds to PREPARATIONS

    return ModelFactory(str(config), str(checkpoint), cfg, dict(cfg_options or {}))


def _builder(cfg: Any) -> Any:
    from mmdet.models import build_detector
    from mmdet.models.builder import DETECTORS

    if registered_class(DETECTORS, cfg.model.type) is not None and 'mmdet3d.models' not in sys.modules:
        return build_detector
    try:
        from mmdet3d.models import build_model
    except ImportError:
        return build_detector
    return build_model
