"""Names and shapes of the model of a config."""

from mmdeploy_ext.upstream.weights.convert.conversion import model_tensors


def model_shapes(cfg):
    """Return name -> shape of the state dict of the config's model."""
    return {name: tuple(tensor.shape) for name, tensor in model_tensors(cfg).items()}
