"""The goldens of the original RT-DETR: seeded weights and images against what the original gave.

Source: tests/goldens/rtdetr, whose README has weights, images and tolerances.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

from dev.seeded.by_name import name_rng, rtdetr_weights
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.base import find_family

GOLDEN = Path(__file__).resolve().parents[2] / 'goldens/rtdetr'
REPOSITORY = Path(__file__).resolve().parents[3]
SHA256 = {
    'r18vd': '3362309aa3a8f95e32ab566cd472934c8faf1f77ff9a3b3a19a0998ee4495ab0',
    'r50vd': '62fe24ff191b8d163bb0beb129216b97d5d8c3e3c982458f189eaeebe3d93568',
}
TOLERANCE = {'r18vd': dict(logits=3e-4, boxes=2e-5), 'r50vd': dict(logits=1.5e-3, boxes=6e-5)}
SAMPLES, SCORES, PIXELS = 1e-4, 1e-4, 0.05
BLOCKS = ((32, 0.12), (80, 0.15), (160, 0.15))


def config_of(name: str) -> str:
    """Return the path of the config of a model, 'r18vd'."""
    return str(REPOSITORY / f'configs/rtdetr/rtdetr_{name}.py')


def keys(kind: str, name: str) -> dict[str, list[int]]:
    """Return key -> shape of `original`, `hf` or `hf_hubnames`."""
    return json.loads((GOLDEN / f'keys_{kind}_{name}.json').read_text())


def case_facts(name: str, case: str) -> dict:
    """Return sizes and image of a case, 'a', 'b' or 'b_rowmajor'."""
    return json.loads((GOLDEN / 'cases.json').read_text())[f'{name}_{case}']


@functools.lru_cache(maxsize=1)
def weights(name: str) -> dict[str, torch.Tensor]:
    """Return the seeded weights, which are those of the goldens to the last bit."""
    filled = rtdetr_weights(keys('original', name))
    digest = hashlib.sha256()
    for key, value in filled.items():
        if not key.endswith('num_batches_tracked'):
            digest.update(value.numpy().tobytes())
    assert digest.hexdigest() == SHA256[name]
    return filled


def empty_model(name: str, **overrides: object) -> torch.nn.Module:
    """Return the config's model without weights."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    cfg = load_config(config_of(name), overrides)
    return find_family(cfg).build(cfg)


def golden_model(name: str, case: str) -> torch.nn.Module:
    """Return the model of a case with its weights."""
    layout = 'row_major' if 'rowmajor' in case else 'original'
    model = empty_model(name, **{'model.encoder.position_layout': layout})
    model.load_state_dict(weights(name))
    return model


def seeded_image(height: int, width: int, name: str) -> np.ndarray:
    """Return the network's input (1, 3, H, W) float32 in 0..1: noise and blocks of three sizes."""
    source = name_rng(name)
    image = 0.5 + 0.08 * source.standard_normal((1, 3, height, width))
    for size, strength in BLOCKS:
        blocks = source.standard_normal((1, 3, math.ceil(height / size), math.ceil(width / size)))
        image = image + strength * blocks.repeat(size, 2).repeat(size, 3)[:, :, :height, :width]
    return np.clip(image, 0, 1).astype(np.float32)


def golden_image(name: str, case: str) -> torch.Tensor:
    """Return the image of a case, which is that of the goldens to the last bit."""
    facts = case_facts(name, case)
    image = seeded_image(facts['H'], facts['W'], facts['image'])
    assert hashlib.sha256(image.tobytes()).hexdigest() == facts['image_sha256']
    return torch.from_numpy(image)


