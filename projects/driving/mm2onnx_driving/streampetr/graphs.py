"""StreamPETR's graphs: the detector's own steps; `spec.py` has their contracts.

Glossary: N cameras, H, W network input in pixels, h, w feature map, T = N h w tokens, C channels, n rows of
the memory, L decoder layers in the outputs (all, or 1: the last one), Q queries, K classes.
"""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera import with_examples
from mm2onnx_driving.streampetr.memory import FIELDS
from mm2onnx_driving.streampetr.runtime import GRAPHS
from mm2onnx_driving.streampetr.steps import Memory, steps_of
from mmdeploy_ext.families.common.lidar_parts import OfModel
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.results import widened
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

# The contracts of StreamPETR's graphs: names, shapes, units, tolerances.
#
# Glossary: N cameras, H, W network input in pixels, h, w feature map, T = N h w tokens, L decoder layers.


STATE_PAIRS = tuple((f'post_memory_{field}', f'pre_memory_{field}') for field in FIELDS)
"""(output of a frame, input of the next frame)."""
PREDICTIONS = ('all_cls_scores', 'all_bbox_preds')
GEOMETRY = {'img2lidar', 'intrinsics', 'cone', 'ego_motion', 'delta_t_s'}
GEOMETRY |= {f'pre_memory_{field}' for field in FIELDS[1:]}
"""Tensors that are `TensorSpec.single`: points, intrinsics, poses, times."""
FEATURES = {'img', 'img_feats', 'pos_embed', 'pre_memory_embedding', 'post_memory_embedding'}
LOGITS = (ColumnGroup('logits', unit='logit', rtol=0.0, atol=1e-3),)
BOXES = (
    ColumnGroup('xyz', (0, 1, 2), 'm', 0.0, 5e-3),
    ColumnGroup('log size', (3, 4, 5), '', 0.0, 1e-3),
    ColumnGroup('sin cos yaw', (6, 7), '', 0.0, 1e-3),
    ColumnGroup('velocity', (8, 9), 'm/s', 0.0, 1e-3),
)
STATE_GROUPS = dict(
    embedding=ColumnGroup(rtol=0.0, atol=1e-3),
    reference_point=ColumnGroup('xyz', unit='m', rtol=0.0, atol=5e-3),
    timestamp=ColumnGroup(unit='s', rtol=0.0, atol=1e-5),
    egopose=ColumnGroup(rtol=0.0, atol=2e-4),
    velo=ColumnGroup(unit='m/s', rtol=0.0, atol=1e-3),
)
STATE_MEANING = dict(
    embedding='decoder outputs of the rows',
    reference_point='box centres of the rows',
    timestamp='ages of the rows',
    egopose="transforms from the LiDAR frame of each row's origin",
    velo='velocities of the rows in the LiDAR frame of their origin',
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers that determine all shapes.

    Attributes:
        stride: pixels of the input per cell.
        depth: depth bins of a token's ray.
        channels: of features and embeddings.
        layers: decoder layers in the outputs: all, or 1 for the last.
        queries: learned and propagated ones.
        code: numbers of a box.
        memory: rows of the memory inside a frame.
        state: rows between frames: `memory` and the new rows.
    """

    cameras: int
    height: int
    width: int
    stride: int
    depth: int
    channels: int
    layers: int
    queries: int
    classes: int
    code: int
    memory: int
    state: int

    @property
    def feature_hw(self) -> tuple[int, int]:
        return self.height // self.stride, self.width // self.stride

    @property
    def tokens(self) -> int:
        height, width = self.feature_hw
        return self.cameras * height * width


def sizes(model: nn.Module, cameras: int, height: int, width: int, layers: str = 'all') -> Sizes:
    head, decoder = model.pts_bbox_head, model.pts_bbox_head.transformer.decoder
    return Sizes(
        cameras=cameras,
        height=height,
        width=width,
        stride=int(head.stride),
        depth=int(head.depth_num),
        channels=int(head.embed_dims),
        layers=len(decoder.layers) if layers == 'all' and decoder.return_intermediate else 1,
        queries=int(head.num_query + head.num_propagated),
        classes=int(head.cls_out_channels),
        code=int(head.code_size),
        memory=int(head.memory_len),
        state=int(head.memory_len + head.topk_proposals),
    )


class SpecFactory:
    """Makes the tensor specs of an export with some options; `geometry`, `features`: see the constants."""

    geometry, features = GEOMETRY, FEATURES

    def __init__(self, options: Options) -> None:
        self.options = options

    def tensor(
        self,
        name: str,
        axes: tuple[int, ...],
        meaning: str,
        unit: str = '',
        groups: tuple[ColumnGroup, ...] = (),
        dtype: str = '',
        unused: bool = False,
    ) -> TensorSpec:
        """Return the spec of a tensor; a float16 graph has wider tolerances and may have float16 features."""
        groups = widened(groups or (ColumnGroup(unit=unit),), self.options.precision)
        is_half = self.options.precision == 'fp16' and self.options.fp16_io and name in self.features
        dtype = dtype or ('float16' if is_half else 'float32')
        single = name in self.geometry or name in PREDICTIONS
        return TensorSpec(name, dtype, axes, meaning, unit, groups, unused=unused, single=single)

    def images(self, size: Sizes) -> TensorSpec:
        axes = (size.cameras, 3, size.height, size.width)
        return self.tensor('img', axes, 'normalised images, padded bottom and right')

    def rows(
        self, name: str, field: str, rows: int, size: Sizes, meaning: str, dtype: str = ''
    ) -> TensorSpec:
        tails = dict(
            embedding=(size.channels,), reference_point=(3,), timestamp=(1,), egopose=(4, 4), velo=(2,)
        )
        group = STATE_GROUPS[field]
        return self.tensor(name, (1, rows, *tails[field]), meaning, group.unit, (group,), dtype)

    def embeddings(self, size: Sizes) -> tuple[TensorSpec, TensorSpec]:
        axes, cone = (1, size.tokens, size.channels), (1, size.tokens, 8)
        per_token = 'per token |fx| and |fy| in 1000 px and normalised points of its ray'
        return (
            self.tensor('pos_embed', axes, 'position embedding of the tokens', '', (ColumnGroup(atol=5e-4),)),
            self.tensor('cone', cone, per_token, '', (ColumnGroup(atol=1e-5),)),
        )

    def predictions(self, size: Sizes) -> tuple[TensorSpec, TensorSpec]:
        layers = 'all decoder layers' if size.layers > 1 else 'the last decoder layer'
        shape, logits = (size.layers, 1, size.queries), f'class logits of {layers}'
        box = f'x y z (m, current LiDAR frame) log w log l log h sin cos (yaw) vx vy (m/s), of {layers}'
        return (
            self.tensor('all_cls_scores', (*shape, size.classes), logits, 'logit', LOGITS),
            self.tensor('all_bbox_preds', (*shape, size.code), box, '', BOXES),
        )


def extract_img_feat(size: Sizes, options: Options) -> GraphSpec:
    factory = SpecFactory(options)
    axes = (1, size.cameras, size.channels, *size.feature_hw)
    meaning = f'feature map of stride {size.stride}'
    features = factory.tensor('img_feats', axes, meaning, '', (ColumnGroup(atol=2e-5),))
    return GraphSpec('streampetr/extract_img_feat', (factory.images(size),), (features,))


def position_embedding(size: Sizes, options: Options) -> GraphSpec:
    factory, matrices = SpecFactory(options), (1, size.cameras, 4, 4)
    inverse = 'inverses of lidar2img, computed in float64: pixels times depth to the LiDAR frame'
    inputs = (
        factory.tensor('img2lidar', matrices, inverse),
        factory.tensor('intrinsics', matrices, 'height and width of the network input', 'pixel'),
    )
    return GraphSpec('streampetr/position_embedding', inputs, factory.embeddings(size))


def pts_head_memory(size: Sizes, options: Options) -> GraphSpec:
    factory = SpecFactory(options)

    def state(prefix: str, frame: str) -> list[TensorSpec]:
        meanings = {field: f'{STATE_MEANING[field]}; in {frame}; newest rows first' for field in FIELDS}
        return [
            factory.rows(f'{prefix}_memory_{field}', field, size.state, size, meaning)
            for field, meaning in meanings.items()
        ]

    motion = 'last LiDAR frame to current LiDAR frame, composed in float64'
    exists = '0 at the first frame of a scene, 1 otherwise; at 0 the state is ignored'
    inputs = (
        *extract_img_feat(size, options).outputs,
        *factory.embeddings(size),
        *state('pre', 'the last LiDAR frame, ages from the last frame'),
        factory.tensor('ego_motion', (1, 4, 4), motion),
        factory.tensor('delta_t_s', (1,), 'time since the last frame', 's'),
        factory.tensor('prev_exists', (1,), exists),
    )
    outputs = (*factory.predictions(size), *state('post', 'this LiDAR frame, ages from this frame'))
    return GraphSpec('streampetr/pts_head_memory', inputs, outputs, STATE_PAIRS)


def _constants(model: nn.Module, compute: Callable[[nn.Module], Sequence[Tensor]]) -> list[Tensor]:
    with torch.no_grad():
        return [rows.clone() for rows in compute(model.pts_bbox_head)]


def register_frustum(module: nn.Module, cameras: int, height: int, width: int) -> None:
    (frustum,) = _constants(module.model, lambda head: [steps_of(head).frustum((height, width), cameras)])
    module.register_buffer('frustum', frustum, persistent=False)


class ExtractImgFeat(OfModel):
    """Backbone and neck."""

    def forward(self, img: Tensor) -> tuple[Tensor, ...]:
        """Return img_feats (1, N, C, h, w) of img (N, 3, H, W), normalised."""
        return (self.model.extract_img_feat(img.unsqueeze(0)),)


class RigEmbedding(OfModel):
    """The position embedding, run once per rig."""

    def __init__(self, model: nn.Module, cameras: int, height: int, width: int) -> None:
        super().__init__(model)
        register_frustum(self, cameras, height, width)
        self.tokens_per_camera = self.frustum.shape[0] // cameras

    def forward(self, img2lidar: Tensor, intrinsics: Tensor) -> tuple[Tensor, Tensor]:
        """Return pos_embed (1, T, C) and cone (1, T, 8) of img2lidar and intrinsics (1, N, 4, 4).

        `img2lidar` is from pixels times depth to the LiDAR frame; `cone` has |fx|, |fy| in 1000 pixels, and
        two far points of a token's ray, relative to the range of positions.
        """
        steps = steps_of(self.model.pts_bbox_head)
        focal = steps.focal_per_token(intrinsics, self.tokens_per_camera)
        return steps.position_embedding(img2lidar, focal, self.frustum)


class HeadStep(nn.Module):
    """The head's step with its learned queries as constants; base of the graphs with the head.

    Attributes:
        model: the detector; parameters keep their names below it.
        all_layers: predictions of all decoder layers, not of the last one alone.
    """

    def __init__(self, model: nn.Module, all_layers: bool) -> None:
        super().__init__()
        self.model, self.all_layers = model, all_layers
        queries = _constants(model, lambda head: steps_of(head).learned_queries())
        for name, rows in zip(('tgt', 'query_pos', 'query_points'), queries, strict=True):
            self.register_buffer(name, rows, persistent=False)

    def step(self, *args: Tensor | Memory) -> tuple[dict[str, Tensor], Memory, Memory]:
        """Run `FrameSteps.step` with its arguments up to `prev_exists`."""
        queries = (self.tgt, self.query_pos, self.query_points)
        return steps_of(self.model.pts_bbox_head).step(*args, queries=queries, all_layers=self.all_layers)


class PtsHeadMemory(HeadStep):
    """The head as a step without side effects: the memory goes in and comes out as five tensors.

    Inputs are in the LiDAR frame and with ages at the time of the last frame, outputs of this frame.
    Velocities stay in the LiDAR frame of the row's origin.
    """

    def forward(
        self,
        img_feats: Tensor,
        pos_embed: Tensor,
        cone: Tensor,
        embedding: Tensor,
        reference_point: Tensor,
        timestamp: Tensor,
        egopose: Tensor,
        velo: Tensor,
        ego_motion: Tensor,
        delta_t_s: Tensor,
        prev_exists: Tensor,
    ) -> tuple[Tensor, ...]:
        """Compute one frame of `img_feats` (1, N, C, h, w) and the outputs of `RigEmbedding`.

        The memory is `embedding` (1, n, C), `reference_point` (1, n, 3), `timestamp` (1, n, 1), `egopose` (1,
        n, 4, 4) and `velo` (1, n, 2). `ego_motion` (1, 4, 4) is from the last LiDAR frame to this one,
        `delta_t_s` (1,) the time since; `prev_exists` (1,) 0 ignores the memory. Returned are all_cls_scores
        (L, 1, Q, K), logits, all_bbox_preds (L, 1, Q, 10), codes (`SpecFactory.predictions`), and the five
        tensors of the new memory.
        """
        state = Memory(embedding, reference_point, timestamp, egopose, velo)
        outputs, _, after = self.step(img_feats, pos_embed, cone, state, ego_motion, delta_t_s, prev_exists)
        return outputs['all_cls_scores'], outputs['all_bbox_preds'], *after


def graphs(model: nn.Module, options: Options) -> list[Graph]:
    size = sizes(model, *model.input_sizes, options.layers)
    modules = (
        ExtractImgFeat(model),
        RigEmbedding(model, size.cameras, size.height, size.width),
        PtsHeadMemory(model, options.layers == 'all'),
    )
    contracts = (extract_img_feat, position_embedding, pts_head_memory)
    specs = [contract(size, options) for contract in contracts]
    return with_examples(model, list(zip(GRAPHS, modules, specs, strict=True)))
