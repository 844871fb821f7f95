"""Checkpoints of other repositories, made into those that mmdet's models load."""
