"""Small models of frames with seeded weights, and their exports."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest

import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
from dev.seeded.weights import write_seeded
from mmdeploy_ext.families import detector as detectors
from mmdeploy_ext.families.detector_files import export_files

if TYPE_CHECKING:
    from pathlib import Path


@dataclasses.dataclass(frozen=True)
class SeededToy:
    """A toy with seeded weights.

    Attributes:
        name: of its exports.
        config: path of its config.
        changes: dotted key of the config -> value, for fewer layers than the example has.
    """

    name: str
    config: str
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)

    def load(self, folder: Path) -> detectors.Detector:
        """Return the toy with its weights, which are written into a folder."""
        path = folder / 'toy.pth'
        write_seeded(self.config, path, cfg_options=self.changes)
        return detectors.load(self.config, path, self.changes)

    def export(self, detector: detectors.Detector, folder: Path, **options: Any) -> list[str]:
        """Export the toy by options of its family; return the paths of its files."""
        chosen = detectors.resolve_opset(detector.family.choose(opset=0, **options), detector.model)
        return export_files(detector, chosen, str(folder / self.name))[0]

    def fixtures(self, **options: Any) -> tuple[Any, Any]:
        """Return fixtures of a module: the loaded toy, which has to be named `detector`, and its files."""

        @pytest.fixture(scope='module')
        def detector(tmp_path_factory: pytest.TempPathFactory) -> detectors.Detector:
            return self.load(tmp_path_factory.mktemp(self.name))

        @pytest.fixture(scope='module')
        def paths(detector: detectors.Detector, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
            return self.export(detector, tmp_path_factory.mktemp('export'), **options)

        return detector, paths


BEVFORMER = SeededToy('bevformer', 'projects/configs/BEVFormer/bevformer_toy.py')
SPARSE4D = SeededToy('sparse4d', 'projects/configs/Sparse4D/sparse4d_toy.py')
REFINE = ['deformable', 'ffn', 'norm', 'refine']
SPARSE4D_SHORT = SeededToy(
    'sparse4d',
    SPARSE4D.config,
    {'model.head.operation_order': [*REFINE, 'temp_gnn', 'gnn', 'norm', *REFINE]},
)
"""With one layer without the memory and one with it."""
SPARSEDRIVE = SeededToy('sparsedrive', 'projects/configs/SparseDrive/sparsedrive_toy.py')
SPARSEDRIVE_SHORT = SeededToy(
    'sparsedrive',
    SPARSEDRIVE.config,
    {
        'data.test.data_aug_conf.final_dim': (64, 128),
        'model.head.motion_plan_head.instance_queue.feature_map_scale': (2, 4),
        'model.head.det_head.anchor_encoder.out_loops': 1,
        'model.head.det_head.operation_order': ['deformable', 'ffn', 'refine', 'temp_gnn', 'refine'],
        'model.head.map_head.operation_order': ['refine', 'temp_gnn', 'gnn', 'deformable', 'ffn', 'refine'],
        'model.head.motion_plan_head.operation_order': ['temp_gnn', 'gnn', 'norm', 'cross_gnn', 'refine'],
    },
)
"""With one aggregation a head, small embeddings and images."""
PETR = SeededToy('petr', 'projects/configs/PETR/petr_toy.py')
PETRV2 = SeededToy('petrv2', 'projects/configs/PETR/petrv2_toy.py')
STREAMPETR = SeededToy('streampetr', 'projects/configs/StreamPETR/stream_petr_toy.py')
BEVDET4D = SeededToy('bevdet4d', 'projects/configs/BEVDet/bevdet_toy.py')
BEVDET = SeededToy('bevdet', 'projects/configs/BEVDet/bevdet_toy_single.py')
FLASHOCC = SeededToy('flashocc', 'projects/configs/FlashOcc/flashocc_toy.py')
VAD = SeededToy('vad', 'projects/configs/VAD/vad_toy.py')
VAD_DEEP = SeededToy(
    'vad',
    VAD.config,
    {f'model.pts_bbox_head.transformer.{name}.num_layers': 3 for name in ('decoder', 'map_decoder')},
)
"""With as many layers as Autoware's node takes."""
PANOPTIC = SeededToy('flashocc_panoptic', 'projects/configs/FlashOcc/flashocc_panoptic_toy.py')
TOYS = STREAMPETR, PETR, PETRV2, BEVFORMER, SPARSE4D
