"""The sequential half of non-maximum suppression: a Loop in ONNX, whatever the overlap is measured by.

Neither exporter has one form of a loop that both understand, so the bodies are written in ONNX.
"""

import torch

from mmdeploy_ext.exporting.ops.exporters import register
from mmdeploy_ext.exporting.ops.operator import Operator


def _eager(suppresses: torch.Tensor) -> torch.Tensor:
    keep = torch.ones(suppresses.shape[0], dtype=torch.bool, device=suppresses.device)
    for row in range(suppresses.shape[0]):
        if keep[row]:
            keep = keep & ~suppresses[row]
    return keep


greedy_keep = register(
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


"""Which rows (N,) bool survive when each surviving row removes its targets, from the first row on.

In (N, N) bool row i removes column j; only columns behind the row (j > i) may be True. Opset 15 or later
(Shape with a range)."""


def _settled(suppressed_by: torch.Tensor) -> torch.Tensor:
    keep = 1 - suppressed_by.amax(dim=2)[:, None]
    while True:
        left = 1 - (suppressed_by * keep).amax(dim=2)[:, None]
        if torch.equal(left, keep):
            return left
        keep = left


GREEDY_KEEP_BATCH = register(
    Operator(
        'GreedyKeepBatch',
        _settled,
        inputs=dict(suppressed_by='B K K'),
        outputs=('keep',),
        example=lambda: (torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]]),),
        shapes=lambda suppressed_by: torch.empty_like(suppressed_by[:, :1]),
        body="""
        GreedyKeepBatch (suppressed_by) => (keep) {
            one = Constant <value = float {1}> ()
            none = Constant <value = float {0}> ()
            yes = Constant <value = bool {1}> ()
            targets = GlobalMaxPool (suppressed_by)
            targets_row = Transpose <perm = [0, 2, 1]> (targets)
            first = Sub (one, targets_row)
            keep = Loop (, yes, first) <body = turn (int64 number, bool go, float[B,1,K] kept)
                => (bool go_on, float[B,1,K] left) {
                    hits = Mul (suppressed_by, kept)
                    hit = GlobalMaxPool (hits)
                    hit_row = Transpose <perm = [0, 2, 1]> (hit)
                    left = Sub (one, hit_row)
                    change = Sub (left, kept)
                    size = Abs (change)
                    largest = ReduceMax <keepdims = 0> (size)
                    go_on = Greater (largest, none)
                }>
        }""",
    )
)
"""The greedy choice is the one that no longer changes when each row asks which kept rows suppress it: the
first row is right from the start, row t after t turns at most, and chains of suppression are short. Needs no
matrix product and no reduction over an axis, so that the text holds for every opset from 11 on."""


def greedy_keep_batch(suppressed_by: torch.Tensor) -> torch.Tensor:
    """Return `greedy_keep` (B, K) bool of a batch of constant size, in operators that TensorRT has.

    In `suppressed_by` (B, K, K) bool row j is suppressed by column i; only columns before it (i < j) may be.
    """
    return GREEDY_KEEP_BATCH(suppressed_by.to(torch.float32))[:, 0] > 0
