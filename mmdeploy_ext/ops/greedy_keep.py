"""The sequential half of non-maximum suppression: a Loop in ONNX, whatever the overlap is measured by.

Neither exporter has one form of a loop that both understand, so the body is written in ONNX.
"""

from __future__ import annotations

import torch

from mmdeploy_ext.ops.operator import Operator, register


def _eager(suppresses: torch.Tensor) -> torch.Tensor:
    keep = torch.ones(suppresses.shape[0], dtype=torch.bool, device=suppresses.device)
    for row in range(suppresses.shape[0]):
        if keep[row]:
            keep = keep & ~suppresses[row]
    return keep


GREEDY_KEEP = register(
    Operator(
        'GreedyKeep',
        _eager,
        inputs=dict(suppresses='N N'),
        outputs=('keep',),
        example=lambda: (torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool),),
        shapes=lambda suppresses: suppresses.new_empty((suppresses.shape[0],)),
        body="""
        GreedyKeep (suppresses) => (keep) {
            rows = Shape <start = 0, end = 1> (suppresses)
            yes = Constant <value = bool[1] {1}> ()
            everything = Expand (yes, rows)
            first = Constant <value = int64[1] {0}> ()
            count = Squeeze (rows, first)
            keep = Loop (count, , everything) <body = step (int64 row, bool go, bool[N] kept)
                => (bool go_on, bool[N] left) {
                    go_on = Identity (go)
                    targets = Gather <axis = 0> (suppresses, row)
                    alive = Gather <axis = 0> (kept, row)
                    hit = And (targets, alive)
                    spared = Not (hit)
                    left = And (kept, spared)
                }>
        }""",
    )
)


def greedy_keep(suppresses: torch.Tensor) -> torch.Tensor:
    """Return which rows survive when each surviving row removes its targets, from the first row on.

    Args:
        suppresses: (N, N) bool; row i removes column j. Only columns behind the row (j > i) may be True.

    Returns:
        (N,) bool. Opset 15 or later (Shape with a range).
    """
    return GREEDY_KEEP(suppresses)
