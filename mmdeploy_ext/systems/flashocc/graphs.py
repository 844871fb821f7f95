"""FlashOcc's graph of plain operators.

Glossary: C channels, X, Y, Z voxels along x, y, z of the key ego frame, K classes.
"""

from torch import Tensor, nn
from torch.nn import functional

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, Graph, GraphSpec, TensorSpec
from mmdeploy_ext.families.common.lift_graphs import (
    LiftFrame,
    LiftNetwork,
    frame_inputs,
    lift_graphs,
    view_axes,
)
from mmdeploy_ext.systems.flashocc.runtime import FORM, LABELS, LOGITS

LOGIT = ColumnGroup(unit='logit', rtol=0.0, atol=5e-4)


class OccupancyNetwork(LiftNetwork):
    """The parts of a detector that all contracts have."""

    def logits(self, view: Tensor) -> Tensor:
        """Return the logits (1, X, Y, Z, K) of a view (1, C, Y, X)."""
        view = self.encoded(view)
        if self.model.upsample:
            view = functional.interpolate(view, scale_factor=2, mode='bilinear', align_corners=True)
        return self.model.occ_head(view)


class OccupancyFrame(LiftFrame, OccupancyNetwork):
    """One frame: pictures and poses to logits (1, X, Y, Z, K) and classes (X, Y, Z)."""

    def forward(self, img: Tensor, sensor2keyego: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits(self.view_of(img, sensor2keyego, intrinsics))
        return logits, logits[0].argmax(-1).byte()  # a softmax changes no order


def output_specs(model: nn.Module) -> tuple[TensorSpec, TensorSpec]:
    """Return the contracts of the logits and of the classes."""
    _, rows, columns = view_axes(model)
    factor, head = 2 if model.upsample else 1, model.occ_head
    voxels = columns * factor, rows * factor, head.Dz
    meaning = 'classes of voxels along x, y, z'
    logits = TensorSpec(LOGITS, 'float32', (1, *voxels, head.num_classes), meaning, 'logit', (LOGIT,))
    return logits, TensorSpec(LABELS, 'uint8', voxels, 'class of each voxel', compare='detections')


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    spec = GraphSpec('flashocc/portable', tuple(frame_inputs(model)), output_specs(model))
    return lift_graphs(model, options, FORM, OccupancyFrame(model), spec)
