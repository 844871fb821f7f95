"""The one graph of woquyuna's fork of StreamPETR, versions 1.0 and 1.1.

Source: woquyuna/StreamPETR deployV1.0 0e9eefe and deployV1.1 13660a1.

Glossary: N cameras, H, W network input in pixels, T tokens, C channels, n rows of the memory, L decoder
layers in the outputs (all, or 1: the last one), Q queries, K classes.
"""

import torch
from torch import Tensor, nn

from mm2onnx_driving.common.camera import with_examples
from mm2onnx_driving.streampetr.graphs import (
    FEATURES,
    GEOMETRY,
    STATE_MEANING,
    HeadStep,
    Sizes,
    SpecFactory,
    register_frustum,
    sizes,
)
from mm2onnx_driving.streampetr.steps import Memory, steps_of
from mm2onnx_driving.streampetr.targets.streampetr_fork import FORK_NAMES, ForkOnnx
from mmdeploy_ext.families.contracts import PUBLISHED, Contract
from mmdeploy_ext.spec.options import Options
from mmdeploy_ext.spec.tensors import ColumnGroup, Graph, GraphSpec, TensorSpec

FORK_FIELDS = ('embedding', 'timestamp', 'egopose', 'reference_point', 'velo')
"""The fields of the memory in the fork's order; `FORK_NAMES` has the fork's names."""


class ForkSpecs(SpecFactory):
    geometry = GEOMETRY | {'intrinsic', 'ego_pose_inv', 'timestamp'}
    geometry |= {f'in_mem_{FORK_NAMES[field]}' for field in FORK_FIELDS[1:]}
    features = FEATURES | {'outs_dec', 'in_mem_embedding', 'mem_embedding'}


class ForkFrame(HeadStep):
    """The fork's graph of version 1.1, with ages instead of absolute times."""

    def __init__(self, model: nn.Module, all_layers: bool, cameras: int, height: int, width: int) -> None:
        super().__init__(model, all_layers)
        register_frustum(self, cameras, height, width)

    def forward(
        self,
        img: Tensor,
        img2lidar: Tensor,
        intrinsic: Tensor,
        ego_pose: Tensor,
        ego_pose_inv: Tensor,
        prev_exists: Tensor,
        embedding: Tensor,
        age: Tensor,
        egopose: Tensor,
        ref_point: Tensor,
        velo: Tensor,
    ) -> tuple[Tensor, ...]:
        """Compute one frame of normalised images (N, 3, H, W), with a memory in a global frame.

        `img2lidar` is (1, T, 4, 4), or (1, T, depth bins, 4, 4), `intrinsic` (1, T, 2), |fx| and |fy| in 1000
        pixels, `ego_pose_inv` (1, 4, 4) from the global frame to the LiDAR's; `ego_pose` is unused.
        """
        steps = steps_of(self.model.pts_bbox_head)
        features = self.model.extract_img_feat(img.unsqueeze(0))
        pos_embed, cone = steps.position_embedding(img2lidar, intrinsic, self.frustum)
        state = Memory(embedding, ref_point, age, egopose, velo)
        # the fork's caller, or `ForkFrame10`, has made ages of the times
        no_time = torch.zeros_like(prev_exists)
        outputs, used, _ = self.step(features, pos_embed, cone, state, ego_pose_inv, no_time, prev_exists)
        rows = (used.embedding, used.timestamp, used.egopose, used.reference_point, used.velo)
        return outputs['all_cls_scores'], outputs['all_bbox_preds'], *rows, outputs['outs_dec'][-1]


class ForkFrame10(ForkFrame):
    """The fork's graph of version 1.0, which adds absolute and negative times in float64."""

    def forward(
        self,
        img: Tensor,
        img2lidar: Tensor,
        intrinsic: Tensor,
        timestamp: Tensor,
        ego_pose: Tensor,
        ego_pose_inv: Tensor,
        prev_exists: Tensor,
        embedding: Tensor,
        in_timestamp: Tensor,
        egopose: Tensor,
        ref_point: Tensor,
        velo: Tensor,
    ) -> tuple[Tensor, ...]:
        """Compute one frame as `ForkFrame`; `timestamp` (1,), `in_timestamp` (1, n, 1), ages are float64."""
        age = (in_timestamp + timestamp.view(1, 1, 1)).float()
        state = (embedding, age, egopose, ref_point, velo)
        outputs = super().forward(img, img2lidar, intrinsic, ego_pose, ego_pose_inv, prev_exists, *state)
        return *outputs[:3], outputs[3].double(), *outputs[4:]


def fork_spec(size: Sizes, options: Options) -> GraphSpec:
    """Return the contract of the deployment fork's one graph, version 1.0 or 1.1."""
    factory, absolute_time = ForkSpecs(options), options.fork_version == '1.0'

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
        *state('mem', size.memory, 'the current LiDAR frame, before the update', 'ages of the rows'),
        factory.tensor(
            'outs_dec',
            (1, size.queries, size.channels),
            'last decoder layer after its norm',
            '',
            (ColumnGroup(rtol=0.0, atol=1e-3),),
        ),
    )
    return GraphSpec(f'streampetr/fork {options.fork_version}', tuple(inputs), outputs)


class ForkFiles(Contract):
    files, one_file, ignores_places = ForkOnnx.files, True, False
    settings = PUBLISHED

    def graphs(self, model: nn.Module, options: Options) -> list[Graph]:
        size = sizes(model, *model.input_sizes, options.layers)
        frame = ForkFrame10 if options.fork_version == '1.0' else ForkFrame
        module = frame(model, options.layers == 'all', size.cameras, size.height, size.width)
        return with_examples(model, [('fork', module, fork_spec(size, options))])
