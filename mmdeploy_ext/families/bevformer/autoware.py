"""BEVFormer as Autoware's tensorrt_bevformer loads it: one graph by its names, and its parameters.

Source: autoware_universe, autoware_tensorrt_bevformer (names, shapes, order of the record, defaults;
facts, no code); commits in `consumers/autoware/bevformer_rules.py`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdeploy_ext.consumers.autoware import bevformer_rules as node
from mmdeploy_ext.consumers.autoware.bevformer import TRAINED_ORDER
from mmdeploy_ext.consumers.autoware.manifest import parameter_text, value_differences
from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import Graph
from mmdeploy_ext.core.config import test_pipeline
from mmdeploy_ext.core.errors import ConfigError
from mmdeploy_ext.families.bevformer.graphs import DeployedFrame, deployed_spec, spec, with_sampling
from mmdeploy_ext.families.parts.traced_inputs import with_examples
from mmdeploy_ext.preprocess.cameras import MultiViewRule
from mmdeploy_ext.preprocess.pipeline_rule import steps_of

SCORE_THRESHOLD = 0.2
"""Score that a box has to exceed, the node's default; tune it there."""


class NodeFrame(DeployedFrame):
    """One frame with the node's record of the motion, whose entries are put where the model has them."""

    def record(self, can_bus: Tensor) -> Tensor:
        """Return the record (18,) as the model has it.

        The node has velocity, rotation rate and acceleration; the model acceleration, rotation rate and
        velocity. The node has w, x, y, z; a model that was trained with w four times gets w four times.
        """
        places = list(TRAINED_ORDER)
        if self.model.can_bus_orientation == 'wwww':
            places[3:7] = [3] * 4
        return can_bus[torch.tensor(places, device=can_bus.device)]


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    """Return the one graph."""
    module = NodeFrame(model, tuple(model.input_sizes[1:]), by_plugins=False)
    contract = deployed_spec(spec(model, options), 'autoware')
    return [with_sampling(*with_examples(model, [(node.GRAPH, module, contract)]), options)]


def check(filename: str, rule: MultiViewRule) -> None:
    """Refuse pictures that the node does not prepare; ConfigError names the config and what differs.

    `filename` is that of the config, `rule` what its test pipeline does to the pictures.
    """
    if rule.num_cameras != node.CAMERAS:
        raise ConfigError(
            f'{filename}: --contract autoware: {rule.num_cameras} cameras; the node has {node.CAMERAS}'
        )
    if not rule.normalised_first or rule.pad_size is not None:
        raise ConfigError(
            f'{filename}: --contract autoware: the node normalises, resizes by a factor and pads to a '
            f'multiple, in this order; the test pipeline has other steps'
        )


def companions(model: nn.Module) -> dict[str, str]:
    """Return file name -> text, of the one file beside the graph: the parameters of the node.

    `input_width` and `input_height` are those of the pictures as they were taken, before `scale_factor`.
    """
    head, rule = model.pts_bbox_head, model.rule
    transformer = head.transformer
    parameters: dict[str, Any] = dict(
        data_params=dict(
            CAM_NUM=rule.num_cameras,
            input_width=rule.source[1],
            input_height=rule.source[0],
            mean=[float(value) for value in rule.mean],
            std=[float(value) for value in rule.std],
            to_rgb=rule.to_rgb,
            pad_divisor=rule.size_divisor,
            scale_factor=float(rule.scale),
        ),
        model_params=dict(
            batch_size=1,
            bev_h=int(head.bev_h),
            bev_w=int(head.bev_w),
            nb_dec=len(transformer.decoder.layers),
            dim=int(transformer.embed_dims),
            num_query=int(head.query_embedding.num_embeddings),
            num_classes=int(head.cls_branches[-1][-1].out_features),
            code_size=10,
        ),
        post_process_params=dict(
            score_thre=SCORE_THRESHOLD,
            has_twist=True,
            class_names=[str(name) for name in model.CLASSES],
            max_num=int(head.bbox_coder.max_num),
            pc_range=[float(value) for value in head.pc_range],
            post_center_range=[float(value) for value in head.bbox_coder.post_center_range],
        ),
    )
    return {node.MANIFEST: parameter_text(parameters)}


def parameter_differences(folder: Path, cfg: Any) -> Iterator[str]:
    """Yield a line for each parameter in a folder that differs from a config, or from the graph's classes.

    `bev_h`, `bev_w` and `num_query` are compared if the config has them, and `CAM_NUM`, `batch_size`, `dim`,
    `code_size`, `score_thre` and `has_twist` are not.
    No result of a proof shows the parameters: its runtime reads the metadata of the graph.
    """
    graph = folder / f'{node.GRAPH}.onnx'
    classes = read_metadata(graph).classes
    kinds = 'MultiScaleFlipAug3D', 'NormalizeMultiviewImage', 'RandomScaleImageMultiViewImage'
    steps = {step['type']: step for step in steps_of(test_pipeline(cfg), *kinds, 'PadMultiViewImage')}
    augmentation, normalise = steps[kinds[0]], steps[kinds[1]]
    width, height = augmentation['img_scale']
    (scale,) = steps.get(kinds[2], {}).get('scales', (1.0,))
    head = cfg.model['pts_bbox_head']
    coder, transformer = head['bbox_coder'], head['transformer']
    expected = {
        'data_params.input_width': width,
        'data_params.input_height': height,
        'data_params.mean': list(normalise['mean']),
        'data_params.std': list(normalise['std']),
        'data_params.to_rgb': normalise.get('to_rgb', True),
        'data_params.pad_divisor': steps.get('PadMultiViewImage', {}).get('size_divisor') or 1,
        'data_params.scale_factor': scale,
        'model_params.nb_dec': transformer['decoder']['num_layers'],
        'model_params.num_classes': len(classes),
        'post_process_params.class_names': list(classes),
        'post_process_params.max_num': coder.get('max_num', 100),
        'post_process_params.pc_range': list(coder['pc_range']),
        'post_process_params.post_center_range': list(coder['post_center_range']),
    }
    stated = (key for key in ('bev_h', 'bev_w', 'num_query') if key in head)
    expected |= {f'model_params.{key}': head[key] for key in stated}
    yield from value_differences(folder / node.MANIFEST, expected)
