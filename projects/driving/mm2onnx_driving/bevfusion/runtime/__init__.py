"""BEVFusion whole: pictures, points and calibration to boxes, with the files of an export."""
