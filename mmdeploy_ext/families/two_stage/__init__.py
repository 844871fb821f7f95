"""Two-stage detectors: proposals, regions, heads."""

from mmdeploy_ext.families.common.options import PASTE_MASKS
from mmdeploy_ext.spec.options import MAX_CANDIDATES, MAX_PROPOSALS, NMS_PLUGIN
from mmdeploy_ext.spec.registry import register_family

register_family(
    'two_stage',
    'mmdeploy_ext.families.two_stage.family:BOXES',
    options=(MAX_CANDIDATES, NMS_PLUGIN, MAX_PROPOSALS, PASTE_MASKS),
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.two_stage.runtime',
    claims=('TwoStageDetector', 'RPN', 'ImVoteNet'),
    exports=(
        "two-stage detectors with an rpn_head, a roi_head or both, Panoptic FPN, and ImVoteNet's first stage "
        '(docs/models-2d.md)'
    ),
    similar_names=('RCNN', 'RPN', 'RoIHead', 'MaskHead', 'Panoptic', 'ImVoteNet'),
)
