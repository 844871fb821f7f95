"""Files of RT-DETR: which weights one holds, and of which repository. Reads .pth, .bin and .safetensors."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from mmdeploy_ext.core.errors import CheckpointError
from mmdeploy_ext.weights.checkpoint import listed, naming, plain_tensors, read_content
from mmdeploy_ext.weights.convert import rtdetr_names as names
from mmdeploy_ext.weights.convert.fitting import Tensors

SAFETENSORS = {'F32': torch.float32, 'F16': torch.float16, 'BF16': torch.bfloat16, 'I64': torch.int64}


@dataclasses.dataclass(frozen=True)
class Source:
    """What a file holds: tensors by its names, and which weights these are, in words."""

    tensors: Tensors
    origin: str


def read_source(path: str | Path, weights: str = 'auto') -> Source:
    """Read a .pth, .bin or .safetensors of the original repository or of transformers.

    `weights` are 'ema', 'model', or 'auto' for EMA weights where the file holds them.

    Raises:
        CheckpointError: missing, unsafe, of Paddle, without RT-DETR's names or the weights asked for; or a
            choice was asked for and the file holds one set of weights.
    """
    path = Path(path)
    if path.is_file() and names.is_paddle_file(path):
        raise CheckpointError(names.paddle_refusal(path))
    with naming(path):
        if path.suffix == '.safetensors':
            source = _only(read_safetensors(path), 'transformers', weights)
        else:
            source = _choose(read_content(path), weights)
        if names.is_paddle(source.tensors):
            raise CheckpointError(names.paddle_refusal(path))
        if not (names.is_original(source.tensors) or names.is_transformers(source.tensors)):
            raise CheckpointError(
                f'is not a checkpoint of RT-DETR: expected backbone.res_layers.* (original) or '
                f'model.backbone.model.* (transformers) keys, got {listed(list(source.tensors))}'
            )
        return source


def _choose(content: Any, weights: str) -> Source:
    if not isinstance(content, dict):
        raise CheckpointError(f'got a {type(content).__name__}, expected a checkpoint of RT-DETR')
    ema, origin = _ema(content.get('ema'))
    plain = next((key for key in ('model', 'state_dict') if isinstance(content.get(key), dict)), '')
    if not ema and not plain and not _holds_tensors(content.get('ema')):
        return _only(plain_tensors(content), 'a bare state dict', weights)
    held = sorted(map(str, content))[:10]
    if weights != 'model' and ema:
        return Source(plain_tensors(ema), f'EMA weights ({origin})')
    if weights != 'model' and _holds_tensors(content.get('ema')):
        raise CheckpointError(
            f'ema holds {_kind(content["ema"])}, no weights that could be found: expected a state '
            f'dict in ema.module, or ema to be one; take the plain ones with --weights model'
        )
    if weights == 'ema':
        raise CheckpointError(
            f'has no EMA weights (ema.module), only {held}; take what it has with --weights model'
        )
    if not plain:
        raise CheckpointError(
            f'has no plain weights (model), only {held}; take what it has with --weights ema'
        )
    note = '' if ema or _holds_tensors(content.get('ema')) else '; the file has no EMA weights'
    return Source(plain_tensors(content[plain]), f'plain weights ({plain}){note}')


def _only(tensors: Tensors, origin: str, weights: str) -> Source:
    """Return the only weights of a file; asking for EMA or plain ones is an error there."""
    if weights != 'auto':
        raise CheckpointError(
            f'holds one set of weights ({origin}), not said to be EMA or plain ones: '
            f'--weights {weights} has nothing to choose from; leave it away'
        )
    return Source(tensors, origin)


def _ema(ema: Any) -> tuple[Mapping[str, Any], str]:
    """Return the state dict of EMA weights and where it is: `ema.module`, or `ema` itself; else nothing."""
    if not isinstance(ema, dict):
        return {}, ''
    for found, origin in ((ema.get('module'), 'ema.module'), (ema, 'ema')):
        if isinstance(found, dict):
            keys = [str(key) for key, value in found.items() if isinstance(value, torch.Tensor)]
            plain = [key.removeprefix('module.') for key in keys]
            if names.is_original(plain) or names.is_transformers(plain) or (keys and found is not ema):
                return found, origin
    return {}, ''


def _holds_tensors(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return isinstance(value, torch.Tensor) or any(map(_holds_tensors, parts))


def _kind(value: Any) -> str:
    return str(sorted(map(str, value))[:10]) if isinstance(value, dict) else f'a {type(value).__name__}'


def read_safetensors(path: Path) -> Tensors:
    """Read a .safetensors file: a JSON header of names, types and offsets, then the numbers.

    CheckpointError where it is missing, truncated, or has numbers that RT-DETR has not; no file named.
    """
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], 'little')
        header = json.loads(content[8 : 8 + size], object_pairs_hook=_once)
        header.pop('__metadata__', None)
        tensors = {}
        for name, entry in header.items():
            if entry['dtype'] not in SAFETENSORS:
                raise CheckpointError(
                    f'{name} is of type {entry["dtype"]!r}, expected {" or ".join(SAFETENSORS)}: '
                    f'take the float file'
                )
            begin, end = (8 + size + offset for offset in entry['data_offsets'])
            data = torch.frombuffer(bytearray(content[begin:end]), dtype=SAFETENSORS[entry['dtype']])
            tensors[name] = data.reshape(entry['shape'])
        return tensors
    except CheckpointError:  # is a ValueError, too
        raise
    except FileNotFoundError as error:
        raise CheckpointError('no such checkpoint file') from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f'is not a .safetensors file, is truncated or damaged ({type(error).__name__}: {error})'
        ) from error


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON whose names are all different."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise CheckpointError(f'holds {name!r} twice; save the file again')
        found[name] = value
    return found
