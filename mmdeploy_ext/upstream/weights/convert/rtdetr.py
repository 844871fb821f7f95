"""Converts checkpoints (.pth, .bin, .safetensors) of the original RT-DETR and of transformers.

This project's names are the original's.
"""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.base.config import cfg_options
from mmdeploy_ext.base.errors import CheckpointError, ConfigError, check_distinct, named
from mmdeploy_ext.upstream.weights.checkpoint import listed, plain_tensors, read_content
from mmdeploy_ext.upstream.weights.convert import conversion
from mmdeploy_ext.upstream.weights.convert import rtdetr_names as names
from mmdeploy_ext.upstream.weights.convert.conversion import Tensors

DENOISING = 'decoder.denoising_class_embed.weight'
"""Embedding of classes for training."""
CLASS_HEAD = 'decoder.enc_score_head.weight'
"""Head with a row per class."""
COUNTER = '.num_batches_tracked'
OTHER_CONFIG = (
    '. Pass the config of the same backbone (configs/rtdetr/rtdetr_r18vd.py, r34vd, r50vd, r101vd) with '
    '--config'
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Tensors of a file by name without `module.`, and their origin, such as 'EMA weights (ema.module)'."""

    tensors: Tensors
    origin: str


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted checkpoint.

    Attributes:
        state_dict: the model's name -> tensor, in the model's order.
        notes: a line per kind of change besides names.
        model_tensors: of the config's model, on the meta device.
    """

    state_dict: Tensors
    origin: str
    notes: list[str]
    model_tensors: Tensors


def convert_file(source: str | Path, target: str | Path, cfg: Any, weights: str = 'auto') -> Converted:
    """Convert a file and write `{'meta', 'state_dict'}`; `weights` as in `read_source`."""
    conversion.check_output(source, target, cfg.filename)
    with named(source):
        converted = convert(read_source(source, weights), cfg)
        conversion.check_numbers(source, converted.state_dict, converted.model_tensors)
    conversion.save_checkpoint(target, converted.state_dict, {})
    return converted


def convert(source: Source, cfg: Any) -> Converted:
    """Rename, join and complete the tensors of a file for a model of RT-DETR; values stay.

    Queries, keys and values of transformers are joined; counters and the denoising embedding's padding row
    (zeros) are added; second names of heads and the sums of `deploy()` are dropped. CheckpointError: keys,
    shapes or classes differ.
    """
    detector = (cfg.get('model') or {}).get('type')
    if detector != 'RTDETR':
        raise ConfigError(
            f"{cfg.filename}: model.type={detector!r}, expected 'RTDETR': one of configs/rtdetr/*.py"
        )
    model_tensors = conversion.model_tensors(cfg)
    notes: list[str] = []
    tensors, origin = dict(source.tensors), source.origin
    if names.is_transformers(tensors):
        origin = f'transformers, {origin}'
        tensors = _from_transformers(tensors, notes)
    head = tensors.get(CLASS_HEAD)
    if head is not None and len(head) != len(model_tensors[CLASS_HEAD]):
        raise CheckpointError(
            f'{CLASS_HEAD}: the file has {len(head)} classes, {cfg.filename} has '
            f'{len(model_tensors[CLASS_HEAD])}; the config needs the same number, and the classes of its '
            f'data set; pass {cfg_options({"model.decoder.num_classes": len(head)})}'
        )
    _remove_unused(tensors, model_tensors, notes)
    _complete(tensors, model_tensors, notes)
    state_dict = conversion.in_model_order(tensors, model_tensors, cfg.filename, OTHER_CONFIG)
    return Converted(state_dict, origin, notes, model_tensors)


def _from_transformers(tensors: Tensors, notes: list[str]) -> Tensors:
    check_distinct((key, names.original_name(key)) for key in tensors)
    originals: Tensors = {}
    split_tensors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if names.HEAD_COPIES.match(key):
            continue
        name = names.original_name(key)
        if match := names.SPLIT_PROJECTION.match(name):
            split_tensors.setdefault(f'{match[1]}in_proj_{match[3]}', {})[match[2]] = tensor
        else:
            originals[name] = tensor
    for name, parts in split_tensors.items():
        if len(parts) == 3:
            originals[name] = torch.cat([parts[letter] for letter in 'qkv'])
    notes.append(f'{len(split_tensors)} attention projections joined from queries, keys and values')
    return originals


def _remove_unused(tensors: Tensors, model_tensors: Tensors, notes: list[str]) -> None:
    counters = [key for key in tensors if key not in model_tensors and key.endswith(COUNTER)]
    if counters:
        notes.append(f'{len(counters)} counters of frozen normalisations left out')
    fused = [key for key in tensors if key not in model_tensors and names.FUSED_BLOCK.match(key)]
    if fused:
        notes.append(f'{len(fused)} fused convolutions of deploy() left out, their branches are there')
    for key in (*counters, *fused):
        del tensors[key]


def _complete(tensors: Tensors, model_tensors: Tensors, notes: list[str]) -> None:
    counters = [key for key in model_tensors if key.endswith(COUNTER) and key not in tensors]
    tensors.update({key: torch.zeros((), dtype=torch.int64) for key in counters})
    if counters:
        notes.append(f'{len(counters)} counters of batches set to 0 (they count training steps only)')
    rows, model_rows = tensors.get(DENOISING), model_tensors.get(DENOISING, ())
    if rows is not None and len(rows) == len(model_rows) - 1:
        tensors[DENOISING] = torch.cat([rows, torch.zeros_like(rows[:1])])
        notes.append(f'{DENOISING}: {len(rows)} rows, the padding row of zeros added')


# ---------------------------------------------------------------- files


def read_source(path: str | Path, weights: str = 'auto') -> Source:
    """Read a file of the original repository or of transformers.

    `weights` is 'ema' (moving average), 'model' (plain) or 'auto' (average if there is one). CheckpointError:
    missing, damaged, unsafe, of Paddle, not RT-DETR, or without the chosen weights.
    """
    path = Path(path)
    if path.suffix == names.PADDLE_SUFFIX:
        raise CheckpointError(
            f'{path}: is a checkpoint of PaddleDetection; expected one of the PyTorch repository '
            f'(rtdetr_*_from_paddle.pth are the same weights) or of transformers'
        )
    with named(path):
        content = read_content(path)
        source = _choose_weights(content, weights)
        if not (names.is_original(source.tensors) or names.is_transformers(source.tensors)):
            raise CheckpointError(
                f'is not a checkpoint of RT-DETR: expected backbone.res_layers.* (original) or '
                f'model.backbone.model.* (transformers) keys, got {listed(list(source.tensors))}'
            )
        return source


def _choose_weights(content: Any, weights: str) -> Source:
    if not isinstance(content, dict):
        raise CheckpointError(f'got a {type(content).__name__}, expected a checkpoint of RT-DETR')
    choices = {}
    if isinstance(content.get('ema'), dict):
        choices['ema'] = content['ema'].get('module', content['ema']), 'EMA weights (ema.module)'
    for key in ('model', 'state_dict'):
        if isinstance(content.get(key), dict):
            choices['model'] = content[key], f'plain weights ({key})'
            break
    if not choices:
        choices['auto'] = content, 'a bare state dict'
    choice = next(iter(choices)) if weights == 'auto' else weights
    if choice not in choices:
        origins = ', '.join(origin for _, origin in choices.values())
        raise CheckpointError(f'--weights {weights}: the file has {origins}')
    state_dict, origin = choices[choice]
    return Source(plain_tensors(state_dict), origin)
