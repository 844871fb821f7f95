"""Importing this registers 2D models that no installed library has."""

from mmdeploy_ext.upstream.models.catalogue import MODELS_2D, register_all

register_all(MODELS_2D)
