"""Importing this registers the models of 2D that no installed library has, unless their types are taken."""

from mmdeploy_ext.models.catalogue import MODELS_2D, register_all

register_all(MODELS_2D)