def run_model(model: torch.nn.Module, name: str, case: str) -> dict[str, np.ndarray]:
    """Run a case; maps of backbone and encoder, token tensors, logits, boxes, tokens and detections."""
    sizes = torch.tensor([case_facts(name, case)['orig_target_sizes_wh']])
    with torch.no_grad():
        backbone = model.backbone(golden_image(name, case))
        encoder = model.encoder(backbone)
        content, classes, _ = model.decoder.tokens(model.decoder.project(encoder))
        logits, boxes, tokens = model.decoder(encoder)
        labels, pixels, scores = model.postprocess(logits, boxes, sizes)
    found = {f'backbone{level}': maps for level, maps in enumerate(backbone)}
    found.update({f'encoder{level}': maps for level, maps in enumerate(encoder)})
    deltas = model.decoder.enc_bbox_head(content)
    found.update(output_memory=content, enc_class=classes, enc_bbox_delta=deltas)
    found.update(logits=logits, boxes=boxes, tokens=tokens, labels=labels, pixels=pixels, scores=scores)
    return {key: value.detach().numpy() for key, value in found.items()}


def compare(name: str, case: str, found: dict[str, np.ndarray]) -> None:
    """Compare with the golden: queries by token, detections by token and label."""
    measured = {}
    with np.load(GOLDEN / f'{name}_{case}.npz') as golden:
        for key in golden.files:
            kind, _, tensor = key.partition('_')
            if kind == 'sample' and tensor in found:
                ours = found[tensor].ravel()[golden[f'sample_idx_{tensor}']]
                measured[tensor] = float(np.abs(ours - golden[key]).max())
                assert measured[tensor] <= SAMPLES, f'{tensor}: {measured[tensor]:.1e}'
        assert len(measured) >= 6, 'nothing was compared'
        _compare_detections(found, golden, _compare_rows(name, found, golden))


def compare_queries(name: str, case: str, found: dict[str, np.ndarray]) -> None:
    """Compare `logits`, `boxes` and `tokens` of a graph with the golden, queries by token."""
    with np.load(GOLDEN / f'{name}_{case}.npz') as golden:
        _compare_rows(name, found, golden)


def _compare_rows(name: str, found: dict[str, np.ndarray], golden: np.lib.npyio.NpzFile) -> list[int]:
    """Return our row of each of the golden's queries."""
    wanted = golden['topk_idx'].tolist()
    rows = {token: row for row, token in enumerate(found['tokens'][0].tolist())}
    assert set(wanted) == set(rows), 'another set of tokens'
    order = [rows[token] for token in wanted]
    for tensor in ('logits', 'boxes'):
        difference = float(np.abs(found[tensor][0][order] - golden[f'pred_{tensor}']).max())
        assert difference <= TOLERANCE[name][tensor], f'{tensor}: {difference:.1e}'
    return order


def _compare_detections(found: dict[str, np.ndarray], golden: np.lib.npyio.NpzFile, order: list[int]) -> None:
    """Match the detections by (query, label); those of the golden whose pair we lack are at the cut."""
    classes = found['logits'].shape[-1]
    flat = 1 / (1 + np.exp(-found['logits'][0].astype(np.float64)))
    best = np.argsort(-flat.ravel(), kind='stable')[: len(found['scores'][0])]
    ours = {(index // classes, index % classes): rank for rank, index in enumerate(best.tolist())}
    gaps = dict(det_scores=0.0, det_boxes=0.0)
    for rank, index in enumerate(golden['det_flat_idx'].tolist()):
        pair = (order[index // classes], index % classes)
        assert pair in ours, f'detection {rank} is not among ours'
        assert golden['det_labels'][rank] == pair[1]
        near = np.abs(found['scores'][0] - golden['det_scores'][rank]) <= SCORES
        same = near & (found['labels'][0] == pair[1])
        boxes = np.abs(found['pixels'][0] - golden['det_boxes'][rank]).max(1)
        assert same.any(), f'no detection with label and score of golden detection {rank}'
        gaps['det_boxes'] = max(gaps['det_boxes'], float(boxes[same].min()))
        gaps['det_scores'] = max(gaps['det_scores'], float(np.abs(flat[pair] - golden['det_scores'][rank])))
    assert gaps['det_boxes'] <= PIXELS and gaps['det_scores'] <= SCORES, gaps
