"""Generated data sets: the commands of `mmdeploy_ext.synthetic`."""
