"""Run both versions of mmdet on the same seeded weights: `python -m docs._pages.mmdet3.measure OUT`.

Each config of `kinds.py` is translated, built by mmdet 2.28 with seeded weights and run on a generated
picture; mmdet 3 (`make env-mmdet3`) builds its own config and gets the same weights under its names. Results
are matched as in a proof. `docs/mmdet3.json` is what the page is made from.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from docs._pages.mmdet3.kinds import (
    BORDER,
    KINDS,
    OPTIONS,
    OPTIONS2,
    ORIGINAL,
    PICTURE,
    SCALE,
    SIZE,
    segments,
)
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).resolve().parents[3]
OTHER = ROOT / '.venv-mmdet3'
DATA = ROOT / 'docs/mmdet3.json'
TOGETHER = 8
"""Jobs of one process of mmdet 3, which takes 10 s to start."""


def configs3() -> Path:
    """Return the folder of mmdet 3's configs.

    Raises:
        UsageError: the environment is not there.
    """
    folders = sorted(OTHER.glob('lib/python*/site-packages/mmdet/.mim/configs'))
    if not folders:
        raise UsageError(f'{OTHER}: has no mmdet 3; run `make env-mmdet3`')
    return folders[0]


def batch_of(cfg: Any) -> np.ndarray:
    """Return a generated picture as the detector takes it: (1, 3, *SIZE) float32, padded with 0."""
    from mmdeploy_ext.seeded.weights import normalised_photograph, seeded_scene

    deviation, offset = normalised_photograph(cfg)
    drawn = seeded_scene(11, *PICTURE).numpy() * deviation + offset
    batch = np.zeros((1, 3, *SIZE), np.float32)
    centred = any(step['type'] == 'RandomCenterCropPad' for step in cfg.data.test.pipeline[1]['transforms'])
    top, left = (int(BORDER[0]), int(BORDER[2])) if centred else (0, 0)
    batch[:, :, top : top + PICTURE[0], left : left + PICTURE[1]] = drawn
    return batch


def results2(model: Any, batch: np.ndarray) -> dict[str, np.ndarray]:
    """Return what mmdet 2.28's own `simple_test` gives, in pixels of the file."""
    import torch

    meta = dict(
        filename='',
        ori_shape=(*ORIGINAL, 3),
        img_shape=(*PICTURE, 3),
        pad_shape=(*SIZE, 3),
        batch_input_shape=SIZE,
        scale_factor=np.full(4, SCALE, np.float32),
        flip=False,
        flip_direction=None,
        border=np.array(BORDER, np.float32),
    )
    with torch.no_grad():
        results = model.simple_test(torch.from_numpy(batch), [meta], rescale=True)[0]
    if isinstance(results, dict):
        if 'ins_results' not in results:
            return segments(results['pan_results'])
        results = results['ins_results']
    if isinstance(results, np.ndarray):  # proposals
        results = [results]
    boxes, masks = results if isinstance(results, tuple) else (results, None)
    arrays = dict(
        bboxes=np.concatenate([part[:, :4] for part in boxes]),
        scores=np.concatenate([part[:, 4] for part in boxes]),
        labels=np.concatenate([np.full(len(part), label) for label, part in enumerate(boxes)]),
    )
    if masks is not None:
        judged = isinstance(masks, tuple) or (len(masks) == 2 and len(boxes) != 2)
        masks, scores = masks if judged else (masks, None)
        flat = [np.asarray(mask) for part in masks for mask in part]
        arrays['masks'] = np.array(flat, bool).reshape(-1, *ORIGINAL)
        if scores is not None:
            flat = [np.asarray(part, np.float32).reshape(-1) for part in scores]
            arrays['mask_scores'] = np.concatenate(flat)
    return arrays


@contextlib.contextmanager
def last_mask(model: Any) -> Iterator[bool]:
    """Let HTC take the masks of its last stage instead of the average of all; whether the model is one."""
    from mmdet.models.roi_heads import htc_roi_head

    merge_aug_masks = htc_roi_head.merge_aug_masks
    htc_roi_head.merge_aug_masks = lambda masks, *_: masks[-1]
    try:
        yield type(getattr(model, 'roi_head', None)) is htc_roi_head.HybridTaskCascadeRoIHead
    finally:
        htc_roi_head.merge_aug_masks = merge_aug_masks


def prepare(name: str, folder: Path) -> str:
    """Write the job of a config, with the results of mmdet 2.28; return the name of its parts."""
    import torch

    from mmdeploy_ext.families.base import FAMILIES, find_family, load_families
    from mmdeploy_ext.seeded.weights import seeded_model
    from mmdeploy_ext.weights.convert.mmdet3_config import read_mmdet3_config, to_mmdet2_config
    from mmdeploy_ext.zoo.configs import part_types

    cfg = to_mmdet2_config(read_mmdet3_config(configs3() / name))
    load_families('')
    claimed = any(family.claims(cfg) for family in FAMILIES.values())
    model = seeded_model(cfg, find_family(cfg) if claimed or 'bbox_head' not in cfg.model else None).eval()
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob('results*.npz'), folder / 'error.txt'):
        old.unlink(missing_ok=True)
    batch = batch_of(cfg)
    types = part_types(cfg)
    head = types['head'] or cfg.model.get('panoptic_head', {}).get('type', '')
    job = dict(config=name, detector=cfg.model.type, head=head)
    results = results2(model, batch)
    np.savez(folder / 'results2.npz', **results)
    if 'mask_scores' in results:
        np.savez(folder / 'results2_mask_scores.npz', **results | {'scores': results['mask_scores']})
    with last_mask(model) as changed:
        if changed:
            np.savez(folder / 'results2_last_mask.npz', **results2(model, batch))
    np.save(folder / 'input.npy', batch)
    torch.save(dict(model.state_dict()), folder / 'weights.pth')
    (folder / 'job.json').write_text(json.dumps(job))
    return head


