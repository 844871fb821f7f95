"""The side of mmdet 3: pictures as it gives them to the model, for `pictures.py`.

Runs in `.venv-mmdet3`, where mmdet 2 is not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from docs._pages.mmdet3.kinds import KINDS
from docs._pages.mmdet3.other import without_operators_of_torchvision

PICTURE = Path(__file__).resolve().parents[3] / 'demo/toy.jpg'
LABELS = ('LoadAnnotations', 'LoadPanopticAnnotations')


def picture3(name: str) -> np.ndarray:
    """Return the batch of a picture, (1, 3, H, W) float32, as mmdet 3 gives it to the model."""
    import mmdet
    from mmcv.transforms import Compose
    from mmdet.registry import MODELS
    from mmengine.config import Config

    cfg = Config.fromfile(str(Path(mmdet.__file__).parent / '.mim/configs' / name))
    steps = [step for step in cfg.test_dataloader.dataset.pipeline if step.type not in LABELS]
    loaded = Compose(steps)(dict(img_path=str(PICTURE), img_id=0))
    prepare = MODELS.build(cfg.model.data_preprocessor)
    batch = prepare(dict(inputs=[loaded['inputs']], data_samples=[loaded['data_samples']]), False)
    return batch['inputs'].numpy()


def main() -> int:
    """Write the pictures of all configs."""
    without_operators_of_torchvision()
    from mmdet.utils import register_all_modules

    register_all_modules()
    for name in KINDS:
        np.save(Path(sys.argv[1]) / f'{name.replace("/", "__")}.npy', picture3(name))
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
