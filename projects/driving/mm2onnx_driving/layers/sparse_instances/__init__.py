"""Instances that read feature maps at key points: layers and steps of several systems."""
