"""Engines behind one small interface: a file per engine and a row each in `registry`."""

from mmdeploy_ext.engines.base import Backend
from mmdeploy_ext.engines.registry import BACKENDS, ENGINES, build_backend, build_exact, title_of

__all__ = ['BACKENDS', 'ENGINES', 'Backend', 'build_backend', 'build_exact', 'title_of']
