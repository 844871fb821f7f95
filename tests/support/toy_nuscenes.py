"""A small nuScenes that is generated with its info files: test loops and metrics run over it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

INFOS = 'toy_nuscenes2d_temporal_infos_val.pkl'
"""Name of the info file of the scenes for validation, with cameras and times."""


def write(folder: Path, **options: Any) -> Path:
    """Generate the data set with one scene for training; return its folder, which is in `folder`."""
    import mmdeploy_ext.families.mmdet3d_plugin  # noqa: F401
    from mmdeploy_ext.families.synthetic.nuscenes import SetOptions, ensure_toy_nuscenes
    from mmdeploy_ext.families.synthetic.nuscenes_infos import create_infos

    root = folder / 'toy_nuscenes'
    ensure_toy_nuscenes(root, SetOptions(train_scenes=1, **options), jobs=1, quiet=True)
    create_infos(str(root), str(root), 'toy_nuscenes', 'v1.0-trainval', 0)
    return root


def evaluate(config: str, checkpoint: str, infos: Path, work_dir: Path, *options: str, out: str = '') -> int:
    """Run the test loop over the frames of an info file; return its exit status."""
    from mmdeploy_ext.cli import test_app

    words = [config, checkpoint, '--eval=bbox', '--work-dir', str(work_dir)]
    words += ['--out', str(work_dir / out)] if out else []
    data = [f'data.test.ann_file={infos}', f'data.test.data_root={infos.parent}/', 'data.workers_per_gpu=0']
    return test_app.main([*words, '--cfg-options', *data, *options])


def metrics(work_dir: Path, engine: str) -> dict[str, float]:
    """Return the metrics that a run of 'pth' or 'onnx' left in its work directory."""
    return json.loads((work_dir / f'metrics_{engine}.json').read_text())['metrics']


def assert_equal_scores(work_dir: Path) -> None:
    """Assert that NDS and mAP of both engines are equal."""
    reference, candidate = metrics(work_dir, 'pth'), metrics(work_dir, 'onnx')
    assert reference.keys() == candidate.keys()
    scores = [name for name in reference if name.endswith(('NDS', 'mAP'))]
    assert len(scores) == 2
    assert all(abs(reference[name] - candidate[name]) <= 5e-4 for name in scores)
