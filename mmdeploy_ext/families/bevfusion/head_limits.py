"""BEVFusion's head alone, exported with other limits, against the head in PyTorch with the same.

How many queries there are, and which score a box needs, are constants of a graph that samples hardly reach:
both sides get the map of a sample, and nothing is suppressed, so that every row counts.

Glossary: C channels, X, Y cells of the bird's-eye view, Q queries or boxes.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdeploy_ext.consumers.autoware import bevfusion as autoware_runtime
from mmdeploy_ext.consumers.cuda_bevfusion import cuda as cuda_runtime
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import GraphSpec, TensorSpec
from mmdeploy_ext.contract.stages import Graph
from mmdeploy_ext.core.config import replaced_entry
from mmdeploy_ext.exporting import files
from mmdeploy_ext.exporting.fold import fuse
from mmdeploy_ext.families.bevfusion.autoware import NodeHead
from mmdeploy_ext.families.bevfusion.cuda_graphs import HEAD
from mmdeploy_ext.families.bevfusion.cuda_graphs import Head as CudaHead
from mmdeploy_ext.families.bevfusion.graphs import boxes_of_map, postprocess_facts
from mmdeploy_ext.families.bevfusion.options import AUTOWARE, CUDA
from mmdeploy_ext.families.bevfusion.reference import Reference, detections
from mmdeploy_ext.families.bevfusion.runtime import model as runtime
from mmdeploy_ext.families.parts.lidar_parts import watching
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.proving.levels.run_twice import attempt
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import FusedFrame

LEAST_GAP = 1e-6
"""Between the scores of the last row that is let through and of the next one."""
LOWERED, RAISED = (0.25, 0.75), (1.05, 1.4)
"""Of a limit: between which shares of it lowered and raised ones are."""
MOST = 1000
"""Boxes that are compared at most; limits of more are not raised."""
ALL = 10**6
"""Boxes that no model has."""
MIDDLE = 0.25, 0.75
"""Of a list of scores: between which of them a threshold is."""
OF_BOXES = ('boxes', 'scores', 'labels')
OF_NODE = ('bbox_pred', 'score', 'label_pred')

Entry = tuple[dict[str, Any], str, Any]
"""Settings, a key of them, and another value of it."""


class HeadBoxes(nn.Module):
    """The map that the head reads to its boxes."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, middle: Tensor) -> tuple[Tensor, ...]:
        """Return `OF_BOXES` of (1, C, X, Y), see `boxes_of_map`."""
        return boxes_of_map(self.head, middle)


def heads_with_other_limits(
    model: nn.Module, options: Options, reference: Reference, sample: FusedFrame
) -> Iterator[tuple[str, Detections3D, Detections3D | Exception]]:
    """Yield titles, what the head in PyTorch finds, and what its export does, with lowered and raised limits.

    Args:
        model: the detector.
        options: of the export.
        reference: PyTorch's stepper.
        sample: whose map the head reads.
    """
    with watching({reference.model.heads['object']: lambda given, _: dict(middle=given[0])}) as kept:
        reference.step(sample)
    middle, head = kept['middle'], model.heads['object']
    for title, shares in (('limits lowered', LOWERED), ('limits raised', RAISED)):
        with contextlib.ExitStack() as stack:
            count = _count(head, middle, shares)
            if count is None:
                continue
            for entry in (count, *_without_suppression(head)):
                stack.enter_context(replaced_entry(*entry))
            threshold = _threshold(head, middle) if title == 'limits lowered' else 0.0
            stack.enter_context(replaced_entry(vars(head.bbox_coder), 'score_threshold', threshold))
            with torch.no_grad():
                (expected,) = head.get_bboxes(head(middle))
            found = attempt(lambda: exported_boxes(model, options, middle))
            name = f'{title}: {count[1]} {count[2]}, score_threshold {threshold:.4g}'
            yield name, detections(expected), found


