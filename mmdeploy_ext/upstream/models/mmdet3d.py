"""Importing this registers 3D models and data sets that mmdet3d lacks."""

from mmdeploy_ext.upstream.models.catalogue import MODELS_3D, register_all

register_all(MODELS_3D)
