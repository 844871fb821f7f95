"""The engine that runs the files of a proof, checked before a model is exported."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from mmdeploy_ext.core.errors import EngineError, ModelFileError, UsageError
from mmdeploy_ext.engines import BACKENDS, build_backend
from mmdeploy_ext.engines.registry import ENGINES, file_engines


def engine_settings(
    engine: str = 'onnxruntime',
    *,
    threads: int = 0,
    providers: Sequence[str] | None = None,
    inference_precision: str | None = None,
) -> dict[str, Any]:
    """Return the backend's name as `engine`, and its options.

    Raises:
        UsageError: an option that the engine does not have, or a number of threads below 0.
        EngineError: the engine, or an execution provider, is not here.
    """
    if engine not in file_engines():
        raise UsageError(f'--engine {engine}: expected one of {", ".join(file_engines())}')
    info = ENGINES[engine]
    if threads < 0:
        raise UsageError(f'--threads {threads}: expected 0 (the engine decides) or more')
    settings: dict[str, Any] = dict(engine=info.backend)
    options = dict(threads=threads, providers=providers, inference_precision=inference_precision)
    for key, value in options.items():
        if not value:
            continue
        if key not in info.keys:
            able = ' or '.join(name for name, other in file_engines().items() if key in other.keys)
            option = f'--{key.replace("_", "-")}'
            raise UsageError(f'{option} goes with --engine {able}, got --engine {engine}')
        settings[key] = value
    check_engine(settings['engine'], {key: value for key, value in settings.items() if key != 'engine'})
    return settings


def check_engine(kind: str, options: Mapping[str, Any]) -> None:
    """Refuse an engine, a provider or an option that is not here, before a model is exported for it."""
    threads = options.get('threads', 0)
    if not isinstance(threads, int) or threads < 0:
        raise UsageError(f'threads={threads!r}: expected 0 (the engine decides) or more')
    # An engine looks at itself before it looks for the file, and there is none.
    with contextlib.suppress(ModelFileError), build_backend(kind, path='', **options):
        pass


def check_engine_kind(kind: str, inference_precision: str | None = None) -> None:
    """Refuse an engine that streaming and LiDAR models do not run on, before anything is exported for it.

    Raises:
        EngineError: `kind`, a registered name, cannot; the message says which one can.
        UsageError: bfloat16 or float16 of the engine, by which no sequence is judged.
    """
    if 'stream' not in BACKENDS[kind].runs:
        able = [name for name, row in BACKENDS.items() if 'stream' in row.runs]
        raise EngineError(f'{kind}: streaming and LiDAR models run on {" or ".join(able)}')
    if inference_precision not in (None, 'fp32'):
        raise UsageError(
            f'--inference-precision {inference_precision}: goes with models of single images; models of '
            f'frames have --precision fp16 of the export'
        )
