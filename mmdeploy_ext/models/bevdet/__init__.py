"""BEVDet and BEVDet4D-longterm-depth at test time; parameters have upstream's names."""
