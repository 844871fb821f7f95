"""Models that nobody here wrote, with random weights, and the inputs on which their files are proven.

torchvision has to be one with its own operators, and transformers is needed, which this project does not
install.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from onnx import numpy_helper
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

DETECTION_SIZE = 128, 160
"""(H, W) of the pictures of torchvision's detectors, pixels."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model, and how it is exported.

    Attributes:
        title: name in the table.
        make: returns the module in evaluation mode.
        sample: returns the arguments of one call, by the seed.
        inputs: names of the inputs of the file.
        dynamic: input -> axis -> name of the dynamic axis.
        outputs: names of the outputs of the file.
        rows: outputs whose rows belong together, see `prove_module`.
        generate: whether it is proven on generated inputs, too. On noise without any picture in it the scores
            of a detector with random weights are so near to each other that rounding decides.
        is_for_torchscript: whether the TorchScript exporter takes it.
        no_faults: names of faults after which it computes the same.
    """

    title: str
    make: Callable[[], torch.nn.Module]
    sample: Callable[[int], tuple[Any, ...]]
    inputs: tuple[str, ...] = ('image',)
    dynamic: Mapping[str, Mapping[int, str]] = dataclasses.field(default_factory=dict)
    outputs: tuple[str, ...] = ('result',)
    rows: tuple[str, ...] = ()
    generate: bool = True
    is_for_torchscript: bool = True
    no_faults: tuple[str, ...] = ()

    def samples(self, count: int) -> list[tuple[Any, ...]]:
        """Return the arguments of some calls."""
        return [self.sample(seed) for seed in range(count)]


def noise(seed: int, height: int, width: int, cell: int = 8) -> torch.Tensor:
    """Return a smooth random picture (3, H, W) in 0..1, of which every `cell` pixels have a new colour."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, height // cell, width // cell, generator=generator)
    return functional.interpolate(small, size=(height, width), mode='bilinear')[0]


def picture(seed: int, height: int, width: int) -> tuple[torch.Tensor]:
    """Return a batch of one normalised picture."""
    return ((noise(seed, height, width)[None] - 0.5) / 0.25,)


