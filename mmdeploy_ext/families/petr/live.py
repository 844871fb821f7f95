"""What the graphs compute in place of methods of the live model, the user's or ours.

They run the layers of the model: backbone, neck, encoders, gate, decoder, branches and
`positional_encoding`, the code of the counts of cameras, rows and columns.

Source of the names: megvii-research/PETR f7525f9 (no code).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mmdeploy_ext.families.replaced import Followed, Replaced, replaced_parts
from mmdeploy_ext.models.camera_detector import CameraDetector
from mmdeploy_ext.models.petr import head, transformer

FOLLOWED: Followed = (
    (CameraDetector, ('extract_img_feat', 'forward', 'forward_test', 'run_frame')),
    (head.PETRHead, ('forward', 'gated', 'get_bboxes')),
    (head.PETRv2Head, ('forward', 'gated', 'get_bboxes', 'seconds')),
    (transformer.PETRTransformer, ('forward',)),
    (head.PetrBoxCoder, ('boxes_of', 'decode_single', 'passing')),
)
"""This package's classes, and methods of them that graphs and runtime compute by other code."""
HEAD = ('forward', 'position_embeding', 'get_bboxes')
UPSTREAM = dict(
    Petr3D=('extract_feat', 'extract_img_feat', 'forward', 'forward_test', 'simple_test', 'simple_test_pts'),
    PETRHead=HEAD,
    PETRv2Head=HEAD,
    PETRTransformer=('forward',),
    NMSFreeCoder=('decode', 'decode_single'),
    GridMask=('forward',),
)
"""The same of upstream's classes, by name."""
FUNCTIONS = dict(PETRHead=('pos2posemb3d',), PETRv2Head=('pos2posemb3d',), NMSFreeCoder=('denormalize_bbox',))
"""Class of upstream -> functions that its module uses."""


def is_ours(live_head: nn.Module) -> bool:
    """Return whether a head is this package's or derived from it."""
    return isinstance(live_head, head.PETRHead)


def run_decoder(
    live_head: nn.Module, tokens: Tensor, positions: Tensor, query_pos: Tensor, padding: Tensor | None
) -> Tensor:
    """Return the outputs (L, 1, R, C) of a head's decoder.

    Tokens and their positions are (F N, C, h, w), the queries' positions (R, C); `padding` (F N, h, w) is
    True where a token shows no picture, None if none does so. L are layers, R queries, C channels, F frames,
    N cameras, and h, w is the size of a map.
    """
    tokens, positions = (x.permute(0, 2, 3, 1).flatten(0, 2).unsqueeze(1) for x in (tokens, positions))
    query_pos = query_pos.unsqueeze(1)
    padding = None if padding is None else padding.flatten().unsqueeze(0)
    decoder, start = live_head.transformer.decoder, torch.zeros_like(query_pos)
    outputs = decoder(
        query=start,
        key=tokens,
        value=tokens,
        key_pos=positions,
        query_pos=query_pos,
        key_padding_mask=padding,
        reg_branch=None,
    )
    return outputs.transpose(1, 2)


def replaced(model: nn.Module) -> Iterator[Replaced]:
    """Yield an entry per part of a live model: its methods that graphs and runtime compute by other code.

    Of upstream's classes there are entries of the `FUNCTIONS` of their modules, too.
    """
    live_head = model.pts_bbox_head
    parts = {
        model: 'Petr3D',
        live_head: 'PETRv2Head' if hasattr(live_head, 'fpe') else 'PETRHead',
        live_head.transformer: 'PETRTransformer',
        live_head.bbox_coder: 'NMSFreeCoder',
    }
    if hasattr(model, 'grid_mask'):  # of upstream
        parts[model.grid_mask] = 'GridMask'
    return replaced_parts(parts, is_ours(live_head), FOLLOWED, UPSTREAM, FUNCTIONS)
