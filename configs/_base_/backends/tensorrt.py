# The same file through TensorRT: an engine for the GPU at hand is built beside it. Sizes are constant; so has
# to be the number of candidates of ATSS and SOLO: --cfg-options backend_config.max_candidates=1000
backend_config = dict(type='TensorRtBackend', postprocess='full', dynamic=False)
