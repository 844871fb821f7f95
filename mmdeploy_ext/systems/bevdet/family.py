"""The family of BEVDet and BEVDet4D: the configs that it claims and refuses, and the models."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from mmdeploy_ext.config.config import refused_values, test_cfg_key, test_pipeline
from mmdeploy_ext.contract.memory import MemorySpec
from mmdeploy_ext.contract.spec import ColumnGroup
from mmdeploy_ext.exporting.ops.cells import CellTables
from mmdeploy_ext.families.common.camera_models import CameraFamily, CameraModels
from mmdeploy_ext.families.common.detector_parts import test_cfg_of
from mmdeploy_ext.families.sequence import SequenceFamily
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.systems.bevdet.data import BevDetData
from mmdeploy_ext.systems.bevdet.facts import BevDetFacts
from mmdeploy_ext.systems.bevdet.graphs import VIEWS, facts_of, graphs
from mmdeploy_ext.systems.bevdet.model.dataset import MEAN, STD, resize_and_crop
from mmdeploy_ext.systems.bevdet.reference import BevDetReference
from mmdeploy_ext.systems.bevdet.runtime import FORM, VIEW, BevDetOnnx
from mmdeploy_ext.util.errors import ConfigError

NMS_TYPES = ('rotate', 'circle')
PER_TASK = ('nms_type', 'nms_thr', 'nms_rescale_factor')
"""Test settings that may be lists of one value per task."""
EXACT = ColumnGroup(rtol=0.0, atol=1e-6)
LOADER = 'PrepareImageInputs'


def check_model(cfg: Any) -> None:
    """Raise ConfigError for views and suppressions that are not exported."""
    test, tasks = test_cfg_of(cfg).get('pts') or {}, len(cfg.model.pts_bbox_head.tasks)
    for key in PER_TASK:
        values = test.get(key)
        if isinstance(values, list | tuple) and len(values) < tasks:
            raise ConfigError(
                f'{cfg.filename}: {test_cfg_key(cfg)}.pts.{key}={list(values)}; expected one value, or one '
                f'for each of the {tasks} tasks'
            )
    kinds = test.get('nms_type')
    kinds = list(kinds) if isinstance(kinds, list | tuple) else [kinds]
    if not set(kinds) <= {*NMS_TYPES}:
        raise ConfigError(
            f'{cfg.filename}: {test_cfg_key(cfg)}.pts.nms_type={kinds}; expected {" or ".join(NMS_TYPES)}, '
            f'or a list of them'
        )
    if cfg.model.get('img_view_transformer', {}).get('accelerate'):
        raise ConfigError(
            f'{cfg.filename}: model.img_view_transformer.accelerate=True keeps the cells of the first frame; '
            f'expected False'
        )


class BevDetModels(CameraModels):
    def check_coder(self, coder: Mapping[str, Any], key: str) -> None:
        pass  # its `pc_range` is x, y

    def preprocess_rule(self, cfg: Any) -> MultiViewRule:
        with refused_values(cfg, 'the test pipeline'):
            loaders = [step for step in test_pipeline(cfg) if step['type'] == LOADER]
            if len(loaders) != 1:
                raise ConfigError(
                    f'{cfg.filename}: the test pipeline has no {LOADER}, by which BEVDet loads pictures'
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


class BevDetFamily(CameraFamily, SequenceFamily):
    name = 'bevdet'
    models = BevDetModels(
        detectors=('BEVDet', 'BEVDet4D', 'BEVDepth4D'), heads=('CenterHead',), check_further=check_model
    )
    untraced = (
        '.forward', 'forward_test', 'simple_test', 'simple_test_pts', '.extract_feat', '.extract_img_feat',
        'image_encoder', 'bev_encoder', 'prepare_inputs', 'prepare_bev_feat', 'shift_feature', 'gen_grid',
        'img_view_transformer.forward', 'get_bboxes', 'get_task_detections', 'decode',
    )  # fmt: skip
    files = (FORM,)
    opens = BevDetOnnx
    ignores_places = True  # the motion is composed in float64
    data = BevDetData()
    reference, graphs, facts = staticmethod(BevDetReference), staticmethod(graphs), staticmethod(facts_of)

    def claims(self, cfg: Any) -> Any:
        claim = super().claims(cfg)
        return claim if 'img_view_transformer' in cfg.model else type(claim).NO

    def build(self, cfg: Any) -> nn.Module:
        model = super().build(cfg)
        model.rule = self.preprocess_rule(cfg)
        columns, rows, _ = (int(size) for size in model.img_view_transformer.grid_size)
        model.cell_tables = CellTables(columns * rows)
        return model

    def num_classes(self, model: nn.Module) -> int:
        return sum(model.pts_bbox_head.num_classes)

    def memory_spec(self, facts: BevDetFacts) -> MemorySpec:
        if not facts.adjacent:
            return MemorySpec(needed=facts.output_names)
        tensors = dict(views=VIEWS, exists=EXACT, camera2ego=EXACT)
        return MemorySpec(tensors=tensors, outputs=dict(views=VIEW), needed=facts.output_names)
