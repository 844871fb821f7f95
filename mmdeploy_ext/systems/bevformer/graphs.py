"""BEVFormer's graph."""

from torch import nn

from mmdeploy_ext.families.common.bev_graphs import BevFrame, frame_spec, with_sampling
from mmdeploy_ext.families.common.camera_graphs import camera_graphs
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec
from mmdeploy_ext.systems.bevformer.runtime import FORM


def spec(model: nn.Module) -> GraphSpec:
    return frame_spec(model, 'bevformer/portable')


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    module = BevFrame(model, tuple(model.input_sizes[1:]))
    return [with_sampling(*camera_graphs(model, options, [(FORM, module, spec(model))]), options)]
