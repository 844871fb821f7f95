"""Two-stage detectors: proposals, regions, heads."""

from mmdeploy_ext.contract.registry import register_family
from mmdeploy_ext.families.two_stage.options import KEEP_FP32, MASK_OPTIONS, OPTIONS, PANOPTIC_KEEP_FP32

register_family(
    'two_stage',
    'mmdeploy_ext.families.two_stage.family:TWO_STAGE',
    options=OPTIONS,
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    keep_fp32=KEEP_FP32,
    claims=('TwoStageDetector', 'RPN'),
    exports='two-stage detectors with an rpn_head and a roi_head (mmdeploy_ext/families/two_stage/README.md)',
    similar_names=('RCNN', 'RPN', 'RoIHead'),
)
register_family(
    'two_stage_image_branch',
    'mmdeploy_ext.families.two_stage.image_branch:IMAGE_BRANCH',
    options=OPTIONS,
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    keep_fp32=KEEP_FP32,
    library='mmdet3d',
    claims=('ImVoteNet',),
    exports="ImVoteNet's first stage (mmdeploy_ext/families/two_stage/README.md)",
    similar_names=('ImVoteNet',),
)
register_family(
    'two_stage_masks',
    'mmdeploy_ext.families.two_stage.family:TWO_STAGE_MASKS',
    options=MASK_OPTIONS,
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.parts.runtime.pasted_masks',
    keep_fp32=KEEP_FP32,
    claims=('TwoStageDetector', 'RPN'),
    exports='detectors with a mask_head in their roi_head (mmdeploy_ext/families/two_stage/README.md)',
    similar_names=('MaskRCNN', 'MaskHead'),
)
register_family(
    'two_stage_panoptic',
    'mmdeploy_ext.families.two_stage.family:TwoStagePanopticFamily',
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.two_stage.runtime.panoptic',
    keep_fp32=PANOPTIC_KEEP_FP32,
    claims=('TwoStagePanopticSegmentor',),
    exports='Panoptic FPN (mmdeploy_ext/families/two_stage/README.md)',
    similar_names=('PanopticFPN', 'Panoptic'),
)
register_family(
    'two_stage_regions',
    'mmdeploy_ext.families.two_stage.family:TWO_STAGE_REGIONS',
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.two_stage.runtime.regions',
    keep_fp32=KEEP_FP32,
    claims=('TwoStageDetector', 'RPN'),
    exports='detectors with a roi_head alone (mmdeploy_ext/families/two_stage/README.md)',
    similar_names=('FastRCNN',),
)
