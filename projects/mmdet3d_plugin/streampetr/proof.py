"""What a proof has to know of StreamPETR's memory."""

from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.contract.spec import ColumnGroup
from mmdeploy_ext.families.memory import MemorySpec

TOLERANCES = {
    'embedding': ColumnGroup(rtol=0.0, atol=5e-4),
    'reference_point': ColumnGroup(unit='m', rtol=0.0, atol=2e-3),
    'timestamp': ColumnGroup(unit='s', rtol=0.0, atol=1e-5),
    'egopose': ColumnGroup(rtol=0.0, atol=2e-4),
    'velo': ColumnGroup(unit='m/s', rtol=0.0, atol=2e-4),
}
"""Absolute tolerances of a float32 memory. Source: "Suggested tolerances" of the reference data of StreamPETR
(measured between correct implementations); times 1e-5 s instead of 1e-6 s, because ages are float32 here and
a step of float32 at 10 s is 1e-6 s."""
PREDICTIONS = ('all_cls_scores', 'all_bbox_preds')


def memory_spec(facts: Mapping[str, Any]) -> MemorySpec:
    """Return the memory of files with these facts about post-processing; no ties where they are missing."""
    topk = int(facts.get('topk_proposals') or 0)
    return MemorySpec(
        tensors=TOLERANCES,
        outputs={name: f'post_memory_{name}' for name in TOLERANCES},
        needed=PREDICTIONS,
        per_query=(*PREDICTIONS, 'outs_dec'),
        scores='all_cls_scores' if topk else '',
        places=(('reference_point', 'all_bbox_preds', (0, 1, 2)), ('velo', 'all_bbox_preds', (8, 9))),
        topk=topk,
        propagated=int(facts.get('num_propagated', topk)),
    )
