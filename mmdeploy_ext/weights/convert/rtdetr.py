"""Converts checkpoints (.pth, .bin, .safetensors) of the original RT-DETR and of transformers.

This project's names are the original's.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.core.config import cfg_options
from mmdeploy_ext.core.errors import CheckpointError, ConfigError, check_distinct
from mmdeploy_ext.weights.checkpoint import listed, naming, plain_tensors, read_content
from mmdeploy_ext.weights.convert import conversion
from mmdeploy_ext.weights.convert import rtdetr_names as names
from mmdeploy_ext.weights.convert.conversion import Tensors

DENOISING = 'decoder.denoising_class_embed.weight'
"""Embedding of classes for training."""
CLASS_HEAD = 'decoder.enc_score_head.weight'
"""Head with a row per class."""
COUNTER = '.num_batches_tracked'
"""End of batch norm counters' names."""
OTHER_CONFIG = (
    '. Give the config of the same backbone (configs/rtdetr/rtdetr_r18vd.py, r34vd, r50vd, r101vd) with '
    '--config'
)
SAFETENSORS_DTYPES = {
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
}


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
    with naming(source):
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
        origin = f'transformers, {origin}' if origin != 'transformers' else origin
        tensors = _from_transformers(tensors, notes)
    head = tensors.get(CLASS_HEAD)
    if head is not None and head.dim() and len(head) != len(model_tensors[CLASS_HEAD]):
        raise CheckpointError(
            f'{CLASS_HEAD}: the file has {len(head)} classes, {cfg.filename} has '
            f'{len(model_tensors[CLASS_HEAD])}; the config that uses it needs the same, and the classes of '
            f'its data set; give {cfg_options({"model.decoder.num_classes": len(head)})}'
        )
    _remove_unused(tensors, model_tensors, notes)
    _complete(tensors, model_tensors, notes)
    state_dict = conversion.in_model_order(tensors, model_tensors, cfg.filename, OTHER_CONFIG)
    return Converted(state_dict, origin, notes, model_tensors)


def _from_transformers(tensors: Tensors, notes: list[str]) -> Tensors:
    _check_names(tensors)
    originals: Tensors = {}
    split_tensors: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if names.HEAD_COPIES.match(key):
            original = tensors.get(f'model.decoder.{key}')
            if original is None or not _are_equal(original, tensor):
                raise CheckpointError(
                    f'{key}: is not a copy of model.decoder.{key}, which transformers ties it to'
                )
            continue
        name = names.original_name(key)
        if match := names.SPLIT_PROJECTION.match(name):
            split_tensors.setdefault(f'{match[1]}in_proj_{match[3]}', {})[match[2]] = tensor
        else:
            originals[name] = tensor
    for name, parts in split_tensors.items():
        if sorted(parts) != ['k', 'q', 'v']:
            raise CheckpointError(f'{name}: has only {sorted(parts)} of q_proj, k_proj, v_proj')
        ordered = [parts[letter] for letter in 'qkv']
        shapes = [tuple(part.shape) for part in ordered]
        if len(set(shapes)) > 1 or not shapes[0]:
            raise CheckpointError(f'{name}: its queries, keys and values have the shapes {shapes}, not one')
        originals[name] = torch.cat(ordered)
    notes.append(f'{len(split_tensors)} attention projections joined from queries, keys and values')
    return originals


def _check_names(keys: Iterable[str]) -> None:
    joined_names: dict[str, str] = {}
    for key in keys:
        match = names.SPLIT_PROJECTION.match(name := names.original_name(key))
        if names.HEAD_COPIES.match(key) or (match and match[2] != 'q'):
            continue  # copies are compared elsewhere; queries stand for keys and values, which must exist
        joined_names[key] = f'{match[1]}in_proj_{match[3]}' if match else name
    check_distinct(joined_names.items())
    check_distinct((key, names.original_name(key)) for key in keys if not names.HEAD_COPIES.match(key))


