"""BEVFormer's graph."""

from torch import nn

from mm2onnx_driving.bevformer.runtime import FORM
from mm2onnx_driving.common.bev_graphs import BevFrame, frame_spec, with_sampling
from mm2onnx_driving.common.camera_graphs import camera_graphs
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import Graph, GraphSpec


def spec(model: nn.Module) -> GraphSpec:
    return frame_spec(model, 'bevformer/portable')


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    module = BevFrame(model, tuple(model.input_sizes[1:]))
    return [with_sampling(*camera_graphs(model, options, [(FORM, module, spec(model))]), options)]