def spread(model: torch.nn.Module, deviations: Mapping[torch.nn.Module, float], images: Any) -> None:
    """Scale all convolutions and linear layers, in place, so that their outputs differ between places.

    Random weights without a normalisation make maps that hardly depend on the picture, and the last layers of
    a detector begin with weights so small that all scores are nearly one value: which boxes remain would be
    the choice of rounding.

    Args:
        model: a model of pictures.
        deviations: layer -> standard deviation of its outputs; 1 of all others. A layer that is called
            several times has it in the first call. The mean is 0 of those that have a bias.
        images: the argument that it is called with.
    """
    done: set[torch.nn.Module] = set()

    def scale(layer: torch.nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
        if layer in done:
            return None
        done.add(layer)
        channels = output.movedim(1, -1) if output.ndim == 4 else output
        mean = channels.reshape(-1, channels.shape[-1]).mean(0) if layer.bias is not None else 0.0
        deviation = (channels - mean).std()
        if deviation < 1e-6:  # the first values of DETR's queries are zeros
            return None
        factor = deviations.get(layer, 1.0) / deviation
        layer.weight *= factor
        if layer.bias is not None:
            layer.bias.copy_((layer.bias - mean) * factor)
        channels = (channels - mean) * factor
        return channels.movedim(-1, 1) if output.ndim == 4 else channels

    layers = [part for part in model.modules() if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)]
    layers += [part for part in model.modules() if isinstance(part, torch.nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(scale) for layer in layers]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()


def detector(name: str, **settings: Any) -> torch.nn.Module:
    """Return a detector of torchvision with seeded weights, whose scores and boxes are spread."""
    from torchvision.models import detection
    from torchvision.models.resnet import Bottleneck

    torch.manual_seed(0)
    height, width = DETECTION_SIZE
    settings = dict(num_classes=6, min_size=height, max_size=width, **settings)
    model = getattr(detection, name)(weights=None, weights_backbone=None, **settings).eval()
    images = [noise(100 + seed, height, width) for seed in range(8)]
    if name.startswith('retinanet'):
        head = model.head
        layers = {head.classification_head.cls_logits: 0.7, head.regression_head.bbox_reg: 0.5}
    else:
        predictor = model.roi_heads.box_predictor
        layers = {model.rpn.head.cls_logits: 1.0, model.rpn.head.bbox_pred: 0.3}
        layers |= {predictor.cls_score: 2.0, predictor.bbox_pred: 0.3}
        if model.roi_heads.has_mask():
            layers[model.roi_heads.mask_predictor.mask_fcn_logits] = 2.0
    for part in model.modules():  # small residuals, as in trained models: rounding does not grow with depth
        if isinstance(part, Bottleneck):
            layers[part.conv3] = 0.3
    spread(model, layers, images)
    return model


def detection_sample(seed: int) -> tuple[list[torch.Tensor]]:
    """Return one picture as torchvision's detectors take it."""
    return ([noise(seed, *DETECTION_SIZE)],)


def torchvision_model(group: str, name: str, seed: int = 0) -> torch.nn.Module:
    """Return a model of torchvision with random weights."""
    import torchvision.models

    torch.manual_seed(seed)
    models = getattr(torchvision.models, group) if group else torchvision.models
    settings = dict(weights_backbone=None) if group else {}
    model = getattr(models, name)(weights=None, **settings).eval()
    spread(model, {}, torch.cat([picture(100 + index, 64, 96)[0] for index in range(4)]))
    return model


def bert() -> torch.nn.Module:
    """Return a BERT of two layers that returns two tensors."""
    from transformers import BertConfig, BertModel

    class States(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
            output = self.model(input_ids, attention_mask)
            return output.last_hidden_state, output.pooler_output

    torch.manual_seed(0)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    return States(BertModel(BertConfig(vocab_size=500, initializer_range=0.2, **sizes))).eval()


def bert_sample(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and a mask that leaves the last one out."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(1, 12, dtype=torch.int64)
    mask[0, 12 - seed :] = 0
    return torch.randint(0, 500, (1, 12), generator=generator), mask


class Predictions(torch.nn.Module):
    """A detector of transformers that returns logits and boxes."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Keep the model, and spread what its layers give."""
        super().__init__()
        self.model = model
        spread(self, {}, torch.cat([picture(100 + index, *DETECTION_SIZE)[0] for index in range(4)]))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return logits and boxes of pictures."""
        output = self.model(image)
        return output.logits, output.pred_boxes


def detr() -> torch.nn.Module:
    """Return a small DETR with a ResNet of its own."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    backbone = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 64, 128],
        depths=[1, 1, 1, 1],
        layer_type='basic',
        out_features=['stage4'],
    )
    layers = dict(encoder_layers=2, decoder_layers=2, encoder_ffn_dim=128, decoder_ffn_dim=128)
    heads = dict(encoder_attention_heads=4, decoder_attention_heads=4, d_model=64)
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=20,
        num_labels=6,
        **layers,
        **heads,
    )
    model = DetrForObjectDetection(config).eval()
    torch.nn.init.normal_(model.model.query_position_embeddings.weight)
    return Predictions(model).eval()


def yolos() -> torch.nn.Module:
    """Return a YOLOS of two layers."""
    from transformers import YolosConfig, YolosForObjectDetection

    torch.manual_seed(0)
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
    config = YolosConfig(
        image_size=list(DETECTION_SIZE), num_detection_tokens=20, num_labels=6, initializer_range=0.2, **sizes
    )
    return Predictions(YolosForObjectDetection(config).eval()).eval()


def yunet(checkout: Path, checkpoint: Path) -> torch.nn.Module:
    """Return the YuNet of its own repository with its published weights; its mmdet is imported."""
    sys.path.insert(0, str(checkout))
    from mmcv import Config
    from mmdet.models import build_detector

    class Outputs(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if torch.onnx.is_in_onnx_export():  # the head returns other tensors then
                classes, objects, boxes, points = self.model.feature_test(input)
                return (*classes, *objects, *boxes, *points)
            classes, boxes, objects, points = self.model.feature_test(input)

            def rows(maps: Sequence[torch.Tensor], columns: int) -> list[torch.Tensor]:
                return [entry.permute(0, 2, 3, 1).reshape(len(entry), -1, columns) for entry in maps]

            scores = [score.sigmoid() for score in (*rows(classes, 1), *rows(objects, 1))]
            return (*scores, *rows(boxes, 4), *rows(points, 10))

    config = Config.fromfile(str(checkout / 'configs/yunet_n.py'))
    config.model.train_cfg = None
    model = build_detector(config.model, test_cfg=config.get('test_cfg'))
    state = torch.load(checkpoint, map_location='cpu', weights_only=False)
    model.load_state_dict(state['state_dict'])
    return Outputs(model).eval()


def yolox_nano(checkout: Path, file: Path) -> torch.nn.Module:
    """Return the YOLOX-nano of its own package with the weights in its published file.

    The file has the normalisations folded into the convolutions, as YOLOX's own `fuse_model` does.
    """
    sys.path.insert(0, str(checkout))
    from yolox.models import YOLOPAFPN, YOLOX, YOLOXHead
    from yolox.models.network_blocks import BaseConv

    settings = dict(in_channels=[256, 512, 1024], depthwise=True)
    model = YOLOX(YOLOPAFPN(0.33, 0.25, **settings), YOLOXHead(80, 0.25, **settings)).eval()
    model.head.decode_in_inference = False  # as its export script
    convolutions: list[torch.nn.Conv2d] = []
    hooks = [
        part.register_forward_hook(lambda layer, *_: convolutions.append(layer))
        for part in model.modules()
        if isinstance(part, torch.nn.Conv2d)
    ]
    with torch.no_grad():
        model(torch.zeros(1, 3, 416, 416))
    for hook in hooks:
        hook.remove()
    blocks = {part.conv: part for part in model.modules() if isinstance(part, BaseConv)}
    graph = onnx.load(file).graph
    arrays = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer
    }
    nodes = [node for node in graph.node if node.op_type == 'Conv']
    for layer, node in zip(convolutions, nodes, strict=True):
        layer.weight, layer.bias = (torch.nn.Parameter(arrays[name]) for name in node.input[1:3])
        if layer in blocks:
            blocks[layer].bn = torch.nn.Identity()
    return model.eval()


BATCH, TOKENS = {0: 'batch'}, {0: 'batch', 1: 'length'}
BOXES = ('boxes', 'labels', 'scores')
MODELS = {
    'resnet18': Model(
        'torchvision ResNet-18, any batch and size',
        functools.partial(torchvision_model, '', 'resnet18'),
        lambda seed: picture(seed, 64, 96),
        dynamic={'image': {0: 'batch', 2: 'height', 3: 'width'}},
    ),
    'lraspp': Model(
        'torchvision LR-ASPP MobileNetV3, any batch',
        functools.partial(torchvision_model, 'segmentation', 'lraspp_mobilenet_v3_large'),
        lambda seed: picture(seed, 64, 96),
        dynamic={'image': BATCH},
        outputs=('out',),
    ),
    'deeplabv3': Model(
        'torchvision DeepLabV3 MobileNetV3, any batch',
        functools.partial(torchvision_model, 'segmentation', 'deeplabv3_mobilenet_v3_large'),
        lambda seed: picture(seed, 64, 96),
        dynamic={'image': BATCH},
        outputs=('out',),
    ),
    'faster_rcnn': Model(
        'torchvision Faster R-CNN R50 FPN',
        functools.partial(
            detector,
            'fasterrcnn_resnet50_fpn',
            rpn_post_nms_top_n_test=100,
            box_detections_per_img=20,
        ),
        detection_sample,
        outputs=BOXES,
        rows=BOXES,
        generate=False,
    ),
    'mask_rcnn': Model(
        'torchvision Mask R-CNN R50 FPN',
        functools.partial(
            detector, 'maskrcnn_resnet50_fpn', rpn_post_nms_top_n_test=50, box_detections_per_img=10
        ),
        detection_sample,
        outputs=(*BOXES, 'masks'),
        rows=(*BOXES, 'masks'),
        generate=False,
    ),
    'retinanet': Model(
        'torchvision RetinaNet R50 FPN',
        functools.partial(detector, 'retinanet_resnet50_fpn', topk_candidates=100, detections_per_img=20),
        detection_sample,
        outputs=('boxes', 'scores', 'labels'),
        rows=BOXES,
        generate=False,
    ),
    'detr': Model(
        'transformers DETR, any batch',
        detr,
        lambda seed: picture(seed, *DETECTION_SIZE),
        dynamic={'image': BATCH},
        outputs=('logits', 'pred_boxes'),
    ),
    'yolos': Model(
        'transformers YOLOS, any batch',
        yolos,
        lambda seed: picture(seed, *DETECTION_SIZE),
        dynamic={'image': BATCH},
        outputs=('logits', 'pred_boxes'),
    ),
    'bert': Model(
        'transformers BERT, any batch and length',
        bert,
        bert_sample,
        inputs=('input_ids', 'attention_mask'),
        dynamic={'input_ids': TOKENS, 'attention_mask': TOKENS},
        outputs=('last_hidden_state', 'pooler_output'),
        is_for_torchscript=False,
        no_faults=('swapped_operands',),  # 1 - mask is only compared with 0
    ),
}
"""Name on the command line -> model; those with published files need paths, see `published_model`."""
PUBLISHED = ('yunet', 'yolox_nano')


def published_model(name: str, checkout: Path, files: Path) -> tuple[Model, list[Path]]:
    """Return one of `PUBLISHED` and its files, which are in the folder `files`; `checkout` has its code."""
    if name == 'yunet':
        make = functools.partial(yunet, checkout.resolve(), files / 'yunet_n.pth')
        paths = [files / 'yunet_n_320_320.onnx', files / 'yunet_n_dynamic.onnx']
        return Model('YuNet', make, lambda seed: (255 * noise(seed, 320, 320)[None],)), paths
    path = files / 'yolox_nano.onnx'
    make = functools.partial(yolox_nano, checkout.resolve(), path)
    return Model('YOLOX-nano', make, lambda seed: (255 * noise(seed, 416, 416)[None],)), [path]
