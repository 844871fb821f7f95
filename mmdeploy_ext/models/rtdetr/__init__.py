"""RT-DETR: detector, hybrid encoder, decoder and vd backbone for mmdet."""
