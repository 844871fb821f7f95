"""Checkpoints of the original RT-DETR repository and of transformers as this project's RT-DETR loads them.

The names kept are the original's. Source of the mapping: shared/golden/rtdetr/MAPPING.md.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mmdeploy_ext.checkpoint import check_finite, listed, read_content
from mmdeploy_ext.convert import rtdetr_names as names
from mmdeploy_ext.convert.solo_wxinlong import model_shapes
from mmdeploy_ext.errors import CheckpointError, ConfigError, UsageError
from mmdeploy_ext.files import atomic_path, check_writable

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHTS = ('auto', 'ema', 'model')
DENOISING = 'decoder.denoising_class_embed.weight'
CLASS_HEAD = 'decoder.enc_score_head.weight'
SAFETENSORS = {'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16, 'I64': torch.int64}

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Source:
    """What a file holds.

    Attributes:
        tensors: by the file's names.
        origin: which weights these are, for people.
    """

    tensors: Tensors
    origin: str


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted checkpoint.

    Attributes:
        state_dict: the model's names in its order.
        origin: which weights of which kind of file.
        notes: what is not simply a tensor renamed, one line each.
    """

    state_dict: Tensors
    origin: str
    notes: list[str]


def read_source(path: str | Path, weights: str = 'auto') -> Source:
    """Read a file of the original repository or of transformers.

    Args:
        path: .pth, .bin or .safetensors.
        weights: 'ema', 'model', or 'auto' for EMA weights where the file holds them.

    Raises:
        CheckpointError: missing, unsafe, of Paddle, without RT-DETR's names or the weights asked for.
    """
    path = Path(path)
    if path.is_file() and names.is_paddle_file(path):
        raise CheckpointError(names.paddle_refusal(path))
    if path.suffix == '.safetensors':
        return _checked(path, Source(read_safetensors(path), 'transformers'))
    content = read_content(path)
    if not isinstance(content, dict):
        raise CheckpointError(f'{path}: got a {type(content).__name__}, expected a checkpoint of RT-DETR')
    return _checked(path, _choose(path, content, weights))


def _choose(path: Path, content: Mapping[str, Any], weights: str) -> Source:
    ema = content.get('ema')
    ema = ema.get('module') if isinstance(ema, dict) else None
    if isinstance(ema, dict) and ema and weights != 'model':
        return Source(_tensors(ema), 'EMA weights (ema.module)')
    if weights == 'ema':
        raise CheckpointError(
            f'{path}: has no EMA weights (ema.module), only {sorted(map(str, content))[:10]}; '
            f'take what it has with --weights model'
        )
    for key in ('model', 'state_dict'):
        if isinstance(content.get(key), dict):
            return Source(
                _tensors(content[key]),
                f'plain weights ({key}); the file has no EMA weights'
                if not ema
                else f'plain weights ({key})',
            )
    return Source(_tensors(content), 'a bare state dict')


def _tensors(content: Mapping[str, Any]) -> Tensors:
    return {
        str(key).removeprefix('module.'): value
        for key, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def _checked(path: Path, source: Source) -> Source:
    if names.is_paddle(source.tensors):
        raise CheckpointError(names.paddle_refusal(path))
    if not (names.is_original(source.tensors) or names.is_transformers(source.tensors)):
        raise CheckpointError(
            f'{path}: is no checkpoint of RT-DETR: expected backbone.res_layers.* (original) or '
            f'model.backbone.model.* (transformers) keys, got {listed(list(source.tensors))}'
        )
    return source


def read_safetensors(path: Path) -> Tensors:
    """Read a .safetensors file: a JSON header of names, types and offsets, then the numbers.

    Raises:
        CheckpointError: missing, truncated, or a type of number that RT-DETR does not have.
    """
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], 'little')
        header = json.loads(content[8 : 8 + size])
        header.pop('__metadata__', None)
        tensors = {}
        for name, entry in header.items():
            begin, end = (8 + size + offset for offset in entry['data_offsets'])
            data = torch.frombuffer(bytearray(content[begin:end]), dtype=SAFETENSORS[entry['dtype']])
            tensors[name] = data.reshape(entry['shape'])
        return tensors
    except FileNotFoundError as error:
        raise CheckpointError(f'{path}: no such checkpoint file') from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f'{path}: is no .safetensors file, is truncated or damaged ({type(error).__name__}: {error})'
        ) from error


def convert(source: Source, cfg: Any) -> Converted:
    """Rename, join and complete the tensors of a file; every key of file and model is accounted for.

    Args:
        source: what `read_source` gave.
        cfg: the config whose model it is for.

    Raises:
        CheckpointError: a key or shape that the model does not account for, or another number of classes.
        ConfigError: the config of another model.
    """
    kind = (cfg.get('model') or {}).get('type')
    if kind != 'RTDETR':
        raise ConfigError(
            f"{cfg.filename}: model.type={kind!r}, expected 'RTDETR': one of configs/rtdetr/*.py"
        )
    expected = model_shapes(cfg)
    notes: list[str] = []
    tensors = dict(source.tensors)
    origin = source.origin
    if names.is_transformers(tensors):
        origin = f'transformers, {origin}' if origin != 'transformers' else origin
        tensors = _from_transformers(tensors, notes)
    _check_classes(tensors, expected, cfg.filename)
    _drop_unused(tensors, expected, notes)
    _complete(tensors, expected, notes)
    _account(tensors, expected, cfg.filename)
    return Converted({key: tensors[key] for key in expected}, origin, notes)


