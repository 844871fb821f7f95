"""StreamPETR at test time; parameters have upstream's names."""
