"""Pipeline steps that mmdet3d 1.0.0rc6 lacks, under StreamPETR's and BEVFusion's names."""
