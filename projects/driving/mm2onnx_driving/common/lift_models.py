"""Families of detectors that lift pictures into a bird's-eye view: rule of pictures, and build."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from mm2onnx_driving.common.camera_data import LiftData
from mm2onnx_driving.common.camera_models import CameraFamily, CameraModels
from mm2onnx_driving.layers.datasets.bevdet_dataset import MEAN, STD, resize_and_crop
from mmdeploy_ext.base.config import refused_values, test_pipeline
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.spec.preparation import MultiViewRule
from mmdeploy_ext.upstream.operators.cells import CellTables

LOADER = 'PrepareImageInputs'


def check_view(cfg: Any) -> None:
    """Raise ConfigError for views that are not exported."""
    if cfg.model.get('upsample'):
        raise ConfigError(f'{cfg.filename}: model.upsample=True is not supported; expected False')
    if cfg.model.get('img_view_transformer', {}).get('accelerate'):
        raise ConfigError(
            f'{cfg.filename}: model.img_view_transformer.accelerate=True keeps the cells of the first frame; '
            f'expected False'
        )


class LiftModels(CameraModels):
    def check_coder(self, coder: Mapping[str, Any], key: str) -> None:
        pass  # its `pc_range` is x, y

    def preprocess_rule(self, cfg: Any) -> MultiViewRule:
        with refused_values(cfg, 'the test pipeline'):
            loaders = [step for step in test_pipeline(cfg) if step['type'] == LOADER]
            if len(loaders) != 1:
                raise ConfigError(
                    f'{cfg.filename}: the test pipeline has no {LOADER}, which loads the images'
                )
            config = loaders[0]['data_config']
            scale, resized, (left, top) = resize_and_crop(config)
            return MultiViewRule(
                mean=MEAN,
                std=STD,
                to_rgb=False,  # upstream subtracts the mean of R, G, B from B, G, R
                source=tuple(config['src_size']),
                scale=scale,
                resized=resized[::-1],
                crop=(top, left),
                size=tuple(config['input_size']),
                num_cameras=len(config['cams']),
                cameras=tuple(config['cams']),
            )


class LiftFamily(CameraFamily, SequenceFamily):
    ignores_places = True  # the motion is composed in float64
    data = LiftData()

    def claims(self, cfg: Any) -> Any:
        claim = super().claims(cfg)
        return claim if 'img_view_transformer' in cfg.model else type(claim).NO

    def build(self, cfg: Any) -> nn.Module:
        model = super().build(cfg)
        model.rule = self.preprocess_rule(cfg)
        columns, rows, _ = (int(size) for size in model.img_view_transformer.grid_size)
        model.cell_tables = CellTables(columns * rows)
        return model