def figures(folder: Path) -> dict[str, Any]:
    """Return the figures of a job; where they differ, with the first option that makes them equal."""
    result = compare(folder)
    if result['equal']:
        return result
    pairs = {option: ('results2.npz', f'results_{option}.npz') for option in OPTIONS}
    pairs |= {option: (f'results2_{option}.npz', 'results.npz') for option in OPTIONS2}
    for option, pair in pairs.items():
        if all((folder / name).is_file() for name in pair) and (again := compare(folder, *pair))['equal']:
            return {**result, 'option': option, 'with_option': again}
    return result


def compare(
    folder: Path, mmdet2_file: str = 'results2.npz', mmdet3_file: str = 'results.npz'
) -> dict[str, Any]:
    """Return the figures of a job: matched one to one by class, IoU 0.999 (masks 0.995), scores 1e-4."""
    from mmdeploy_ext.runtime.detections import Detections, Instances
    from mmdeploy_ext.tasks import bbox2d, mask

    mmdet2, mmdet3 = (dict(np.load(folder / name)) for name in (mmdet2_file, mmdet3_file))
    rows = []
    if np.any(mmdet2['bboxes']) or 'masks' not in mmdet2:
        sides = (Detections(side['bboxes'], side['scores'], side['labels']) for side in (mmdet2, mmdet3))
        rows.append(bbox2d.match_detections('', *sides))
    if 'masks' in mmdet2:
        sides = (
            Instances(side['masks'].astype(bool), side['scores'], side['labels']) for side in (mmdet2, mmdet3)
        )
        rows.append(mask.match_detections('', *sides, score_thr=0.05))
    return dict(
        results2=len(mmdet2['scores']),
        results3=len(mmdet3['scores']),
        reference=rows[0].reference,
        matched=min(row.matched for row in rows),
        missing=max(row.missing for row in rows),
        extra=max(row.extra for row in rows),
        outside=max(row.outside for row in rows),
        worst_iou=min(row.worst_iou for row in rows),
        worst_score=max(row.worst_score for row in rows),
        masks='masks' in mmdet2,
        equal=all(row.passed for row in rows) and rows[0].matched > 0,
        reason='; '.join(row.reason for row in rows if row.reason),
    )


def folder_of(out: Path, name: str) -> Path:
    """Return the folder of a config's job."""
    return out / name.replace('/', '__').removesuffix('.py')


def measure(names: Sequence[str], out: Path) -> Iterator[dict[str, Any]]:
    """Yield what is known of each config: its figures, or why there are none."""
    jobs = {}
    for name in names:
        folder = folder_of(out, name)
        try:
            jobs[name] = folder, prepare(name, folder)
        except Exception as error:
            traceback.print_exc()
            why = f'mmdet 2.28: {type(error).__name__}: {str(error)[:300]}'
            yield dict(config=name, head='', error=why)
    folders = [str(folder) for folder, _ in jobs.values()]
    command = [str(OTHER / 'bin/python'), '-m', 'docs._pages.mmdet3.other', *folders]
    subprocess.run(command, cwd=ROOT, check=False)
    for name, (folder, head) in jobs.items():
        if (folder / 'results.npz').is_file():
            yield dict(config=name, head=head, **figures(folder))
            (folder / 'weights.pth').unlink()
            continue
        error_file = folder / 'error.txt'
        text = error_file.read_text() if error_file.is_file() else 'it ended without a word'
        yield dict(config=name, head=head, error=f'mmdet 3.3: {text.strip().splitlines()[-1][:300]}')


def body(args: argparse.Namespace) -> int:
    """Measure the configs that are asked for, or those that are not measured yet."""
    from mmdeploy_ext import compat
    from mmdeploy_ext.core.files import read_json, write_json

    compat.apply()
    configs3()
    content = read_json(DATA) if DATA.is_file() else {}
    rows = {row['config']: row for row in content.get('rows', ())}
    if args.again:
        for name in rows:
            folder = folder_of(args.out, name)
            if (folder / 'results.npz').is_file():
                rows[name] = dict(config=name, head=rows[name]['head'], **figures(folder))
        write_json(DATA, {**content, 'rows': [rows[name] for name in KINDS if name in rows]})
        return 0
    names = [name for name in KINDS if any(word in name for word in args.only or [])]
    names = names if args.only else [name for name in KINDS if name not in rows]
    for start in range(0, len(names), TOGETHER):
        for row in measure(names[start : start + TOGETHER], args.out):
            rows[row['config']] = row
            print(json.dumps(row), flush=True)
        write_json(DATA, {**content, 'rows': [rows[name] for name in KINDS if name in rows]})
    return 0


def main() -> int:
    """Run the command."""
    prog = 'python -m docs._pages.mmdet3.measure'
    parser = cli.ArgumentParser(prog=prog, description='Run both versions of mmdet on the same weights.')
    parser.add_argument('out', type=Path, help='folder of the jobs')
    parser.add_argument('--only', nargs='+', help='configs whose name has one of these words')
    parser.add_argument('--again', action='store_true', help='only compare what is in the folder')
    cli.add_debug_option(parser)
    return cli.run(body, parser, None)


if __name__ == '__main__':
    sys.exit(main())
