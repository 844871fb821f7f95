"""Changes by behaviour that a user makes in classes of his repository, in each of three detectors.

Each is a module of a plugin, named by `custom_imports` of a config, with classes that are derived from ours
or mmdet's. A proof has to be against these classes: the graph follows the change, or it is not proven, or it
is refused by name. `python tests/user_changes.py [MODEL...]` prints the table.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLLOWED, ON_INPUTS, NOT_PROVEN, REFUSED, SILENT = 'followed', 'on inputs', 'NOT PROVEN', 'refused', 'SILENT'
"""What becomes of a change: the graph has it; it has it as far as inputs tell; it is not proven; it is
refused by name; or what a proof compares with does not have it."""


EFFECT = 1e-3
"""By which boxes or scores of a changed model differ at least."""


@dataclasses.dataclass(frozen=True)
class Change:
    """One change.

    Attributes:
        title: what changes.
        code: of the plugin, with a class `Mine`; REGISTRY registers it.
        config: entries of the config's `model`, with dots -> value.
    """

    title: str
    code: str
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a change, and the words of the verdict or of the refusal."""

    change: Change
    kind: str
    words: str


@dataclasses.dataclass(frozen=True)
class Model:
    """An unchanged detector.

    Attributes:
        write: (folder) -> config and checkpoint.
        imports: of every plugin.
        changes: of it.
        options: of its export.
        samples: a proof runs on.
    """

    write: Callable[[Path], tuple[str, str]]
    imports: str
    changes: tuple[Change, ...]
    options: dict[str, Any]
    samples: Callable[[], list[Any]]


def outcomes(name: str, folder: Path, titles: tuple[str, ...] = ()) -> Iterator[Outcome]:
    """Yield what becomes of the changes of a model; `titles` chooses some."""
    from mmdeploy_ext.exporting import model as deploy

    model = MODELS[name]
    folder.mkdir(parents=True, exist_ok=True)
    config, checkpoint = model.write(folder)
    base = deploy.load(config, checkpoint)
    expected = results_of(base, model)
    for index, change in enumerate(model.changes):
        if titles and change.title not in titles:
            continue
        plugin = f'user_changes_{name}_{index}'
        (folder / f'{plugin}.py').write_text(model.imports + textwrap.dedent(change.code))
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        try:
            load = changed(change, plugin, config, checkpoint, folder)
            yield outcome(change, load, model, folder / f'{plugin}.onnx', expected)
        finally:
            sys.path.remove(str(folder))


def changed(change: Change, plugin: str, config: str, checkpoint: str, folder: Path) -> Callable[[], Any]:
    """Return what loads the changed model, whose new weights are those that it was built with."""
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.exporting import model as deploy
    from mmdeploy_ext.families.base import find_family

    path = folder / f'{plugin}_config.py'
    path.write_text(
        f"_base_ = ['{config}']\ncustom_imports = dict(imports=['{plugin}'], allow_failed_imports=False)\n"
    )

    def load() -> Any:
        cfg = load_config(str(path), {f'model.{key}': value for key, value in change.config.items()})
        torch.manual_seed(0)
        model = find_family(cfg).build(cfg)
        state = torch.load(checkpoint, map_location='cpu')
        weights = model.state_dict() | {
            key: value for key, value in state['state_dict'].items() if key in model.state_dict()
        }
        torch.save(dict(state_dict=weights, meta=state.get('meta', {})), folder / f'{plugin}.pth')
        overrides = {f'model.{key}': value for key, value in change.config.items()}
        return deploy.load(str(path), str(folder / f'{plugin}.pth'), overrides)

    return load


def outcome(
    change: Change, load: Callable[[], Any], model: Model, path: Path, expected: np.ndarray
) -> Outcome:
    """Return what becomes of a change; `expected` are results of the unchanged model.

    Results that are PROVEN are those of the changed one to 1e-4: a change of more is in the graph, too.
    """
    from mmdeploy_ext.core.errors import Mm2OnnxError

    try:
        deployment = load()
        file = export(deployment, model, path)
    except Mm2OnnxError as error:
        return Outcome(change, REFUSED, str(error))
    found = results_of(deployment, model)
    if found.shape == expected.shape and np.abs(found - expected).max() < EFFECT:
        return Outcome(change, SILENT, 'PyTorch gives what it gave before')
    verdict, words = judged(deployment, file, model)
    if not verdict.passed:
        return Outcome(change, NOT_PROVEN, words)
    return Outcome(change, ON_INPUTS if verdict.untraced else FOLLOWED, words)


