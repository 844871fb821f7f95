"""Checkpoints of the original RT-DETR repository and of transformers as this project's RT-DETR loads them.

The names kept are the original's. Source of the mapping: shared/golden/rtdetr/MAPPING.md.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.core.distinct import check_distinct
from mmdeploy_ext.core.errors import CheckpointError, ConfigError
from mmdeploy_ext.weights.checkpoint import naming
from mmdeploy_ext.weights.convert import fitting
from mmdeploy_ext.weights.convert import rtdetr_names as names
from mmdeploy_ext.weights.convert.rtdetr_source import Source, read_source

DENOISING = 'decoder.denoising_class_embed.weight'
CLASS_HEAD = 'decoder.enc_score_head.weight'
OTHER_CONFIG = (
    '. Give the config of the same backbone (configs/rtdetr/rtdetr_r18vd.py, r34vd, r50vd, r101vd) with '
    '--config'
)


@dataclasses.dataclass(frozen=True)
class Converted:
    """A converted checkpoint: the model's names in its order.

    Attributes:
        origin: which weights of which kind of file.
        notes: what is not simply a tensor renamed, one line each.
        own: the model's tensors, on the meta device.
    """

    state_dict: fitting.Tensors
    origin: str
    notes: list[str]
    own: fitting.Tensors


def convert(source: Source, cfg: Any) -> Converted:
    """Rename, join and complete the tensors of a file; every key of file and model is accounted for.

    Raises:
        CheckpointError: a key or shape that the model does not account for, or another number of classes.
        ConfigError: the config of another model, or one that cannot be built.
    """
    kind = (cfg.get('model') or {}).get('type')
    if kind != 'RTDETR':
        raise ConfigError(
            f"{cfg.filename}: model.type={kind!r}, expected 'RTDETR': one of configs/rtdetr/*.py"
        )
    own = fitting.model_tensors(cfg)
    notes: list[str] = []
    tensors, origin = dict(source.tensors), source.origin
    if names.is_transformers(tensors):
        origin = f'transformers, {origin}' if origin != 'transformers' else origin
        tensors = _from_transformers(tensors, notes)
    _check_classes(tensors, own, cfg.filename)
    _drop_unused(tensors, own, notes)
    _complete(tensors, own, notes)
    return Converted(fitting.in_order(tensors, own, cfg.filename, OTHER_CONFIG), origin, notes, own)


def _from_transformers(tensors: fitting.Tensors, notes: list[str]) -> fitting.Tensors:
    """Return the tensors by the original's names, projections joined."""
    result: fitting.Tensors = {}
    apart: dict[str, dict[str, torch.Tensor]] = {}
    _check_names(tensors)
    for key, value in tensors.items():
        if names.HEAD_COPIES.match(key):
            twin = tensors.get(f'model.decoder.{key}')
            if twin is None or not _same(twin, value):
                raise CheckpointError(
                    f'{key}: is not a copy of model.decoder.{key}, which transformers ties it to'
                )
            continue
        name = names.original_name(key)
        if split := names.SPLIT_PROJECTION.match(name):
            apart.setdefault(f'{split[1]}in_proj_{split[3]}', {})[split[2]] = value
        else:
            result[name] = value
    for name, parts in apart.items():
        if sorted(parts) != ['k', 'q', 'v']:
            raise CheckpointError(f'{name}: has only {sorted(parts)} of q_proj, k_proj, v_proj')
        ordered = [parts[letter] for letter in 'qkv']
        shapes = [tuple(part.shape) for part in ordered]
        if len(set(shapes)) > 1 or not shapes[0]:
            raise CheckpointError(f'{name}: its queries, keys and values have the shapes {shapes}, not one')
        result[name] = torch.cat(ordered)
    notes.append(f'{len(apart)} attention projections joined from queries, keys and values')
    return result


def _check_names(keys: Iterable[str]) -> None:
    """Refuse two spellings of one tensor, also one that is there joined and apart."""
    found: dict[str, str] = {}
    for key in keys:
        split = names.SPLIT_PROJECTION.match(name := names.original_name(key))
        if names.HEAD_COPIES.match(key) or (split and split[2] != 'q'):
            continue  # a copy is compared; all three parts have to be there, so that one stands for them
        found[key] = f'{split[1]}in_proj_{split[3]}' if split else name
    check_distinct(found.items())
    check_distinct((key, names.original_name(key)) for key in keys if not names.HEAD_COPIES.match(key))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors hold the same; what is not finite is looked for elsewhere."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _check_classes(tensors: fitting.Tensors, own: fitting.Tensors, config: str) -> None:
    head = tensors.get(CLASS_HEAD)
    if head is not None and head.dim() and len(head) != len(own[CLASS_HEAD]):
        raise CheckpointError(
            f'{CLASS_HEAD}: the file has {head.shape[0]} classes, {config} has {len(own[CLASS_HEAD])}; '
            f'give --cfg-options model.decoder.num_classes={head.shape[0]}; the config that uses it needs '
            f'the same, and the classes of its data set'
        )


def _drop_unused(tensors: fitting.Tensors, own: fitting.Tensors, notes: list[str]) -> None:
    """Take out counters that frozen norms do not have, and sums that `deploy()` added."""
    groups = {
        'counters of frozen normalisations left out': lambda key: key.endswith('.num_batches_tracked'),
        'fused convolutions of deploy() left out, their branches are there': names.FUSED_BLOCK.match,
    }
    for title, belongs in groups.items():
        if unused := [key for key in tensors if key not in own and belongs(key)]:
            notes.append(f'{len(unused)} {title}')
        for key in unused:
            del tensors[key]


def _complete(tensors: fitting.Tensors, own: fitting.Tensors, notes: list[str]) -> None:
    """Add counters that the file lacks, and the padding row of the denoising embedding."""
    counters = [key for key in own if key.endswith('.num_batches_tracked') and key not in tensors]
    tensors.update({key: torch.zeros((), dtype=torch.int64) for key in counters})
    if counters:
        notes.append(f'{len(counters)} counters of batches set to 0 (they count training steps only)')
    rows = tensors.get(DENOISING)
    if rows is not None and rows.dim() and DENOISING in own and len(rows) == len(own[DENOISING]) - 1:
        tensors[DENOISING] = torch.cat([rows, torch.zeros_like(rows[:1])])
        notes.append(f'{DENOISING}: {len(rows)} rows, the padding row of zeros added')


def convert_file(source: str | Path, target: str | Path, cfg: Any, weights: str = 'auto') -> Converted:
    """Convert a file and write `{'meta', 'state_dict'}` atomically; refuses as `read_source` and `convert`.

    Also weights that are not finite, or are codes, and a path that cannot be written.
    """
    fitting.check_output(source, target, cfg.filename)
    with naming(source):
        converted = convert(read_source(source, weights), cfg)
        fitting.check_numbers(source, converted.state_dict, converted.own)
    fitting.save_checkpoint(target, converted.state_dict, {})
    return converted
