"""Importing this registers models and data sets of 3D that mmdet3d lacks, unless their types are taken."""

from mmdeploy_ext.models.catalogue import MODELS_3D, register_all

register_all(MODELS_3D)
