"""Engines behind one small interface; one file per engine."""

from mmdeploy_ext.backends.base import BACKENDS, Backend, build_backend

__all__ = ['BACKENDS', 'Backend', 'build_backend']
