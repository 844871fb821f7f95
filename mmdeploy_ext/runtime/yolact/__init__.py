"""YOLACT without PyTorch."""