def export(deployment: Any, model: Model, path: Path) -> str:
    """Export a model to a file, or to a folder of graphs; return its path."""
    from mmdeploy_ext.exporting import model as deploy
    from mmdeploy_ext.exporting.files import export_files

    chosen = deployment.family.choose(opset=0, **model.options)
    options = deploy.resolve(chosen, deployment.model, deployment.rule)
    deployment.family.check(deployment.cfg, options)
    if deployment.family.files:
        path = path.with_suffix('')
    export_files(deployment, options, str(path), pictures(deployment, options))
    return str(path)


def pictures(deployment: Any, options: Any) -> list[Any]:
    """Return the picture that is traced, of models of pictures."""
    if deployment.family.samples != 'images':
        return []
    from mmdeploy_ext.exporting import model as deploy
    from mmdeploy_ext.preprocess.pictures import read_image
    from toy_atss import PICTURE

    return [deploy.prepare_fixed(deployment.rule, read_image(PICTURE), options.height, options.width)]


def judged(deployment: Any, file: str, model: Model) -> tuple[Any, str]:
    """Return the verdict on a file, and its last line with what differs."""
    from mmdeploy_ext.proving.ladder import prove
    from mmdeploy_ext.proving.views.table import last_line

    names = deployment.family.names_of(deployment.family.choose(opset=0, **model.options))
    paths = [str(Path(file) / f'{name}.onnx') for name in names] or [file]
    verdict, _ = prove(deployment, paths, model.samples(), dict(engine='OnnxRuntimeBackend'))
    differing = [entry.text for entry in verdict.untraced]
    return verdict, '; '.join([last_line(verdict)[:160], *differing])


def results_of(deployment: Any, model: Model) -> np.ndarray:
    """Return boxes and scores that PyTorch gives for one sample, best first."""
    family = deployment.family
    if family.samples == 'images':
        options = family.choose(opset=17, **model.options)
        (image,) = pictures(deployment, options)
        (found,) = family.reference_detections(deployment.model, [image], False)
        return np.concatenate([found.bboxes_xyxy, found.scores[:, None]], 1)
    result = family.reference(deployment.model).step(model.samples()[0]).detections
    return np.concatenate([result.boxes, result.scores[:, None]], 1)


def _rtdetr_toy(folder: Path) -> tuple[str, str]:
    from toy_atss import REPO

    return str(REPO / 'configs/demo/rtdetr_toy.py'), str(REPO / 'demo/checkpoints/rtdetr_toy.pth')


