"""VAD's graph, of plain operators, with the motion of the car and the command as inputs.

Glossary: N cameras, H, W network input in pixels, Q cells of the view, C channels, L decoder layers, R
objects, M modes, T steps, V lines of P points.
"""

import dataclasses
from types import ModuleType

from torch import Tensor, nn

from mm2onnx_driving.common.bev_graphs import BevFrame, frame_spec, with_sampling
from mm2onnx_driving.common.camera_graphs import camera_graphs
from mm2onnx_driving.vad.runtime import FORM
from mm2onnx_driving.vad.steps import OUTPUTS, predict
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

VALUES = ColumnGroup(rtol=0.0, atol=5e-4)
LINE_BOUNDS = OUTPUTS.index('map_all_bbox_preds')


class VadFrame(BevFrame):
    """Pictures, rig, motion, last view and command to the present view and `runtime.OUTPUTS`."""

    shifts_present = True

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs; the last input, `command` (1,) int64, chooses the plan."""
        *given, command = inputs
        *found, plans = super().forward(*given)
        return *found, plans, plans[0].index_select(0, command).cumsum(1)

    def predictions(self, view: Tensor, operators: ModuleType) -> tuple[Tensor, ...]:
        outputs = predict(self.model.pts_bbox_head, view, operators)
        return outputs[:LINE_BOUNDS] + outputs[LINE_BOUNDS + 1 :]


def further_specs(model: nn.Module) -> tuple[TensorSpec, ...]:
    """Return the contracts of `model.steps.OUTPUTS` after the boxes."""
    head = model.pts_bbox_head
    layers, lines = len(head.map_cls_branches), head.map_instance_embedding.num_embeddings
    agents = (len(head.cls_branches), 1, head.query_embedding.num_embeddings, head.fut_mode)
    classes, points = head.map_cls_branches[-1][-1].out_features, head.map_pts_embedding.num_embeddings
    layered, shares = ', of all decoder layers', 'relative to the sides of the view'

    def tensor(name: str, axes: tuple[int, ...], meaning: str, unit: str = '') -> TensorSpec:
        return TensorSpec(name, 'float32', axes, meaning, unit, groups=(VALUES,), single=True)

    steps = "x y of the trajectories' steps, mode by mode (m); the same for all layers"
    return (
        tensor('all_traj_preds', (*agents, 2 * head.fut_ts), steps),
        tensor(
            'all_traj_cls_scores', agents, 'mode logits of the trajectories; the same for all layers', 'logit'
        ),
        tensor('map_all_cls_scores', (layers, 1, lines, classes), f'class logits of lines{layered}', 'logit'),
        tensor('map_all_bbox_preds', (layers, 1, lines, 4), f'x y w h of lines {shares}{layered}'),
        tensor(
            'map_all_pts_preds',
            (layers, 1, lines, points, 2),
            f'x y of the points of lines {shares}{layered}',
        ),
        tensor('ego_fut_preds', (1, head.ego_fut_mode, head.fut_ts, 2), 'x y of the steps of the plans (m)'),
    )


def spec(model: nn.Module) -> GraphSpec:
    further = [tensor for tensor in further_specs(model) if tensor.name != 'map_all_bbox_preds']
    axes, meaning = (1, *further[-1].axes[2:]), "x y of the points of the command's plan (m)"
    plan = dataclasses.replace(further[-1], name='ego_plan', axes=axes, meaning=meaning)
    command = TensorSpec('command', 'int64', (1,), 'command: 0 right, 1 left, 2 straight', single=True)
    frame = frame_spec(model, 'vad/portable', (*further, plan))
    return dataclasses.replace(frame, inputs=(*frame.inputs, command))


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    module = VadFrame(model, tuple(model.input_sizes[1:]))
    return [with_sampling(*camera_graphs(model, options, [(FORM, module, spec(model))]), options)]
