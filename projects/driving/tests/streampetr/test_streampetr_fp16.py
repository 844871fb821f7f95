"""StreamPETR in float16 is close to PyTorch in float32, with PyTorch's memory in each frame."""

import numpy as np

import toy_streampetr_deploy as deployed
import toy_streampetr_export as exported

COSINE = 0.999


def cosine(found, wanted):
    found, wanted = (np.asarray(array, np.float64).ravel() for array in (found, wanted))
    return float(found @ wanted / (np.linalg.norm(found) * np.linalg.norm(wanted)))


def test_outputs_are_close_to_float32_with_the_memory_of_float32():
    detector = deployed.detector()
    reference = detector.family.reference(detector.model)
    runner = detector.family.runner(list(deployed.files(precision='fp16')), dict(threads=1))
    reference.reset()
    for index in range(4):
        frame = exported.frame(index)
        runner.state = reference.state
        found, wanted = runner.step(frame).outputs, reference.step(frame).outputs
        for name in ('all_cls_scores', 'all_bbox_preds'):
            assert cosine(found[name], wanted[name]) >= COSINE, (index, name)
