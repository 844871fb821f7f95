"""Users' detectors and heads: steps of a frame on their layers, memory, and tensors.

Source: exiawsh/StreamPETR 95f6470 (names and meanings, no code).
Glossary: B batch, N cameras, H, W network input in pixels, C channels, Q queries, T tokens, M rows of the
memory that are no queries, L decoder layers.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

from torch import Tensor, nn

from mm2onnx_driving.streampetr.model.memory import Memory
from mm2onnx_driving.streampetr.model.steps import FrameSteps, tap_memory
from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.taps import tap

HEAD_METHODS = (
    'forward', 'reset_memory', 'pre_update_memory', 'post_update_memory', 'position_embeding',
    'temporal_alignment', 'prepare_for_dn', 'get_bboxes',
)  # fmt: skip
"""Head methods that graphs and runtime compute by themselves."""
LAYERS = (
    'transformer', 'cls_branches', 'reg_branches', 'position_encoder', 'memory_embed', 'featurized_pe',
    'reference_points', 'query_embedding', 'spatial_alignment', 'time_embedding',
)  # fmt: skip
"""Layers that the graphs run of every head (two more with `with_ego_pos`)."""


class UserSteps(FrameSteps):
    """The steps of a frame on the layers of a user's head, with its attributes."""

    def __init__(self, head: nn.Module) -> None:
        self.head = head

    def __getattr__(self, name: str) -> Any:
        return getattr(self.head, name)

    def run_transformer(
        self,
        tgt: Tensor,
        query_pos: Tensor,
        tokens: Tensor,
        tokens_pos: Tensor,
        temp_memory: Tensor,
        temp_pos: Tensor,
    ) -> Tensor:
        outs_dec, _ = self.head.transformer(tokens, tgt, query_pos, tokens_pos, None, temp_memory, temp_pos)
        return outs_dec


def is_ours(head: nn.Module) -> bool:
    return isinstance(head, FrameSteps)


def steps_of(head: nn.Module) -> FrameSteps:
    return head if is_ours(head) else UserSteps(head)


def check_parts(filename: str, model: nn.Module) -> None:
    """Raise ConfigError for a user's head without needed layers or methods."""
    head = model.pts_bbox_head
    if is_ours(head):
        return
    layers = [name for name in LAYERS if not hasattr(head, name)]
    methods = [name for name in HEAD_METHODS if not hasattr(head, name)]
    if head.with_ego_pos:
        layers += [name for name in ('ego_pose_pe', 'ego_pose_memory') if not hasattr(head, name)]
    if 'post_update_memory' not in methods:
        parameters = inspect.signature(head.post_update_memory).parameters
        methods += ['argument outs_dec of post_update_memory'] if 'outs_dec' not in parameters else []
    if layers or methods:
        raise ConfigError(
            f'{filename}: {type(head).__name__} of {sys.modules[type(head).__module__].__file__} has no '
            f'{", ".join([*layers, *methods])}; the export needs these names, as in the head of '
            'exiawsh/StreamPETR'
        )


def memory_of(head: nn.Module) -> Memory | None:
    """Return a head's memory in global coordinates, or None."""
    if is_ours(head):
        return head.memory
    rows = [getattr(head, f'memory_{field}') for field in Memory._fields]
    return None if rows[0] is None else Memory(*rows)


def set_memory(head: nn.Module, memory: Memory) -> None:
    if is_ours(head):
        head.memory = memory
        return
    for field, rows in memory._asdict().items():
        setattr(head, f'memory_{field}', rows)


@contextlib.contextmanager
def tapped(model: nn.Module) -> Iterator[None]:
    """Let a user's head tap its memory, inputs and outputs inside the block."""
    head = model.pts_bbox_head
    if is_ours(head):
        yield
        return
    pre_update, post_update = head.pre_update_memory, head.post_update_memory

    def pre_update_memory(*args: Any, **kwargs: Any) -> None:
        pre_update(*args, **kwargs)
        tap_memory('out_mem', memory_of(head))

    def post_update_memory(*args: Any, **kwargs: Any) -> None:
        arguments = inspect.signature(post_update).bind(*args, **kwargs).arguments
        tap('out_outs_dec', arguments['outs_dec'][-1])
        post_update(*args, **kwargs)
        tap_memory('post_mem', memory_of(head))

    def tap_inputs(head: nn.Module, args: tuple, kwargs: Mapping[str, Tensor]) -> None:
        for name in ('timestamp', 'ego_pose', 'ego_pose_inv', 'prev_exists'):
            tap(name, kwargs[name])

    def tap_outputs(head: nn.Module, args: tuple, outputs: Mapping[str, Tensor]) -> None:
        for name in ('all_cls_scores', 'all_bbox_preds'):
            tap(name, outputs[name])

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(head, 'pre_update_memory', pre_update_memory))
        stack.enter_context(mock.patch.object(head, 'post_update_memory', post_update_memory))
        stack.callback(head.register_forward_pre_hook(tap_inputs, with_kwargs=True).remove)
        stack.callback(head.register_forward_hook(tap_outputs).remove)
        yield


def tap_geometry(model: nn.Module, lidar2img: Tensor, intrinsics: Tensor, images: Tensor) -> None:
    """Tap the tensors of images (N, 3, H, W) and a rig, (1, N, 4, 4), of a user's detector."""
    if is_ours(model.pts_bbox_head):
        return
    tap('img', images)
    steps_of(model.pts_bbox_head).embed_positions(lidar2img, intrinsics, images.shape[-2:])
