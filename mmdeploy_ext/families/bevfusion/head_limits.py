"""BEVFusion's head alone, exported with other limits, compared with the head in PyTorch with the same limits.

The number of queries and the score threshold are constants of a graph, and a sample hardly ever has boxes
close to these limits. So the limits are changed to values that cut through the boxes of a sample: the head in
PyTorch and its export both run on the sample's map, without suppression, and all their boxes are compared.

Glossary: C channels, X, Y cells of the bird's-eye view.
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
from mmdeploy_ext.families.bevfusion.autoware import NodeBoxHead
from mmdeploy_ext.families.bevfusion.cuda_graphs import HEAD
from mmdeploy_ext.families.bevfusion.cuda_graphs import BoxValueHead as CudaHead
from mmdeploy_ext.families.bevfusion.graphs import boxes_of_map, postprocess_facts
from mmdeploy_ext.families.bevfusion.options import AUTOWARE, CUDA
from mmdeploy_ext.families.bevfusion.reference import BEVFusionReference, detections
from mmdeploy_ext.families.bevfusion.runtime import model as runtime
from mmdeploy_ext.families.parts.lidar_parts import watching
from mmdeploy_ext.graph.run import Runner
from mmdeploy_ext.proving.levels.attempts import attempt
from mmdeploy_ext.runtime.detections3d import Detections3D
from mmdeploy_ext.runtime.frames import FusedFrame

MIN_GAP = 1e-6
"""Smallest difference of the scores on both sides of a limit."""
LOWERED, RAISED = (0.25, 0.75), (1.05, 1.4)
"""Factors on the present number of boxes between which a lowered and a raised one lie; the lowered one may be
smaller if few cells have a score above 0."""
MAX_BOXES = 1000
"""Largest number of boxes that are compared; larger limits are not raised."""
UNLIMITED = 10**6
"""Number of boxes that no model reaches."""
MIDDLE = 0.25, 0.75
"""Range of ranks, as shares of a sorted list of scores, in which the threshold lies."""
BOX_OUTPUTS = ('boxes', 'scores', 'labels')
"""Outputs of an exported head of `HeadBoxes`."""
NODE_OUTPUTS = ('bbox_pred', 'score', 'label_pred')
"""Outputs of an exported head of `NodeBoxHead`."""

Entry = tuple[dict[str, Any], str, Any]
"""Settings as a dict, a key of them, and the value to set: the arguments of `replaced_entry`."""


class HeadBoxes(nn.Module):
    """From the input map of the head to its boxes."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, middle: Tensor) -> tuple[Tensor, ...]:
        """Return `BOX_OUTPUTS` of the head's input map (1, C, X, Y): all boxes, of which none is suppressed.

        A label is -1 where the range or the score drops the box. Boxes have the columns of mmdet3d 0.x.
        """
        return boxes_of_map(self.head, middle)


def heads_with_other_limits(
    model: nn.Module, options: Options, reference: BEVFusionReference, sample: FusedFrame
) -> Iterator[tuple[str, Detections3D, Detections3D | Exception]]:
    """Yield title, boxes of the head in PyTorch, and boxes of its export, with lowered and raised limits.

    They are the number of queries, or of candidates of each task, and the score threshold, which cuts through
    the boxes with the lowered ones and is 0 with the raised ones.

    An error of the export or of its run takes the place of its boxes. Lowered or raised limits are left out
    if no number of boxes among them cuts between two scores of the sample that differ by `MIN_GAP`.

    Args:
        model: the detector.
        options: options of the export.
        reference: PyTorch's stepper of this model, which runs the sample.
        sample: the frame whose map both heads get.
    """
    with watching({reference.model.heads['object']: lambda inputs, _: dict(middle=inputs[0])}) as tensors:
        reference.step(sample)
    middle, head = tensors['middle'], model.heads['object']
    for title, shares in (('limits lowered', LOWERED), ('limits raised', RAISED)):
        with contextlib.ExitStack() as stack:
            count_entry = _count(head, middle, shares)
            if count_entry is None:
                continue
            for entry in (count_entry, *_without_suppression(head)):
                stack.enter_context(replaced_entry(*entry))
            threshold = _threshold(head, middle) if title == 'limits lowered' else 0.0
            stack.enter_context(replaced_entry(vars(head.bbox_coder), 'score_threshold', threshold))
            with torch.no_grad():
                (expected,) = head.get_bboxes(head(middle))
            exported = attempt(lambda: exported_boxes(model, options, middle))
            _, key, count = count_entry
            name = f'{title}: {key} {count}, score_threshold {threshold:.4g}'
            yield name, detections(expected), exported


