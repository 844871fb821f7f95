"""FlashOcc's graph of plain operators.

Glossary: C channels, X, Y, Z voxels along x, y, z of the key ego frame, K classes.
"""

from torch import Tensor, nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, Graph, GraphSpec, TensorSpec
from mmdeploy_ext.families.common.lift_graphs import LiftFrame, frame_inputs, lift_graphs, view_axes
from mmdeploy_ext.systems.flashocc.runtime import FORM, LABELS, LOGITS

LOGIT = ColumnGroup(unit='logit', rtol=0.0, atol=5e-4)


class OccupancyFrame(LiftFrame):
    """One frame: images and poses to logits (1, X, Y, Z, K) and classes (X, Y, Z)."""

    def forward(self, img: Tensor, sensor2keyego: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model.occ_head(self.encoded(self.view_of(img, sensor2keyego, intrinsics)))
        return logits, logits[0].argmax(-1).byte()  # softmax keeps the order


def output_specs(model: nn.Module) -> tuple[TensorSpec, TensorSpec]:
    """Return the contracts of logits and classes."""
    (_, rows, columns), head = view_axes(model), model.occ_head
    voxels, meaning = (columns, rows, head.Dz), 'class logits of voxels along x, y, z'
    logits = TensorSpec(LOGITS, 'float32', (1, *voxels, head.num_classes), meaning, 'logit', (LOGIT,))
    return logits, TensorSpec(LABELS, 'uint8', voxels, 'class of each voxel', compare='detections')


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    spec = GraphSpec('flashocc/portable', tuple(frame_inputs(model)), output_specs(model))
    return lift_graphs(model, options, FORM, OccupancyFrame(model), spec)