def _dino(folder: Path) -> tuple[str, str]:
    """Write a seeded DINO of a few layers."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
    from mmdeploy_ext.families.base import find_family
    from mmdeploy_ext.synthetic.seeded import seeded_model
    from planted_toys import _dino as config

    cfg = config()
    (folder / 'dino.py').write_text(cfg.pretty_text)
    weights = seeded_model(cfg, find_family(cfg)).state_dict()
    torch.save(dict(state_dict=weights, meta={}), folder / 'dino.pth')
    return str(folder / 'dino.py'), str(folder / 'dino.pth')


def _pillars(folder: Path) -> tuple[str, str]:
    import toy_centerpoint

    return toy_centerpoint.exported('pillars')[2:]


def _picture() -> list[Any]:
    from mmdeploy_ext.preprocess.pictures import read_image
    from toy_atss import PICTURE

    return [('toy.jpg', read_image(PICTURE))]


def _sweeps() -> list[Any]:
    import toy_centerpoint
    from mmdeploy_ext.runtime.frames import Sweep

    return [Sweep(toy_centerpoint.sweep(seed, 300 + 100 * seed), f'sweep {seed}') for seed in range(2)]


DETECTOR = dict(type='Mine')
RTDETR_IMPORTS = """
import torch
from torch import nn
from mmdet.models.builder import DETECTORS, NECKS, HEADS, BACKBONES
from mmdeploy_ext.models.rtdetr.detector import RTDETR
from mmdeploy_ext.models.rtdetr.decoder import RTDETRDecoder, Postprocess, Anchors
from mmdeploy_ext.models.rtdetr.encoder import RTDETRHybridEncoder, PositionEmbedding
from mmdeploy_ext.models.rtdetr.backbone import PResNet
from mmdeploy_ext.models.rtdetr.attention import DecoderLayer, DeformableAttention
"""


def _class(name: str, base: str, registry: str, body: str) -> str:
    return f'@{registry}.register_module()\nclass {name}({base}):\n' + textwrap.indent(
        textwrap.dedent(body).strip(), '    '
    )


def _rtdetr(title: str, base: str, registry: str, key: str, body: str, before: str = '') -> Change:
    """Return a change of RT-DETR by a class of its own, named after what changes."""
    name = 'My' + ''.join(word.capitalize() for word in title.replace('-', ' ').split()) + 'OfRtdetr'
    code = textwrap.dedent(before) + '\n\n' + _class(name, base, registry, body)
    return Change(title, code, {f'{key}type': name})


def _with_modules(part: str, kind: str) -> str:
    """Return the body of a class that puts another class into some of its modules."""
    return f"""
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for module in self.modules():
            if type(module) is {kind}:
                module.__class__ = {part}
    """


RTDETR_CHANGES = (
    _rtdetr(
        'attention',
        'RTDETRDecoder',
        'HEADS',
        'decoder.',
        _with_modules('MyAttention', 'DeformableAttention'),
        """
        class MyAttention(DeformableAttention):
            def weights(self, query):
                return super().weights(query) * 0.8
        """,
    ),
    _rtdetr(
        'reference points',
        'RTDETRDecoder',
        'HEADS',
        'decoder.',
        _with_modules('MyLayer', 'DecoderLayer'),
        """
        class MyLayer(DecoderLayer):
            def forward(self, target, position, boxes_cxcywh, maps, mask=None):
                return super().forward(target, position, boxes_cxcywh * 0.9, maps, mask)
        """,
    ),
    _rtdetr(
        'decoder order',
        'RTDETRDecoder',
        'HEADS',
        'decoder.',
        _with_modules('MyOrder', 'DecoderLayer'),
        """
        class MyOrder(DecoderLayer):
            def forward(self, target, position, boxes_cxcywh, maps, mask=None):
                target = self.norm2(target + self.cross_attn(target + position, boxes_cxcywh, maps))
                target = self.norm1(target + self.self_attn(target, position, mask))
                return self.norm3(target + self.linear2(self.linear1(target).relu()))
        """,
    ),
    _rtdetr(
        'anchors',
        'RTDETRDecoder',
        'HEADS',
        'decoder.',
        _with_modules('MyAnchors', 'Anchors'),
        """
        class MyAnchors(Anchors):
            def forward(self, maps):
                boxes, valid = super().forward(maps)
                return boxes + 0.2, valid
        """,
    ),
    _rtdetr(
        'positions',
        'RTDETRHybridEncoder',
        'NECKS',
        'encoder.',
        _with_modules('MyPositions', 'PositionEmbedding'),
        """
        class MyPositions(PositionEmbedding):
            def forward(self, features):
                return super().forward(features) * 0.5
        """,
    ),
    _rtdetr(
        'an extra layer',
        'RTDETRHybridEncoder',
        'NECKS',
        'encoder.',
        """
        def forward(self, features):
            maps = super().forward(features)
            return tuple(nn.functional.avg_pool2d(one, 3, 1, 1) for one in maps)
        """,
    ),
    _rtdetr(
        'another activation',
        'PResNet',
        'BACKBONES',
        'backbone.',
        """
        def forward(self, images):
            return tuple(nn.functional.hardswish(one) for one in super().forward(images))
        """,
    ),
    _rtdetr(
        'scores of the decoder',
        'RTDETRDecoder',
        'HEADS',
        'decoder.',
        """
        def forward(self, features, tokens=None):
            logits, boxes, tokens = super().forward(features, tokens)
            return logits * 1.05, boxes, tokens
        """,
    ),
    _rtdetr(
        'post-processing',
        'RTDETR',
        'DETECTORS',
        '',
        _with_modules('MyPostprocess', 'Postprocess'),
        """
        class MyPostprocess(Postprocess):
            def forward(self, logits, boxes, sizes):
                labels, boxes, scores = super().forward(logits, boxes, sizes)
                return labels, boxes, scores.sqrt()
        """,
    ),
    _rtdetr(
        'score threshold',
        'RTDETR',
        'DETECTORS',
        '',
        """
        def simple_test(self, img, img_metas, rescale=False, **kwargs):
            found = super().simple_test(img, img_metas, rescale, **kwargs)
            return [[rows[rows[:, 4] > 0.3] for rows in image] for image in found]
        """,
    ),
    _rtdetr(
        'box scale',
        'RTDETR',
        'DETECTORS',
        '',
        """
        def forward_test(self, imgs, img_metas, **kwargs):
            found = super().forward_test(imgs, img_metas, **kwargs)
            for image in found:
                for rows in image:
                    rows[:, :4] *= 1.02
            return found
        """,
    ),
    _rtdetr(
        'images',
        'RTDETR',
        'DETECTORS',
        '',
        """
        def forward(self, img, img_metas, return_loss=True, **kwargs):
            return super().forward([one * 0.9 for one in img], img_metas, return_loss=return_loss, **kwargs)
        """,
    ),
)

DINO_IMPORTS = """
import torch
from torch import nn
from mmcv.cnn.bricks.registry import ATTENTION, FEEDFORWARD_NETWORK, POSITIONAL_ENCODING
from mmcv.cnn.bricks.registry import TRANSFORMER_LAYER, TRANSFORMER_LAYER_SEQUENCE
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttention
from mmdet.models.builder import DETECTORS, HEADS
from mmdet.models.utils.builder import TRANSFORMER
from mmdet.models.utils.positional_encoding import SinePositionalEncoding
from mmdet.models.utils.transformer import DetrTransformerDecoderLayer, DetrTransformerEncoder
from mmdeploy_ext.models.dino import DINO, DINOHead, DinoTransformer, DinoTransformerDecoder
"""
HEAD = 'bbox_head.'
LAYERS = f'{HEAD}transformer.decoder.transformerlayers.'


def _of_dino(title: str, base: str, registry: str, key: str, body: str) -> Change:
    name = 'My' + ''.join(word.capitalize() for word in title.replace('-', ' ').split()) + 'OfDino'
    return Change(title, _class(name, base, registry, body), {f'{key}type': name})


LIMITED = """
def forward(self, *args, **kwargs):
    return super().forward(*args, **kwargs).clamp(-1, 1)
