"""RTMDet: the parts of mmdet 3 that mmdet 2.28 lacks, with its parameter names; `dense` exports the head."""
