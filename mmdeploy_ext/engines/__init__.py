"""Engines behind one small interface; one file per engine."""

from mmdeploy_ext.engines.base import BACKENDS, ENGINE_TITLES, Backend, build_backend

__all__ = ['BACKENDS', 'ENGINE_TITLES', 'Backend', 'build_backend']
