"""Engines behind one small interface; one file per engine, one row each in `registry`."""

from mmdeploy_ext.engines.base import Backend
from mmdeploy_ext.engines.registry import (
    BACKENDS,
    DEFAULT,
    ENGINES,
    EngineInfo,
    build_backend,
    build_exact,
    title_of,
)

__all__ = [
    'BACKENDS',
    'DEFAULT',
    'ENGINES',
    'Backend',
    'EngineInfo',
    'build_backend',
    'build_exact',
    'title_of',
]
