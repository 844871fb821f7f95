"""`backend_config` of a config: which engine runs the network, and how; refused by name where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.apps.sequence_options import CHOICES, check_combination
from mmdeploy_ext.contract.precision import keep_list
from mmdeploy_ext.core.errors import ConfigError, UsageError
from mmdeploy_ext.core.files import check_writable
from mmdeploy_ext.engines import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mmdeploy_ext.families.base import ExportOptions
    from mmdeploy_ext.families.sequence import SequenceOptions

GRAPH_KEYS = (
    'postprocess',
    'opset_version',
    'shape',
    'dynamic',
    'exporter',
    'simplify',
    'precision',
    'fp16_io',
    'keep_fp32',
    'max_candidates',
    'grid_sample',
    'onnx_file',
    'check_dump',
    'dump_dir',
)
DUMP_KEYS = ('samples', 'tensors', 'dir')
SEQUENCE_KEYS = (
    *CHOICES,
    'precision',
    'fp16_io',
    'keep_fp32',
    'opset_version',
    'exporter',
    'simplify',
    'onnx_file',
    'check_dump',
    'dump_dir',
    'memory',
)
"""What streaming models have instead of `GRAPH_KEYS`."""
MEMORY = ('keep', 'reset')
"""'reset' empties the memory before every frame, which shows what it is worth."""
SEQUENCE_DUMP_KEYS = ('frames', 'tensors', 'dir')


def read_settings(
    cfg: Any, graph_keys: Sequence[str] = GRAPH_KEYS, dump_keys: Sequence[str] = DUMP_KEYS
) -> dict[str, Any]:
    """Return the `backend_config` of a config; without one PyTorch runs.

    Args:
        cfg: the config.
        graph_keys: keys about the graph that this kind of model has.
        dump_keys: keys of `dump`; the first one says how much is written.

    Raises:
        ConfigError: unknown type or key, or a value of the wrong kind.
        EngineError: an engine or execution provider that is not here.
    """
    settings = cfg.get('backend_config') or dict(type='TorchBackend')
    if not isinstance(settings, dict):
        raise ConfigError(f'{cfg.filename}: backend_config={settings!r}, expected a dict with `type`')
    settings = dict(settings)
    kind = settings.get('type')
    if kind not in BACKENDS:
        raise ConfigError(
            f'{cfg.filename}: backend_config.type={kind!r}, expected one of {", ".join(BACKENDS)}'
        )
    unknown = settings.keys() - {'type', *graph_keys, *BACKENDS[kind].keys}
    if unknown:
        raise ConfigError(
            f'{cfg.filename}: backend_config has unknown keys {sorted(unknown)}; {kind} takes '
            f'{sorted({*graph_keys, *BACKENDS[kind].keys})}'
        )
    if isinstance(settings.get('providers'), str):
        settings['providers'] = [settings['providers']]
    settings['dump'] = _read_dump(cfg, settings.get('dump'), dump_keys)
    if kind != 'TorchBackend':
        shared.check_engine(kind, engine_options(settings))
    return settings


def _read_dump(cfg: Any, dump: Any, keys: Sequence[str]) -> dict[str, Any] | None:
    """Return how much, tensors and dir of a dump, or None when none is asked for."""
    if dump is None or dump is False:
        return None
    if not isinstance(dump, dict):
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump={dump!r}, expected a dict of {", ".join(keys)}'
        )
    unknown = dump.keys() - set(keys)
    if unknown:
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump has unknown keys {sorted(unknown)}; expected '
            f'{", ".join(keys)}'
        )
    amount, tensors = dump.get(keys[0], 4), dump.get('tensors')
    listed = isinstance(amount, list | tuple) and keys[0] == 'frames'
    if not all(type(number) is int and number >= 0 for number in (amount if listed else [amount])):
        raise ConfigError(f'{cfg.filename}: backend_config.dump.{keys[0]}={amount!r}, expected 0 or more')
    tensors = [tensors] if isinstance(tensors, str) else tensors
    if tensors is not None and not (
        isinstance(tensors, list | tuple) and tensors and all(isinstance(name, str) for name in tensors)
    ):
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump.tensors={tensors!r}, expected names, or None for all'
        )
    folder = dump.get('dir')
    if not isinstance(folder, str | Path | None):
        raise ConfigError(f'{cfg.filename}: backend_config.dump.dir={folder!r}, expected a folder')
    return {keys[0]: amount, 'tensors': tensors, 'dir': folder}


def engine_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what `build_backend` takes of the settings of an ONNX engine."""
    return {key: settings[key] for key in BACKENDS[settings['type']].keys if key in settings}