def _are_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    """NaN equals NaN, since it is refused later."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


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
    if rows is not None and rows.dim() and len(rows) == len(model_rows) - 1:
        tensors[DENOISING] = torch.cat([rows, torch.zeros_like(rows[:1])])
        notes.append(f'{DENOISING}: {len(rows)} rows, the padding row of zeros added')


# ---------------------------------------------------------------- files


def read_source(path: str | Path, weights: str = 'auto') -> Source:
    """Read a file of the original repository or of transformers.

    `weights` is 'ema' (moving average), 'model' (plain) or 'auto' (average if there is one). CheckpointError:
    missing, damaged, unsafe, of Paddle, not RT-DETR, or without the chosen weights.
    """
    path = Path(path)
    if path.is_file() and names.is_paddle_file(path):
        raise CheckpointError(names.paddle_refusal(path))
    with naming(path):
        if path.suffix == '.safetensors':
            source = _single_source(read_safetensors(path), 'transformers', weights)
        else:
            source = _choose_weights(read_content(path), weights)
        if names.is_paddle(source.tensors):
            raise CheckpointError(names.paddle_refusal(path))
        if not (names.is_original(source.tensors) or names.is_transformers(source.tensors)):
            raise CheckpointError(
                f'is not a checkpoint of RT-DETR: expected backbone.res_layers.* (original) or '
                f'model.backbone.model.* (transformers) keys, got {listed(list(source.tensors))}'
            )
        return source


def _choose_weights(content: Any, weights: str) -> Source:
    if not isinstance(content, dict):
        raise CheckpointError(f'got a {type(content).__name__}, expected a checkpoint of RT-DETR')
    ema, origin = _ema_weights(content.get('ema'))
    ema_has_tensors = _has_tensors(content.get('ema'))
    plain_key = next((key for key in ('model', 'state_dict') if isinstance(content.get(key), dict)), '')
    if not ema and not plain_key and not ema_has_tensors:
        return _single_source(plain_tensors(content), 'a bare state dict', weights)
    keys = sorted(map(str, content))[:10]
    if weights != 'model' and ema:
        return Source(plain_tensors(ema), f'EMA weights ({origin})')
    if weights != 'model' and ema_has_tensors:
        ema = content['ema']
        kind = sorted(map(str, ema))[:10] if isinstance(ema, dict) else f'a {type(ema).__name__}'
        raise CheckpointError(
            f'ema holds {kind}, no weights that could be found: expected a state '
            f'dict in ema.module, or ema to be one; take the plain ones with --weights model'
        )
    if weights == 'ema':
        raise CheckpointError(
            f'has no EMA weights (ema.module), only {keys}; take what it has with --weights model'
        )
    if not plain_key:
        raise CheckpointError(
            f'has no plain weights (model), only {keys}; take what it has with --weights ema'
        )
    note = '' if ema or ema_has_tensors else '; the file has no EMA weights'
    return Source(plain_tensors(content[plain_key]), f'plain weights ({plain_key}){note}')


def _single_source(tensors: Tensors, origin: str, weights: str) -> Source:
    if weights != 'auto':
        raise CheckpointError(
            f'holds one set of weights ({origin}), not said to be EMA or plain ones: '
            f'--weights {weights} has nothing to choose from; leave it away'
        )
    return Source(tensors, origin)


def _ema_weights(ema: Any) -> tuple[Mapping[str, Any], str]:
    if not isinstance(ema, dict):
        return {}, ''
    for state_dict, origin in ((ema.get('module'), 'ema.module'), (ema, 'ema')):
        if isinstance(state_dict, dict):
            keys = [str(key) for key, value in state_dict.items() if isinstance(value, torch.Tensor)]
            plain = [key.removeprefix('module.') for key in keys]
            is_rtdetr = names.is_original(plain) or names.is_transformers(plain)
            if is_rtdetr or (keys and origin == 'ema.module'):
                return state_dict, origin
    return {}, ''


def _has_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_tensors, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_tensors, value))
    return isinstance(value, torch.Tensor)


def read_safetensors(path: Path) -> Tensors:
    """Tensors of a .safetensors file: a JSON header of names, types, shapes and offsets, then the numbers."""
    try:
        content = path.read_bytes()
        header_bytes = int.from_bytes(content[:8], 'little')
        end_of_header = 8 + header_bytes
        header = json.loads(content[8:end_of_header], object_pairs_hook=_unique_names)
        header.pop('__metadata__', None)
        tensors = {}
        for name, entry in header.items():
            if entry['dtype'] not in SAFETENSORS_DTYPES:
                raise CheckpointError(
                    f'{name} is of type {entry["dtype"]!r}, expected {" or ".join(SAFETENSORS_DTYPES)}: '
                    f'take the float file'
                )
            begin, end = (end_of_header + offset for offset in entry['data_offsets'])
            if not end_of_header <= begin <= end <= len(content) or min(entry['shape'], default=0) < 0:
                raise ValueError(f'{name} is {entry["shape"]} at {entry["data_offsets"]}')
            dtype = SAFETENSORS_DTYPES[entry['dtype']]
            tensors[name] = torch.frombuffer(bytearray(content[begin:end]), dtype=dtype).reshape(
                entry['shape']
            )
        return tensors
    except CheckpointError:  # is a ValueError, too
        raise
    except FileNotFoundError as error:
        raise CheckpointError('no such checkpoint file') from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f'is not a .safetensors file, is truncated or damaged ({type(error).__name__}: {error})'
        ) from error


def _unique_names(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise CheckpointError(f'holds {name!r} twice; save the file again')
        entries[name] = value
    return entries