def exported_boxes(model: nn.Module, options: Options, middle: Tensor) -> Detections3D:
    """Return the boxes of the head, exported for the contract of the options, run on a map (1, C, X, Y).

    `middle` is the map, the input of the head of `model`. The limits are those that the head has at the time.
    No box is suppressed: that comes after the graph, and is left out here.
    """
    head, coder = model.heads['object'], postprocess_facts(model)['coder']
    if options.contract == CUDA:
        outputs = _exported(CudaHead(head), tuple(HEAD), options, middle)
        return cuda_runtime.detections(outputs, coder)
    if options.contract == AUTOWARE:
        outputs = _exported(NodeBoxHead(head), NODE_OUTPUTS, options, middle)
        return autoware_runtime.detections(outputs, coder)
    return runtime.detections(_exported(HeadBoxes(head), BOX_OUTPUTS, options, middle))


def _exported(
    module: nn.Module, names: tuple[str, ...], options: Options, middle: Tensor
) -> dict[str, np.ndarray]:
    """Export a module and return its outputs for a map in ONNX Runtime."""
    with torch.no_grad():
        tensors = module.eval()(middle)
    outputs = tuple(
        TensorSpec(name, str(tensor.dtype).removeprefix('torch.'), tuple(tensor.shape))
        for name, tensor in zip(names, tensors, strict=True)
    )
    spec = GraphSpec('bevfusion/head', (TensorSpec('middle', 'float32', tuple(middle.shape)),), outputs)
    graph = Graph('head', module, spec, dict(middle=middle))
    runner = Runner(files.export_graph(graph, options), optimization='basic')
    return runner.run(dict(middle=middle.cpu().numpy()))


def _count(head: nn.Module, middle: Tensor, shares: tuple[float, float]) -> Entry | None:
    """Return an entry with another number of queries, or of candidates of a task.

    The number lies between `shares` of the present one. The score of the last candidate that it takes and
    that of the next one differ by more than `MIN_GAP`. Returned is None if there is no such number.
    """
    with torch.no_grad():
        values = head(middle)
    if isinstance(values, list):
        settings, key = vars(head.bbox_coder), 'max_num'
        heatmaps = [maps['heatmap'].sigmoid() for maps in values]
    else:
        settings, key, heatmaps = vars(head), 'num_proposals', [head.peaks(values['dense_heatmap'].sigmoid())]
    count = int(settings[key])
    cells = middle.shape[2] * middle.shape[3]  # mmdet3d takes the best cells of each class first
    sorted_scores = [
        heatmap.flatten().sort(descending=True).values[: min(cells, 2 * count)] for heatmap in heatmaps
    ]
    low, high = (int(np.ceil(count * share)) for share in shares)
    available = min(int((scores > 0).sum()) for scores in sorted_scores)
    high = min(high, available - 1, MAX_BOXES // len(heatmaps))
    low = max(low if shares == RAISED else min(low, high // 2), 1)
    if low > high:
        return None
    gaps = torch.stack([scores[low - 1 : high] - scores[low : high + 1] for scores in sorted_scores]).amin(0)
    return (settings, key, low + int(gaps.argmax())) if float(gaps.max()) > MIN_GAP else None


def _threshold(head: nn.Module, middle: Tensor) -> float:
    """Return a score threshold that some of the head's boxes do not reach."""
    with replaced_entry(vars(head.bbox_coder), 'score_threshold', 0.0), torch.no_grad():
        (boxes,) = head.get_bboxes(head(middle))
    scores = boxes['scores'].sort(descending=True).values.double().cpu().numpy()
    first, last = (int(len(scores) * share) for share in MIDDLE)
    if last <= first:
        return 0.0
    row = first + int(np.argmax(scores[first:last] - scores[first + 1 : last + 1]))
    return float(scores[row] + scores[row + 1]) / 2


def _without_suppression(head: nn.Module) -> Iterator[Entry]:
    """Yield settings with which a head suppresses no box and has no score threshold before suppression."""
    if not hasattr(head, 'counts'):  # `TransFusionHead`; `BEVFusionCenterHead` has numbers of classes by task
        yield head.test_cfg, 'nms_type', None
        return
    values = dict(
        nms_thr=2.0,  # rounding makes an IoU of more than 1 of equal boxes
        min_radius=[-1.0] * len(head.counts),
        pre_max_size=None,
        post_max_size=UNLIMITED,
        score_threshold=0.0,
    )
    for key, value in values.items():
        yield head.test_cfg, key, value
