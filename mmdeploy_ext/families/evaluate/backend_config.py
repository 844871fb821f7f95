"""`backend_config` of a config: the engine that runs the network and its options, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.base.files import check_replaceable, check_writable
from mmdeploy_ext.base.pixels import parse_shape
from mmdeploy_ext.engines import BACKENDS
from mmdeploy_ext.engines.registry import DEFAULT, check_engine

if TYPE_CHECKING:
    from mmdeploy_ext.families.base import Family
    from mmdeploy_ext.spec.options import Options

RUN_KEYS = ('onnx_file', 'check_dump', 'dump_dir')
"""Keys of every family besides its options."""
MEMORY = ('keep', 'reset')
"""Values of the key `memory`: 'reset' empties the memory before every frame, which measures its gain."""


def graph_keys(family: Family) -> tuple[str, ...]:
    """Keys of `backend_config` about graphs and files that a family has."""
    keys = tuple(option.key for option in family.options if option.key) + RUN_KEYS
    return (*keys, 'memory') if family.memory else keys


def read_settings(cfg: Any, family: Family, unit: str, onnx: bool | None = None) -> dict[str, Any]:
    """Read `backend_config` of a config; without one PyTorch runs.

    `unit` is what a dump counts, 'samples' or 'frames'.

    Returns:
        The keys of the config, `type`, and `dump`, the tensors that a run in PyTorch writes: None, or

        - `samples`, of models of frames or sweeps `frames`: the number of the first ones (4), for `frames`
          also a list of indices;
        - `tensors`: a list of names, None for all;
        - `dir`: the folder, None for the default in the work directory.
    """
    prefix = f'{cfg.filename}: backend_config'
    settings = cfg.get('backend_config') or {}
    if not isinstance(settings, dict):
        raise ConfigError(f'{prefix}={settings!r}, expected a dict with `type`')
    settings = dict(settings)
    if not settings or ('type' not in settings and onnx is not None):
        settings['type'] = 'TorchBackend'
    kind = settings.get('type')
    if not isinstance(kind, str) or kind not in BACKENDS:
        raise ConfigError(f'{prefix}.type={kind!r}, expected one of {", ".join(BACKENDS)}')
    keys = {*graph_keys(family), *BACKENDS[kind].keys}
    if onnx is not None:  # one config and one command line may serve both runs
        keys |= {*BACKENDS['TorchBackend'].keys, *(DEFAULT.keys if kind == 'TorchBackend' else ())}
    if unknown := settings.keys() - {'type', *keys}:
        raise ConfigError(f'{prefix} has unknown keys {sorted(unknown)}; {kind} supports {sorted(keys)}')
    if isinstance(settings.get('providers'), str):
        settings['providers'] = [settings['providers']]
    settings['dump'] = _read_dump(f'{prefix}.dump', settings.get('dump'), unit)
    if onnx is not None:
        settings = _of_chosen_side(settings, onnx, family)
    if settings['type'] != 'TorchBackend':
        check_engine(settings['type'], engine_options(settings))
    return settings


def _of_chosen_side(settings: dict[str, Any], onnx: bool, family: Family) -> dict[str, Any]:
    kind = settings['type']
    if onnx != BACKENDS[kind].files:
        kind = DEFAULT.backend if onnx else 'TorchBackend'
    kept = {key: settings[key] for key in (*graph_keys(family), *BACKENDS[kind].keys) if key in settings}
    kept['type'] = kind
    kept['dump'] = None if onnx else settings['dump']
    if onnx and settings['dump'] and settings['dump']['dir']:
        kept.setdefault('dump_dir', settings['dump']['dir'])
    return kept


def _read_dump(prefix: str, dump: Any, unit: str) -> dict[str, Any] | None:
    keys = (unit, 'tensors', 'dir')
    if dump is None or dump is False:
        return None
    if not isinstance(dump, dict):
        raise ConfigError(f'{prefix}={dump!r}, expected a dict of {", ".join(keys)}')
    if unknown := dump.keys() - set(keys):
        raise ConfigError(f'{prefix} has unknown keys {sorted(unknown)}; expected {", ".join(keys)}')
    amount, tensors = dump.get(keys[0], 4), dump.get('tensors')
    are_indices = isinstance(amount, list | tuple) and keys[0] == 'frames'
    if not all(type(number) is int and number >= 0 for number in (amount if are_indices else [amount])):
        raise ConfigError(f'{prefix}.{keys[0]}={amount!r}, expected 0 or more')
    tensors = [tensors] if isinstance(tensors, str) else tensors
    is_list = isinstance(tensors, list | tuple) and bool(tensors)
    if tensors is not None and not (is_list and all(isinstance(name, str) for name in tensors)):
        raise ConfigError(f'{prefix}.tensors={tensors!r}, expected names, or None for all')
    folder = dump.get('dir')
    if not isinstance(folder, str | Path | None):
        raise ConfigError(f'{prefix}.dir={folder!r}, expected a folder')
    return {keys[0]: amount, 'tensors': tensors, 'dir': folder}


def engine_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that are options of their backend, such as `threads`."""
    return {key: settings[key] for key in BACKENDS[settings['type']].keys if key in settings}


def graph_options(cfg: Any, settings: dict[str, Any], family: Family) -> Options:
    """Export options of a config; sizes are dynamic unless it has `dynamic` or a `shape`."""
    from mmdeploy_ext.exporting.export import check_opset

    prefix, values = f'{cfg.filename}: backend_config.', dict(opset=0)
    for option in family.options:
        value = settings.get(option.key)
        if value is not None:
            if option.choices and type(value) is float:
                value = str(value)  # --cfg-options reads 1.1 as a number
            values[option.name] = (value,) if option.default == () and isinstance(value, str) else value
    if settings.get('memory', MEMORY[0]) not in MEMORY:
        raise ConfigError(f'{prefix}memory={settings["memory"]!r}, expected {" or ".join(MEMORY)}')
    if 'shape' in graph_keys(family):
        values.setdefault('dynamic', values.get('height') is None)
        values['height'], values['width'] = parse_shape(values.get('height'), f'{prefix}shape')
    options = family.choose(**values)
    try:
        options.check(prefix)
        if settings.get('opset_version') is not None:
            check_opset(options.opset, options.exporter)
    except UsageError as error:
        message = str(error)
        if not message.startswith(prefix):
            message = f'{cfg.filename}: backend_config: {message}'
        raise ConfigError(message) from error
    return options


def precision(settings: dict[str, Any]) -> str:
    """'fp32', 'fp16' or 'bf16', in which the network of a run computes."""
    of_engine = str(settings.get('inference_precision') or 'fp32')
    return of_engine if of_engine != 'fp32' else str(settings.get('precision') or 'fp32')


def check_targets(settings: dict[str, Any], work_dir: Path) -> None:
    """Raise UsageError for a file of metrics in `work_dir`, or a folder of dumps, that cannot be written."""
    check_writable(work_dir / BACKENDS[settings['type']].metrics)
    if settings['dump'] and settings['dump']['dir']:
        check_replaceable(settings['dump']['dir'])