"""
SCALED = """
def forward(self, *args, **kwargs):
    return super().forward(*args, **kwargs) * 0.5
"""
DINO_CHANGES = (
    _of_dino(
        'attention to points',
        'MultiScaleDeformableAttention',
        'ATTENTION',
        f'{HEAD}transformer.encoder.transformerlayers.attn_cfgs.',
        LIMITED,
    ),
    _of_dino(
        'attention among queries',
        'MultiheadAttention',
        'ATTENTION',
        f'{LAYERS}attn_cfgs.0.',
        LIMITED,
    ),
    _of_dino(
        'reference points',
        'DinoTransformer',
        'TRANSFORMER',
        f'{HEAD}transformer.',
        """
        @staticmethod
        def get_reference_points(spatial_shapes, valid_ratios, device):
            return DinoTransformer.get_reference_points(spatial_shapes, valid_ratios, device) * 0.9
        """,
    ),
    _of_dino(
        'proposals',
        'DinoTransformer',
        'TRANSFORMER',
        f'{HEAD}transformer.',
        """
        def gen_encoder_output_proposals(self, *args):
            rows, proposals = super().gen_encoder_output_proposals(*args)
            return rows, proposals + 0.2
        """,
    ),
    _of_dino(
        'decoder order',
        'DinoTransformerDecoder',
        'TRANSFORMER_LAYER_SEQUENCE',
        f'{HEAD}transformer.decoder.',
        """
        def forward(self, *args, **kwargs):
            layers = self.layers
            self.layers = nn.ModuleList(reversed(layers))
            found = super().forward(*args, **kwargs)
            self.layers = layers
            return found
        """,
    ),
    _of_dino(
        'outputs of the decoder',
        'DinoTransformerDecoder',
        'TRANSFORMER_LAYER_SEQUENCE',
        f'{HEAD}transformer.decoder.',
        """
        def forward(self, *args, **kwargs):
            query, boxes = super().forward(*args, **kwargs)
            return query * 1.05, boxes
        """,
    ),
    _of_dino(
        'an extra layer',
        'DetrTransformerDecoderLayer',
        'TRANSFORMER_LAYER',
        LAYERS,
        """
        def forward(self, *args, **kwargs):
            return nn.functional.hardtanh(super().forward(*args, **kwargs))
        """,
    ),
    _of_dino(
        'another activation',
        'FFN',
        'FEEDFORWARD_NETWORK',
        f'{LAYERS}ffn_cfgs.',
        """
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.layers[0][1] = nn.Hardswish()
        """,
    ),
    _of_dino(
        'positions',
        'SinePositionalEncoding',
        'POSITIONAL_ENCODING',
        f'{HEAD}positional_encoding.',
        SCALED,
    ),
    _of_dino(
        'box scale',
        'DINOHead',
        'HEADS',
        HEAD,
        """
        def _get_bboxes_single(self, *args, **kwargs):
            dets, labels = super()._get_bboxes_single(*args, **kwargs)
            dets[:, :4] *= 1.02
            return dets, labels
        """,
    ),
    _of_dino(
        'scores of the head',
        'DINOHead',
        'HEADS',
        HEAD,
        """
        def forward(self, *args, **kwargs):
            logits, *others = super().forward(*args, **kwargs)
            return (logits * 1.05, *others)
        """,
    ),
    _of_dino(
        'post-processing',
        'DINO',
        'DETECTORS',
        '',
        """
        def simple_test(self, *args, **kwargs):
            found = super().simple_test(*args, **kwargs)
            return [[rows[rows[:, 4] > 0.1] for rows in image] for image in found]
        """,
    ),
)

CENTERPOINT_IMPORTS = """
import torch
from torch import nn
from mmdet.core.bbox.builder import BBOX_CODERS
from mmdet.models.builder import BACKBONES, NECKS
from mmdet3d.models.builder import DETECTORS, HEADS, MIDDLE_ENCODERS, VOXEL_ENCODERS
from mmdet3d.core.bbox.coders import CenterPointBBoxCoder
from mmdet3d.models.backbones import SECOND
from mmdet3d.models.dense_heads import CenterHead
from mmdet3d.models.dense_heads.centerpoint_head import SeparateHead
from mmdet3d.models.detectors import CenterPoint
from mmdet3d.models.middle_encoders import PointPillarsScatter
from mmdet3d.models.necks import SECONDFPN
from mmdet3d.models.voxel_encoders import PillarFeatureNet
"""


def _of_points(title: str, base: str, registry: str, key: str, body: str) -> Change:
    name = 'My' + ''.join(word.capitalize() for word in title.replace('-', ' ').split()) + 'OfPoints'
    return Change(title, _class(name, base, registry, body), {f'{key}type': name})


CENTERPOINT_CHANGES = (
    _of_points(
        'box coder',
        'CenterPointBBoxCoder',
        'BBOX_CODERS',
        'pts_bbox_head.bbox_coder.',
        """
        def decode(self, *args, **kwargs):
            found = super().decode(*args, **kwargs)
            for one in found:
                one['bboxes'][:, 3:6] *= 1.05
            return found
        """,
    ),
    _of_points(
        'candidates',
        'CenterPointBBoxCoder',
        'BBOX_CODERS',
        'pts_bbox_head.bbox_coder.',
        """
        def _topk(self, scores, K=80):
            return super()._topk(scores * 0.9, K)
        """,
    ),
    _of_points(
        'score threshold',
        'CenterHead',
        'HEADS',
        'pts_bbox_head.',
        """
        def get_task_detections(self, classes, scores, boxes, labels, img_metas):
            scores = [one * 0.9 for one in scores]
            return super().get_task_detections(classes, scores, boxes, labels, img_metas)
        """,
    ),
    _of_points(
        'box scale',
        'CenterHead',
        'HEADS',
        'pts_bbox_head.',
        """
        def get_bboxes(self, *args, **kwargs):
            found = super().get_bboxes(*args, **kwargs)
            for boxes, _, _ in found:
                boxes.tensor[:, :2] *= 1.02
            return found
        """,
    ),
    _of_points(
        'outputs of the head',
        'CenterHead',
        'HEADS',
        'pts_bbox_head.',
        """
        def forward(self, feats):
            found = super().forward(feats)
            for (level,) in found:
                level['heatmap'] = level['heatmap'] * 1.05
            return found
        """,
    ),
    _of_points(
        'an extra layer',
        'SeparateHead',
        'HEADS',
        'pts_bbox_head.separate_head.',
        """
        def forward(self, x):
            return super().forward(nn.functional.avg_pool2d(x, 3, 1, 1))
        """,
    ),
    _of_points(
        'another activation',
        'SECOND',
        'BACKBONES',
        'pts_backbone.',
        """
        def forward(self, x):
            return tuple(nn.functional.hardswish(one) for one in super().forward(x))
        """,
    ),
    _of_points(
        'neck',
        'SECONDFPN',
        'NECKS',
        'pts_neck.',
        """
        def forward(self, x):
            return [one * 1.05 for one in super().forward(x)]
        """,
    ),
    _of_points(
        'features of pillars',
        'PillarFeatureNet',
        'VOXEL_ENCODERS',
        'pts_voxel_encoder.',
        """
        def forward(self, features, num_points, coors):
            return super().forward(features, num_points, coors) * 1.05
        """,
    ),
    _of_points(
        'map of pillars',
        'PointPillarsScatter',
        'MIDDLE_ENCODERS',
        'pts_middle_encoder.',
        """
        def forward(self, *args, **kwargs):
            return super().forward(*args, **kwargs).flip(-1)
        """,
    ),
    _of_points(
        'post-processing',
        'CenterPoint',
        'DETECTORS',
        '',
        """
        def simple_test_pts(self, x, img_metas, rescale=False):
            found = super().simple_test_pts(x, img_metas, rescale)
            for one in found:
                one['scores_3d'] = one['scores_3d'].sqrt()
            return found
        """,
    ),
    _of_points(
        'points',
        'CenterPoint',
        'DETECTORS',
        '',
        """
        def forward(self, return_loss=True, **kwargs):
            kwargs['points'] = [[points * points.new_tensor([0.9, 1, 1, 1, 1]) for points in one]
                                for one in kwargs['points']]
            return super().forward(return_loss=return_loss, **kwargs)
        """,
    ),
)
MODELS = dict(
    rtdetr=Model(
        _rtdetr_toy, RTDETR_IMPORTS, RTDETR_CHANGES, dict(height=256, width=256, dynamic=False), _picture
    ),
    dino=Model(_dino, DINO_IMPORTS, DINO_CHANGES, dict(height=192, width=256, dynamic=False), _picture),
    centerpoint=Model(_pillars, CENTERPOINT_IMPORTS, CENTERPOINT_CHANGES, {}, _sweeps),
)


def main(names: list[str]) -> int:
    """Print the table; 0: no change is silent."""
    import tempfile

    silent = 0
    for name in names or MODELS:
        with tempfile.TemporaryDirectory() as folder:
            for found in outcomes(name, Path(folder)):
                silent += found.kind == SILENT
                print(f'| {name} | {found.change.title} | {found.kind} | {found.words[:250]} |', flush=True)
    return int(silent > 0)


if __name__ == '__main__':
    sys.path[:0] = [str(Path(__file__).parents[1])]
    from mmdeploy_ext import compat

    compat.apply()
    import mmdeploy_ext.families.mmdet3d_plugin
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    sys.exit(main(sys.argv[1:]))
