"""`backend_config` of a config: which engine runs the network, and how; refused by name where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.errors import ConfigError, UsageError
from mmdeploy_ext.files import check_writable

if TYPE_CHECKING:
    from collections.abc import Callable

    from mmdeploy_ext.family import ExportOptions

GRAPH_KEYS = (
    'postprocess',
    'opset_version',
    'shape',
    'dynamic',
    'exporter',
    'simplify',
    'onnx_file',
    'check_dump',
    'dump_dir',
)
ENGINES = {
    'OnnxRuntimeBackend': ('providers', 'threads', 'graph_optimization'),
    'OpenVinoBackend': ('threads', 'device'),
    'TorchBackend': ('dump',),
}
DUMP_KEYS = ('samples', 'tensors', 'dir')


def read_settings(cfg: Any) -> dict[str, Any]:
    """Return the `backend_config` of a config; without one PyTorch runs.

    Raises:
        ConfigError: unknown type or key, or a value of the wrong kind.
        EngineError: an engine or execution provider that is not here.
    """
    settings = cfg.get('backend_config') or dict(type='TorchBackend')
    if not isinstance(settings, dict):
        raise ConfigError(f'{cfg.filename}: backend_config={settings!r}, expected a dict with `type`')
    settings = dict(settings)
    kind = settings.get('type')
    if kind not in ENGINES:
        raise ConfigError(
            f'{cfg.filename}: backend_config.type={kind!r}, expected one of {", ".join(ENGINES)}'
        )
    unknown = settings.keys() - {'type', *GRAPH_KEYS, *ENGINES[kind]}
    if unknown:
        raise ConfigError(
            f'{cfg.filename}: backend_config has unknown keys {sorted(unknown)}; {kind} takes '
            f'{sorted({*GRAPH_KEYS, *ENGINES[kind]})}'
        )
    if isinstance(settings.get('providers'), str):
        settings['providers'] = [settings['providers']]
    settings['dump'] = _read_dump(cfg, settings.get('dump'))
    if kind != 'TorchBackend':
        shared.check_engine(kind, engine_options(settings))
    return settings


def _read_dump(cfg: Any, dump: Any) -> dict[str, Any] | None:
    """Return samples, tensors and dir of a dump, or None when none is asked for."""
    if dump is None or dump is False:
        return None
    if not isinstance(dump, dict):
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump={dump!r}, expected a dict of {", ".join(DUMP_KEYS)}'
        )
    unknown = dump.keys() - set(DUMP_KEYS)
    if unknown:
        raise ConfigError(
            f'{cfg.filename}: backend_config.dump has unknown keys {sorted(unknown)}; expected '
            f'{", ".join(DUMP_KEYS)}'
        )
    samples, tensors = dump.get('samples', 4), dump.get('tensors')
    if not isinstance(samples, int) or samples < 0:
        raise ConfigError(f'{cfg.filename}: backend_config.dump.samples={samples!r}, expected 0 or more')
    tensors = [tensors] if isinstance(tensors, str) else tensors
    return dict(samples=samples, tensors=tensors, dir=dump.get('dir'))


def engine_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what `build_backend` takes of the settings of an ONNX engine."""
    return {key: settings[key] for key in ENGINES[settings['type']] if key in settings}


def graph_options(settings: dict[str, Any]) -> ExportOptions:
    """Return the export options that are asked for, not yet resolved; dynamic unless there is a shape.

    Raises:
        UsageError: a shape that is none.
    """
    from mmdeploy_ext.family import ExportOptions

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
    from mmdeploy_ext import deploy

    asked = graph_options(settings)
    check = deploy.option_check(asked, str(settings.get('onnx_file') or work_dir / 'model.onnx'))

    def named_check(cfg: Any, family: Any, model: Any) -> None:
        try:
            check(cfg, family, model)
        except UsageError as error:
            raise ConfigError(f'{cfg.filename}: backend_config: {error}') from error

    return named_check
