"""The contracts of StreamPETR's graphs: names, shapes, meaning, units, tolerances.

Glossary: N cameras, H, W network input in pixels, h, w feature map, T = N h w tokens, L decoder layers.
"""

import dataclasses

from torch import nn

from mmdeploy_ext.contract.options import Options
from mmdeploy_ext.contract.spec import ColumnGroup, GraphSpec, TensorSpec
from mmdeploy_ext.families.streampetr.runtime.fork import FORK_NAMES
from mmdeploy_ext.families.streampetr.runtime.state import FIELDS
from mmdeploy_ext.tasks.half_bars import widened

STATE_PAIRS = tuple((f'post_memory_{field}', f'pre_memory_{field}') for field in FIELDS)
"""Pairs: output of a frame, and the input of the next frame that it becomes; one per field of the memory."""
FORK_FIELDS = ('embedding', 'timestamp', 'egopose', 'reference_point', 'velo')
"""The fields of the memory in the fork's order; `FORK_NAMES` has the fork's names."""
GEOMETRY = {
    'img2lidar', 'intrinsics', 'intrinsic', 'cone', 'ego_motion', 'ego_pose_inv', 'delta_t_s', 'timestamp'
}  # fmt: skip
GEOMETRY |= {f'pre_memory_{field}' for field in FIELDS[1:]}
GEOMETRY |= {f'in_mem_{FORK_NAMES[field]}' for field in FORK_FIELDS[1:]}
"""Inputs, and the output `cone`, that are `TensorSpec.single`: points, intrinsics, poses, times."""
PREDICTIONS = ('all_cls_scores', 'all_bbox_preds')
"""Outputs that are float32 from their last linear layer on, as the top-k sorts them."""
FEATURES = frozenset({
    'img', 'img_feats', 'pos_embed', 'outs_dec',
    'pre_memory_embedding', 'post_memory_embedding', 'in_mem_embedding', 'mem_embedding',
})  # fmt: skip
"""Inputs and outputs of a float16 graph that `fp16_io` makes float16."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The numbers that determine all shapes.

    Attributes:
        cameras: N.
        height, width: H, W.
        stride: pixels of the input per cell of the feature map.
        depth: depth bins of a token's ray.
        channels: number of channels of features and embeddings.
        layers: L whose predictions are outputs: all decoder layers, or 1 for the last one.
        queries: learned and propagated ones.
        classes: number of classes.
        code: numbers of a predicted box.
        memory: rows of the memory inside a frame.
        state: rows of the memory between frames: those inside a frame and the new ones.
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
        """(h, w)."""
        return self.height // self.stride, self.width // self.stride

    @property
    def tokens(self) -> int:
        """T."""
        height, width = self.feature_hw
        return self.cameras * height * width


def sizes(model: nn.Module, cameras: int, height: int, width: int, layers: str = 'all') -> Sizes:
    """Read the numbers from a `Petr3D` for N cameras of H x W px; `layers` is 'all', or 'last' for L = 1.

    A decoder that does not return its intermediate layers has L = 1 in any case.
    """
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


LOGITS = (ColumnGroup('logits', unit='logit', rtol=0.0, atol=1e-3),)
"""Tolerance of the class logits."""
BOXES = (
    ColumnGroup('xyz', (0, 1, 2), 'm', 0.0, 5e-3),
    ColumnGroup('log size', (3, 4, 5), '', 0.0, 1e-3),
    ColumnGroup('sin cos yaw', (6, 7), '', 0.0, 1e-3),
    ColumnGroup('velocity', (8, 9), 'm/s', 0.0, 1e-3),
)
"""Columns of a box code, and their tolerances."""
STATE_GROUPS = dict(
    embedding=ColumnGroup(rtol=0.0, atol=1e-3),
    reference_point=ColumnGroup('xyz', unit='m', rtol=0.0, atol=5e-3),
    timestamp=ColumnGroup(unit='s', rtol=0.0, atol=1e-5),
    egopose=ColumnGroup(rtol=0.0, atol=2e-4),
    velo=ColumnGroup(unit='m/s', rtol=0.0, atol=1e-3),
)
"""Field of the memory -> its tolerance."""
STATE_MEANING = dict(
    embedding='decoder outputs of the rows',
    reference_point='box centres of the rows',
    timestamp='ages of the rows',
    egopose="transforms from the LiDAR frame of each row's origin",
    velo='velocities of the rows in the LiDAR frame of their origin',
)
"""Field of the memory -> its meaning."""


class SpecFactory:
    """Makes the tensor specs of an export with some options."""

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
        """Return the spec of a tensor; a float16 graph has wider tolerances and may have float16 features.

        Args:
            name: name of the tensor.
            axes: its shape.
            meaning: words for it.
            unit: unit of its values.
            groups: tolerances of its columns; without them those of a `ColumnGroup` of the unit.
            dtype: name of its type; '' stands for float32, or float16 by the options.
            unused: no operator uses this input.
        """
        groups = widened(groups or (ColumnGroup(unit=unit),), self.options.precision)
        is_half = self.options.precision == 'fp16' and self.options.fp16_io and name in FEATURES
        dtype = dtype or ('float16' if is_half else 'float32')
        single = name in GEOMETRY or name in PREDICTIONS
        return TensorSpec(name, dtype, axes, meaning, unit, groups, unused=unused, single=single)

    def images(self, size: Sizes) -> TensorSpec:
        """Return the spec of the images (N, 3, H, W); `preprocess` of the metadata makes their numbers."""
        axes = (size.cameras, 3, size.height, size.width)
        return self.tensor('img', axes, 'normalised images, padded bottom and right')

    def rows(
        self, name: str, field: str, rows: int, size: Sizes, meaning: str, dtype: str = ''
    ) -> TensorSpec:
        """Return the spec of one tensor of the memory.

        Args:
            name: name of the tensor in the graph.
            field: one of `FIELDS`, which decides the axes after the rows, the unit and the tolerance.
            rows: number of rows.
            size: sizes of the model.
            meaning: words for it.
            dtype: as in `tensor`.
        """
        tails = dict(
            embedding=(size.channels,), reference_point=(3,), timestamp=(1,), egopose=(4, 4), velo=(2,)
        )
        group = STATE_GROUPS[field]
        return self.tensor(name, (1, rows, *tails[field]), meaning, group.unit, (group,), dtype)

    def embeddings(self, size: Sizes) -> tuple[TensorSpec, TensorSpec]:
        """Return the specs of the outputs of the position embedding's graph: `pos_embed` and `cone`.

        `FrameSteps.position_embedding` in `models/streampetr/steps.py` has the columns of `cone`.
        """
        axes, cone = (1, size.tokens, size.channels), (1, size.tokens, 8)
        per_token = 'per token |fx| |fy| in 1000 px and the normalised far points of its ray'
        return (
            self.tensor('pos_embed', axes, 'position embedding of the tokens', '', (ColumnGroup(atol=5e-4),)),
            self.tensor('cone', cone, per_token, '', (ColumnGroup(atol=1e-5),)),
        )

    def predictions(self, size: Sizes) -> tuple[TensorSpec, TensorSpec]:
        """Return the specs of logits and box codes.

        A code is x, y, z of the centre, logarithms of length, width, height (m), sine and cosine of the yaw
        from the x axis counter-clockwise, velocity x, y, all in this LiDAR frame. Upstream's code calls the
        first two sizes w and l, and so does `meaning`.
        """
        layers = 'all decoder layers' if size.layers > 1 else 'the last decoder layer'
        shape = (size.layers, 1, size.queries)
        box = 'x y z (m, current LiDAR frame) log w log l log h sin cos (yaw) vx vy (m/s)'
        return (
            self.tensor(
                'all_cls_scores', (*shape, size.classes), f'class logits of {layers}', 'logit', LOGITS
            ),
            self.tensor('all_bbox_preds', (*shape, size.code), f'{box}, of {layers}', '', BOXES),
        )


def extract_img_feat(size: Sizes, options: Options) -> GraphSpec:
    """Return the contract of backbone and neck."""
    factory = SpecFactory(options)
    axes = (1, size.cameras, size.channels, *size.feature_hw)
    meaning = f'feature map of stride {size.stride}'
    features = factory.tensor('img_feats', axes, meaning, '', (ColumnGroup(atol=2e-5),))
    return GraphSpec('streampetr/extract_img_feat', (factory.images(size),), (features,))


def position_embedding(size: Sizes, options: Options) -> GraphSpec:
    """Return the contract of the graph that depends on the calibration alone."""
    factory = SpecFactory(options)
    matrices = (1, size.cameras, 4, 4)
    inverse = 'inverses of lidar2img, made in float64: pixels times depth to LiDAR frame'
    inputs = (
        factory.tensor('img2lidar', matrices, inverse),
        factory.tensor('intrinsics', matrices, 'of the network input', 'pixel'),
    )
    return GraphSpec('streampetr/position_embedding', inputs, factory.embeddings(size))


def pts_head_memory(size: Sizes, options: Options) -> GraphSpec:
    """Return the contract of the head's graph, in which the memory is five inputs and five outputs.

    The frame of a memory is that of its points and poses: velocities stay in that of their rows' origin.
    """
    factory = SpecFactory(options)
    frames = dict(
        pre='the last LiDAR frame, ages from the last frame', post='this LiDAR frame, ages from this frame'
    )

    def state(time: str) -> tuple[TensorSpec, ...]:  # 'pre' a frame or 'post'
        meanings = {
            field: f'{STATE_MEANING[field]}; in {frames[time]}; newest rows first' for field in FIELDS
        }
        return tuple(
            factory.rows(f'{time}_memory_{field}', field, size.state, size, meaning)
            for field, meaning in meanings.items()
        )

    inputs = (
        *extract_img_feat(size, options).outputs,
        *factory.embeddings(size),
        *state('pre'),
        factory.tensor(
            'ego_motion', (1, 4, 4), 'last LiDAR frame to current LiDAR frame, composed in float64'
        ),
        factory.tensor('delta_t_s', (1,), 'time since the last frame', 's'),
        factory.tensor(
            'prev_exists', (1,), '0 at the first frame of a scene, 1 otherwise; at 0 the state is ignored'
        ),
    )
    outputs = (*factory.predictions(size), *state('post'))
    return GraphSpec('streampetr/pts_head_memory', inputs, outputs, STATE_PAIRS)


def fork(size: Sizes, options: Options) -> GraphSpec:
    """Return the contract of the deployment fork's one graph, version 1.0 or 1.1.

    The times of the memory that it takes are minus the absolute times of the rows' origin in 1.0, and in 1.1
    the rows' ages at this frame; those of the memory that it gives are ages in both. Velocities stay in the
    LiDAR frame of their rows' origin.

    Tokens are camera by camera, in each row by row; all depth bins of a token have the same matrix. In
    `runtime/fork.py`, `expand_calibration` makes the inputs of the rig, `post_update` the memory of the next
    frame. `options` also decide about float16, see `SpecFactory.tensor`.
    """
    factory, absolute_time = SpecFactory(options), options.fork_version == '1.0'

    def state(prefix: str, rows: int, frame: str, time_meaning: str) -> tuple[TensorSpec, ...]:
        tensors = []
        for field in FORK_FIELDS:
            meaning, dtype = f'{STATE_MEANING[field]}; in {frame}', ''
            if field == 'timestamp' and absolute_time:
                meaning, dtype = time_meaning, 'float64'
            name = f'{prefix}_{FORK_NAMES[field]}'
            tensors.append(factory.rows(name, field, rows, size, meaning, dtype))
        return tuple(tensors)

    matrices = (1, size.tokens, 4, 4)
    if options.fork_img2lidar == 'depth':
        matrices = (1, size.tokens, size.depth, 4, 4)
    inputs = [
        factory.images(size),
        factory.tensor('img2lidar', matrices, 'inverse of lidar2img of the camera of each token'),
        factory.tensor(
            'intrinsic', (1, size.tokens, 2), '|fx| |fy| in 1000 px; token t has camera t mod N, as trained'
        ),
    ]
    if absolute_time:
        inputs.append(factory.tensor('timestamp', (1,), 'absolute time of the frame', 's', dtype='float64'))
    inputs += [
        factory.tensor('ego_pose', (1, 4, 4), 'LiDAR to global frame; no operator uses it', unused=True),
        factory.tensor('ego_pose_inv', (1, 4, 4), 'global to LiDAR frame'),
        factory.tensor('prev_exists', (1,), '0 at the first frame of a scene, 1 otherwise'),
        *state(
            'in_mem',
            size.state,
            'the global frame, after the last frame',
            'minus the absolute times of origin',
        ),
    ]
    outputs = (
        *factory.predictions(size),
        *state('mem', size.memory, 'this LiDAR frame, before this frame adds to it', 'ages of the rows'),
        factory.tensor(
            'outs_dec',
            (1, size.queries, size.channels),
            'last decoder layer after its norm',
            '',
            (ColumnGroup(rtol=0.0, atol=1e-3),),
        ),
    )
    return GraphSpec(f'streampetr/fork {options.fork_version}', tuple(inputs), outputs)