def graph_options(settings: dict[str, Any]) -> ExportOptions:
    """Return the export options that are asked for, not yet resolved; dynamic unless there is a shape.

    Raises:
        UsageError: a shape that is none.
    """
    from mmdeploy_ext.families.base import ExportOptions

    shape = settings.get('shape')
    height, width = shared.parse_shape(shape, 'backend_config.shape')
    return ExportOptions(
        form=settings.get('postprocess', 'full'),
        opset=settings.get('opset_version') or 0,
        height=height,
        width=width,
        dynamic=settings.get('dynamic', shape is None),
        exporter=settings.get('exporter', 'torchscript'),
        simplify=settings.get('simplify', False),
        max_candidates=settings.get('max_candidates', 0),
        grid_sample=settings.get('grid_sample', 'operator'),
        **_precision(settings),
    )


def precision(settings: dict[str, Any]) -> str:
    """Return what the network of a run computes in: of the file, or what its engine is asked for."""
    asked = str(settings.get('inference_precision') or 'fp32')
    return asked if asked != 'fp32' else str(settings.get('precision') or 'fp32')


def _precision(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of export options about float16; `check_precision` refuses what is wrong in them."""
    return dict(
        precision=settings.get('precision', 'fp32'),
        fp16_io=bool(settings.get('fp16_io', False)),
        keep_fp32=keep_list(settings.get('keep_fp32')),
    )


def check_targets(settings: dict[str, Any], work_dir: Path) -> None:
    """Refuse output paths that cannot be written.

    Raises:
        UsageError: names the path.
    """
    check_writable(work_dir / 'metrics.json')
    if settings.get('onnx_file'):
        check_writable(settings['onnx_file'])
    if settings['dump'] and settings['dump']['dir']:
        check_writable(Path(settings['dump']['dir']) / 'manifest.json')


def graph_check(settings: dict[str, Any], work_dir: Path) -> Callable[[Any, Any, Any], None]:
    """Return a `before_weights` hook that refuses what the model or the exporter does not have."""
    from mmdeploy_ext.deploy import deployment as deploy

    asked = graph_options(settings)
    check = deploy.option_check(asked, str(settings.get('onnx_file') or work_dir / 'model.onnx'))

    def named_check(cfg: Any, family: Any, model: Any) -> None:
        try:
            check(cfg, family, model)
        except UsageError as error:
            raise ConfigError(f'{cfg.filename}: backend_config: {error}') from error

    return named_check


def sequence_options(cfg: Any, settings: dict[str, Any]) -> SequenceOptions:
    """Return the export options that the config of a streaming model asks for; opset 0: the model says.

    Raises:
        ConfigError: a value that is none of the choices, or an opset that the exporter cannot write.
        UsageError: options that do nothing together.
    """
    from mmdeploy_ext.exporting.exporter import check_opset
    from mmdeploy_ext.families.sequence import SequenceOptions

    allowed = dict(CHOICES, memory=MEMORY)
    # --cfg-options reads 1.1 as a number
    settings = {name: str(value) if type(value) is float else value for name, value in settings.items()}
    for name, values in allowed.items():
        if settings.get(name, values[0]) not in values:
            raise ConfigError(
                f'{cfg.filename}: backend_config.{name}={settings[name]!r}, expected {" or ".join(values)}'
            )
    chosen = {name: settings[name] for name in CHOICES if name in settings}
    exporter = settings.get('exporter', 'torchscript')
    opset = settings.get('opset_version')
    if opset is not None:
        if type(opset) is not int:
            raise ConfigError(f'{cfg.filename}: backend_config.opset_version={opset!r}, expected a number')
        try:
            check_opset(opset, exporter)
        except UsageError as error:
            raise ConfigError(f'{cfg.filename}: backend_config: {error}') from error
    simplify = bool(settings.get('simplify', False))
    options = SequenceOptions(
        **chosen, **_precision(settings), simplify=simplify, opset=opset or 0, exporter=exporter
    )
    check_combination(options, chosen, f'{cfg.filename}: backend_config.')
    return options
