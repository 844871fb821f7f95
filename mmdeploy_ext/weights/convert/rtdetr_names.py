"""Names of RT-DETR's tensors: the original repository's, which this project keeps, and those of transformers.

Source: shared/golden/rtdetr/MAPPING.md; transformers 4.x (and the hub) and 5.x spell some names differently.
"""

import mmap
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from mmdeploy_ext.weights.convert import sources

COMMAND = 'convert-rtdetr'
PADDLE_SUFFIXES = ('.pdparams', '.pdopt', '.pdmodel', '.pdiparams')
PADDLE_MARK = b'StructuredToParameterName@@'
PADDLE_STATISTICS = (b'._mean', b'._variance')
"""Ends of the names of its batch norms; PyTorch has running_mean and running_var."""
PICKLE, TORCH_PICKLE = b'\x80', b'\x80\x02\x8a\x0al\xfc\x9cF\xf9'
"""First bytes of a pickle, and of one that torch wrote before it wrote zip files."""
_STAGE = r'^model\.backbone\.model\.encoder\.stages\.(\d+)\.layers\.'
_EMBEDDER = r'^model\.backbone\.model\.embedder\.embedder\.'
_AIFI = r'^model\.encoder\.(?:aifi|encoder)\.(\d+)\.layers\.(\d+)\.'
_LAYER = r'^model\.decoder\.layers\.(\d+)\.'
# of a convolution with its normalisation
_PAIRS = (
    (_STAGE + r'0\.shortcut\.1', r'backbone.res_layers.\1.blocks.0.short.conv'),
    (_STAGE + r'0\.shortcut', r'backbone.res_layers.\1.blocks.0.short'),
    (_STAGE + r'(\d+)\.layer\.0', r'backbone.res_layers.\1.blocks.\2.branch2a'),
    (_STAGE + r'(\d+)\.layer\.1', r'backbone.res_layers.\1.blocks.\2.branch2b'),
    (_STAGE + r'(\d+)\.layer\.2', r'backbone.res_layers.\1.blocks.\2.branch2c'),
    *((rf'{_EMBEDDER}{index}', f'backbone.conv1.conv1_{index + 1}') for index in range(3)),
)
# name of transformers -> original; the first match wins
_RULES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        *((rf'{theirs}\.convolution\.', f'{own}.conv.') for theirs, own in _PAIRS),
        *((rf'{theirs}\.normalization\.', f'{own}.norm.') for theirs, own in _PAIRS),
        (r'^model\.encoder_input_proj\.', 'encoder.input_proj.'),
        (_AIFI + r'self_attn\.(?:o_proj|out_proj)\.', r'encoder.encoder.\1.layers.\2.self_attn.out_proj.'),
        (_AIFI + r'(?:mlp\.)?fc([12])\.', r'encoder.encoder.\1.layers.\2.linear\3.'),
        (_AIFI + r'self_attn_layer_norm\.', r'encoder.encoder.\1.layers.\2.norm1.'),
        (_AIFI + r'final_layer_norm\.', r'encoder.encoder.\1.layers.\2.norm2.'),
        (_AIFI, r'encoder.encoder.\1.layers.\2.'),
        (r'^model\.encoder\.(lateral_convs|fpn_blocks|downsample_convs|pan_blocks)\.', r'encoder.\1.'),
        (r'^model\.decoder_input_proj\.(\d+)\.0\.', r'decoder.input_proj.\1.conv.'),
        (r'^model\.decoder_input_proj\.(\d+)\.1\.', r'decoder.input_proj.\1.norm.'),
        (_LAYER + r'self_attn\.(?:o_proj|out_proj)\.', r'decoder.decoder.layers.\1.self_attn.out_proj.'),
        (_LAYER + r'encoder_attn\.', r'decoder.decoder.layers.\1.cross_attn.'),
        (_LAYER + r'(?:mlp\.)?fc([12])\.', r'decoder.decoder.layers.\1.linear\2.'),
        (_LAYER + r'self_attn_layer_norm\.', r'decoder.decoder.layers.\1.norm1.'),
        (_LAYER + r'encoder_attn_layer_norm\.', r'decoder.decoder.layers.\1.norm2.'),
        (_LAYER + r'final_layer_norm\.', r'decoder.decoder.layers.\1.norm3.'),
        (_LAYER, r'decoder.decoder.layers.\1.'),
        (r'^model\.decoder\.class_embed\.', 'decoder.dec_score_head.'),
        (r'^model\.decoder\.bbox_embed\.', 'decoder.dec_bbox_head.'),
        (r'^model\.decoder\.query_pos_head\.', 'decoder.query_pos_head.'),
        (r'^model\.(denoising_class_embed|enc_output|enc_score_head|enc_bbox_head)\.', r'decoder.\1.'),
    )
)
HEAD_COPIES = re.compile(r'^(class_embed|bbox_embed)\.')
"""Checkpoints of the 4.x conversion script hold the decoder's heads a second time under these names."""
SPLIT_PROJECTION = re.compile(r'^(.*\.self_attn\.)([qkv])_proj\.(weight|bias)$')
"""transformers has queries, keys and values apart; the original has them one below the other."""
FUSED_BLOCK = re.compile(r'^encoder\.(?:fpn|pan)_blocks\.\d+\.bottlenecks\.\d+\.conv\.(?:weight|bias)$')
"""The sums of both branches that the original's `deploy()` adds."""
PADDLE_NORM = re.compile(r'\.(?:_mean|_variance)$')


def original_name(key: str) -> str:
    """Return the original's name of a tensor of transformers; other names stay as they are."""
    for pattern, name in _RULES:
        if pattern.match(key):
            return pattern.sub(name, key, count=1)
    return key


def is_transformers(keys: Iterable[str]) -> bool:
    """Return whether these are names of transformers' `RTDetrForObjectDetection`."""
    return any(key.startswith('model.backbone.model.') for key in keys)


def is_original(keys: Iterable[str]) -> bool:
    """Return whether these are names of the original PyTorch repository."""
    return any(key.startswith('backbone.res_layers.') for key in keys)


def is_paddle(keys: Iterable[str]) -> bool:
    """Return whether these are names of PaddleDetection."""
    return any(PADDLE_NORM.search(key) for key in keys)


def is_paddle_file(path: str | Path) -> bool:
    """Return whether a file is one of Paddle: a pickle of its own kind, with linear layers transposed."""
    path = Path(path)
    if path.suffix in PADDLE_SUFFIXES:
        return True
    if not path.is_file() or not path.stat().st_size:
        return False
    with open(path, 'rb') as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(PADDLE_MARK) >= 0:
            return True
        head = content[: len(TORCH_PICKLE)]
        plain = head.startswith(PICKLE) and head != TORCH_PICKLE
        return plain and all(content.find(name) >= 0 for name in PADDLE_STATISTICS)


def paddle_refusal(path: str | Path) -> str:
    """Return the message for a file of Paddle."""
    return (
        f'{path}: is a checkpoint of PaddleDetection; expected one of the PyTorch repository '
        f'(rtdetr_*_from_paddle.pth are the same weights) or of transformers'
    )


def _advice(path: str, found: str, keys: Collection[Any]) -> str:
    command = sources.conversion(COMMAND, path)
    if found == 'unreadable':
        return paddle_refusal(path) if is_paddle_file(path) else ''
    if found == 'content':
        return f'; of the original RT-DETR? Convert it: {command}' if {'ema', 'model'} & set(keys) else ''
    named = is_transformers(keys)
    return f"{path}: has transformers' names of RT-DETR; convert it first: {command}" if named else ''


sources.KNOWN.append(_advice)
