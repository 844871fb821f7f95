"""A graph of one image, run for each image of a batch."""

import numpy as np
import onnx

from mmdeploy_ext.graphs.passes.over_images import over_images
from mmdeploy_ext.graphs.run import Runner

ONE_IMAGE = """
<ir_version: 8, opset_import: ["": 17]>
one (float[1, 3] x, float[1, 2] size, int64[1] shared) => (float[1, 2, 3] y)
<float half = {0.5}>
{
    area = ReduceProd <axes = [1], keepdims = 1> (size)
    scaled = Mul (x, area)
    factor = Cast <to = 1> (shared)
    other = Mul (x, factor)
    halved = Mul (other, half)
    stacked = Concat <axis = 0> (scaled, halved)
    zero = Constant <value = int64[1] {0}> ()
    y = Unsqueeze (stacked, zero)
}
"""


def test_every_image_has_the_results_that_it_has_alone():
    single = Runner(onnx.parser.parse_model(ONE_IMAGE))
    looped = over_images(onnx.parser.parse_model(ONE_IMAGE), ['shared'], ['size'])
    for value in (*looped.graph.input[:2], *looped.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = 'B'
    onnx.checker.check_model(looped, full_check=True)
    rng, shared = np.random.default_rng(0), np.array([3])
    x, size = rng.normal(size=(4, 3)).astype('f'), rng.normal(size=(4, 2)).astype('f')
    batch = Runner(looped)
    for given in (size, size[:1]):  # one size for all images, too
        (found,) = batch.run(dict(x=x, size=given, shared=shared)).values()
        for row, image in enumerate(x):
            own = dict(x=image[None], size=given[row % len(given)][None], shared=shared)
            (wanted,) = single.run(own).values()
            np.testing.assert_array_equal(found[row], wanted[0])
