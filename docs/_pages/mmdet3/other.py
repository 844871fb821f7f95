"""The side of mmdet 3: results of seeded weights, `python -m docs._pages.mmdet3.other FOLDER...`.

A FOLDER has `weights.pth` with names of mmdet 2, `input.npy`, `job.json` (config, detector); `results.npz` is
added. Runs in `.venv-mmdet3`, where mmdet 2 is not: it imports nothing of this project that does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from docs._pages.mmdet3.kinds import BORDER, OPTIONS, ORIGINAL, PICTURE, SCALE, SIZE, segments

TEACHER = ('output_feature', 'teacher_backbone', 'teacher_neck', 'teacher_bbox_head', 'eval_teacher')
"""Keys of models that learn from another one: the student alone is compared."""


def _names() -> types.ModuleType:
    """Return the module of names, without the package round it, which asks for mmcv 1."""
    path = Path(__file__).resolve().parents[3] / 'mmdeploy_ext/weights/convert/mmdet3_names.py'
    spec = importlib.util.spec_from_file_location('mmdet3_names', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(config: str, detector: str, weights: dict[str, Any]) -> Any:
    """Return a detector of mmdet 3 with weights that have names of mmdet 2; every one has to be there."""
    import mmdet
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    register_all_modules()
    folder = Path(mmdet.__file__).parent / '.mim'
    os.chdir(folder)  # configs name others from here
    cfg = Config.fromfile(str(folder / 'configs' / config))
    cfg.model.pop('teacher_config', None)
    cfg.model.pop('teacher_ckpt', None)
    cfg.model.setdefault('train_cfg', None)
    if detector in ('KnowledgeDistillationSingleStageDetector', 'LAD'):
        cfg.model.type = 'SingleStageDetector'
        for key in TEACHER:
            cfg.model.pop(key, None)
    model = MODELS.build(cfg.model)
    names, state = _names(), model.state_dict()
    read = (key for key in state if not key.startswith(names.UNUSED_PREFIXES))
    mmdet2_names = {key: names.to_mmdet2_name(key, detector) for key in read}
    model.load_state_dict({**state, **{key: weights[name] for key, name in mmdet2_names.items()}})
    if unused := weights.keys() - mmdet2_names.values():
        raise SystemExit(f'{config}: weights that mmdet 3 has not: {sorted(unused)[:5]}')
    head = getattr(model, 'bbox_head', None)
    if head is not None and not hasattr(head, 'loss_cls'):
        head.loss_cls = None  # SSDHead of mmdet 3.3.0 is asked for it and has none
    return model.eval()


def results(model: Any, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Return boxes, scores, labels and masks of the picture, in pixels of its file."""
    import torch
    from mmdet.structures import DetDataSample

    sample = DetDataSample(
        metainfo=dict(
            img_id=0,
            img_path='',
            ori_shape=ORIGINAL,
            img_shape=PICTURE,
            pad_shape=SIZE,
            batch_input_shape=SIZE,
            scale_factor=(SCALE, SCALE),
            border=np.array(BORDER, np.float32),
        )
    )
    with torch.no_grad():
        sample = model.predict(torch.from_numpy(batch), [sample], rescale=True)[0]
    if 'pred_instances' not in sample:
        return segments(sample.pred_panoptic_seg.sem_seg[0].numpy())
    instances = sample.pred_instances
    arrays = dict(bboxes=instances.bboxes, scores=instances.scores, labels=instances.labels)
    if 'masks' in instances:
        arrays['masks'] = torch.as_tensor(instances.masks)
    return {key: value.numpy() for key, value in arrays.items()}


def with_option(model: Any, entries: dict[str, Any]) -> bool:
    """Change entries of a dense head's `test_cfg`; return whether it had one of them, and another value."""
    test = getattr(getattr(model, 'bbox_head', None), 'test_cfg', None) or {}
    changed = any(test.get(key, value) != value for key, value in entries.items())
    test.update({key: value for key, value in entries.items() if key in test})
    return changed


def without_operators_of_torchvision() -> None:
    """Let torchvision's wheel for CUDA be imported without a GPU: registering its operators would fail."""
    import torch

    if not torch.cuda.is_available():
        sys.modules['torchvision._meta_registrations'] = types.ModuleType('torchvision._meta_registrations')


def masked_convolutions_without_a_gpu() -> None:
    """Let guided anchoring run where mmcv has no kernel: convolve everywhere, take what a mask covers."""
    import torch
    from mmcv.ops import masked_conv

    def masked_conv2d(features: Any, mask: Any, weight: Any, bias: Any, padding: Any = 0) -> Any:
        everywhere = torch.nn.functional.conv2d(features, weight, bias, padding=padding)
        return torch.where((mask > 0)[None], everywhere, torch.zeros_like(everywhere))

    masked_conv.masked_conv2d = masked_conv2d


def main() -> int:
    """Run the jobs."""
    import torch

    warnings.filterwarnings('ignore')
    without_operators_of_torchvision()
    masked_convolutions_without_a_gpu()
    folders = [Path(word).resolve() for word in sys.argv[1:]]
    for folder in folders:
        job = json.loads((folder / 'job.json').read_text())
        weights = torch.load(folder / 'weights.pth', weights_only=True)
        try:
            model = build(job['config'], job['detector'], weights)
            batch = np.load(folder / 'input.npy')
            np.savez(folder / 'results.npz', **results(model, batch))
            for name, entries in OPTIONS.items():
                if with_option(model, entries):
                    np.savez(folder / f'results_{name}.npz', **results(model, batch))
        except (Exception, SystemExit):
            (folder / 'error.txt').write_text(traceback.format_exc())
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