def exported_boxes(model: nn.Module, options: Options, middle: Tensor) -> Detections3D:
    """Return what the head finds in a map (1, C, X, Y), exported as a contract has it."""
    head, coder = model.heads['object'], postprocess_facts(model)['coder']
    fused = fuse(head)
    if options.contract == CUDA:
        outputs = _exported(CudaHead(fused), tuple(HEAD), options, middle)
        return cuda_runtime.detections(outputs, coder)
    if options.contract == AUTOWARE:
        outputs = _exported(NodeHead(fused), OF_NODE, options, middle)
        return autoware_runtime.detections(outputs, coder)
    return runtime.detections(_exported(HeadBoxes(fused), OF_BOXES, options, middle))


def _exported(
    module: nn.Module, names: tuple[str, ...], options: Options, middle: Tensor
) -> dict[str, np.ndarray]:
    """Return what the export of a module gives of a map, in ONNX Runtime."""
    with torch.no_grad():
        made = module.eval()(middle)
    kinds = (str(tensor.dtype).removeprefix('torch.') for tensor in made)
    outputs = tuple(
        TensorSpec(name, kind, tuple(tensor.shape))
        for name, kind, tensor in zip(names, kinds, made, strict=True)
    )
    spec = GraphSpec('bevfusion/head', (TensorSpec('middle', 'float32', tuple(middle.shape)),), outputs)
    graph = Graph('head', module, spec, dict(middle=middle))
    runner = Runner(files.export_graph(graph, options), optimization='basic')
    return runner.run(dict(middle=middle.cpu().numpy()))


def _count(head: nn.Module, middle: Tensor, shares: tuple[float, float]) -> Entry | None:
    """Return another number of queries, or of candidates of a task; it cuts between scores that are apart.

    None where there are no such scores.
    """
    with torch.no_grad():
        found = head(middle)
    if isinstance(found, list):
        owner, key, rows = vars(head.bbox_coder), 'max_num', [maps['heatmap'].sigmoid() for maps in found]
    else:
        owner, key, rows = vars(head), 'num_proposals', [head.peaks(found['dense_heatmap'].sigmoid())]
    count = int(owner[key])
    cells = middle.shape[2] * middle.shape[3]  # mmdet3d chooses in each class
    scores = [row.flatten().sort(descending=True).values[: min(cells, 2 * count)] for row in rows]
    low, high = (int(np.ceil(count * share)) for share in shares)
    available = min(int((row > 0).sum()) for row in scores)
    high = min(high, available - 1, MOST // len(rows))
    low = max(low if shares == RAISED else min(low, high // 2), 1)
    if low > high:
        return None
    gaps = torch.stack([row[low - 1 : high] - row[low : high + 1] for row in scores]).amin(0)
    return (owner, key, low + int(gaps.argmax())) if float(gaps.max()) > LEAST_GAP else None


def _threshold(head: nn.Module, middle: Tensor) -> float:
    """Return a score that some of the boxes do not reach, with the limits that the head has."""
    with replaced_entry(vars(head.bbox_coder), 'score_threshold', 0.0), torch.no_grad():
        (found,) = head.get_bboxes(head(middle))
    scores = found['scores'].sort(descending=True).values.double().cpu().numpy()
    first, last = (int(len(scores) * share) for share in MIDDLE)
    if last <= first:
        return 0.0
    row = first + int(np.argmax(scores[first:last] - scores[first + 1 : last + 1]))
    return float(scores[row] + scores[row + 1]) / 2


def _without_suppression(head: nn.Module) -> Iterator[Entry]:
    """Yield the settings of a head that suppresses nothing, and takes any score before it would."""
    if not hasattr(head, 'counts'):
        yield head.test_cfg, 'nms_type', None
        return
    values = dict(
        nms_thr=2.0,  # rounding makes an IoU of more than 1 of equal boxes
        min_radius=[-1.0] * len(head.counts),
        pre_max_size=None,
        post_max_size=ALL,
        score_threshold=0.0,
    )
    for key, value in values.items():
        yield head.test_cfg, key, value