def _from_transformers(tensors: Tensors, notes: list[str]) -> Tensors:
    """Return the tensors by the original's names, projections joined."""
    result, apart = {}, {}
    for key, value in tensors.items():
        if names.HEAD_COPIES.match(key):
            twin = tensors.get(f'model.decoder.{key}')
            if twin is None or not torch.equal(twin, value):
                raise CheckpointError(
                    f'{key}: is no copy of model.decoder.{key}, which transformers ties it to'
                )
            continue
        name = names.original_name(key)
        split = names.SPLIT_PROJECTION.match(name)
        if split:
            apart.setdefault(f'{split[1]}in_proj_{split[3]}', {})[split[2]] = value
        else:
            result[name] = value
    for name, parts in apart.items():
        if sorted(parts) != ['k', 'q', 'v']:
            raise CheckpointError(f'{name}: has only {sorted(parts)} of q_proj, k_proj, v_proj')
        result[name] = torch.cat([parts[letter] for letter in 'qkv'])
    notes.append(f'{len(apart)} attention projections joined from queries, keys and values')
    return result


def _check_classes(tensors: Tensors, expected: Mapping[str, tuple[int, ...]], config: str) -> None:
    head = tensors.get(CLASS_HEAD)
    if head is not None and head.shape[0] != expected[CLASS_HEAD][0]:
        raise CheckpointError(
            f'{CLASS_HEAD}: the file has {head.shape[0]} classes, {config} has {expected[CLASS_HEAD][0]}; '
            f'give --cfg-options model.decoder.num_classes={head.shape[0]}; the config that uses it needs '
            f'the same, and the classes of its data set'
        )


def _drop_unused(tensors: Tensors, expected: Mapping[str, tuple[int, ...]], notes: list[str]) -> None:
    """Take out counters that frozen norms do not have, and sums that `deploy()` added."""
    groups = {
        'counters of frozen normalisations left out': lambda key: key.endswith('.num_batches_tracked'),
        'fused convolutions of deploy() left out, their branches are there': names.FUSED_BLOCK.match,
    }
    for title, belongs in groups.items():
        unused = [key for key in tensors if key not in expected and belongs(key)]
        for key in unused:
            del tensors[key]
        if unused:
            notes.append(f'{len(unused)} {title}')


def _complete(tensors: Tensors, expected: Mapping[str, tuple[int, ...]], notes: list[str]) -> None:
    """Add counters that the file lacks, and the padding row of the denoising embedding."""
    counters = [key for key in expected if key.endswith('.num_batches_tracked') and key not in tensors]
    tensors.update({key: torch.zeros((), dtype=torch.int64) for key in counters})
    if counters:
        notes.append(f'{len(counters)} counters of batches set to 0 (they count training steps only)')
    rows = tensors.get(DENOISING)
    if rows is not None and DENOISING in expected and len(rows) == expected[DENOISING][0] - 1:
        tensors[DENOISING] = torch.cat([rows, torch.zeros_like(rows[:1])])
        notes.append(f'{DENOISING}: {len(rows)} rows, the padding row of zeros added')


def _account(tensors: Tensors, expected: Mapping[str, tuple[int, ...]], config: str) -> None:
    """Check that names and shapes are the model's own, every one."""
    differing = [
        f'{key}: {tuple(tensors[key].shape)} in the file, {shape} in the model'
        for key, shape in expected.items()
        if key in tensors and tuple(tensors[key].shape) != shape
    ]
    missing, unexpected = expected.keys() - tensors.keys(), tensors.keys() - expected.keys()
    problems = [f'shapes differ for {listed(differing)}'] if differing else []
    problems += [f'missing keys {listed(sorted(missing))}'] if missing else []
    problems += [f'unexpected keys {listed(sorted(unexpected))}'] if unexpected else []
    if problems:
        raise CheckpointError(
            f'does not fit the model of {config}: {"; ".join(problems)}. Give the config of the same '
            f'backbone (configs/rtdetr/rtdetr_r18vd.py, r34vd, r50vd, r101vd) with --config'
        )


def convert_file(source: str | Path, target: str | Path, cfg: Any, weights: str = 'auto') -> Converted:
    """Convert a file and write `{'meta', 'state_dict'}`, whole or not at all.

    Raises:
        CheckpointError: see `read_source` and `convert`; weights that are not finite.
        UsageError: a path that cannot be written.
    """
    source, target = Path(source), Path(target)
    if source.exists() and target.exists() and source.samefile(target):
        raise UsageError(f'{target}: is the original checkpoint itself; give another name')
    check_writable(target)
    try:
        converted = convert(read_source(source, weights), cfg)
        check_finite(source, converted.state_dict)
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(text if text.startswith(str(source)) else f'{source}: {text}') from error
    with atomic_path(target) as temporary:
        torch.save({'meta': {}, 'state_dict': converted.state_dict}, temporary)
    return converted
