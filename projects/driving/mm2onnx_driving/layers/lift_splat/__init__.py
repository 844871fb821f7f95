"""Layers of detectors that lift pictures into a bird's-eye view: BEVDet, FlashOcc."""
