"""Detectors of rotated boxes: those of mmrotate 0.3.4, as families of mm2onnx.

Importing it registers the families, without PyTorch, mmcv or mmrotate.
"""

from mmdeploy_ext import register_family

TRAINING_KEYS = (
    'assign_by_circumhbbox',
    'loss_bbox',
    'loss_bbox_init',
    'loss_bbox_refine',
    'loss_centerness',
    'loss_weight',
    'reg_decoded_bbox',
    'stage_loss_weights',
)
"""Keys of mmrotate's configs that only training reads; a test looks for readers in mmrotate's code."""

register_family(
    'rotated_dense',
    'mm2onnx_mmrotate.dense.family:RotatedDenseFamily',
    options=('max_candidates',),
    facts='mm2onnx_mmrotate.dense.facts:RotatedDenseFacts',
    runtime='mm2onnx_mmrotate.dense.runtime',
    library='mmrotate',
    training_keys=TRAINING_KEYS,
    exports='one-stage detectors of rotated boxes (projects/mmrotate/README.md)',
    similar_names=('Rotated', 'R3Det', 'S2A', 'Oriented', 'KFIoU', 'CSL'),
    own_kernels=('RotatedRepPointsHead', 'OrientedRepPointsHead', 'SAMRepPointsHead'),
    seeded='mm2onnx_mmrotate.dense.seeded:heads',
)
register_family(
    'rotated_two_stage',
    'mm2onnx_mmrotate.two_stage.family:RotatedTwoStageFamily',
    facts='mm2onnx_mmrotate.two_stage.facts:RotatedTwoStageFacts',
    runtime='mm2onnx_mmrotate.two_stage.runtime',
    library='mmrotate',
    exports='two-stage detectors of rotated boxes (projects/mmrotate/README.md)',
    similar_names=('RotatedFasterRCNN', 'OrientedRCNN', 'RoITransformer', 'GlidingVertex', 'ReDet'),
    keep_fp32=('proposals/*', 'regions/*'),
    seeded='mm2onnx_mmrotate.two_stage.seeded:heads',
)
