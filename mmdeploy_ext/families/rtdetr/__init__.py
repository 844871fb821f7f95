"""RT-DETR: its family, graphs and runtime; `mmdeploy_ext/models/rtdetr` has the detector itself."""
