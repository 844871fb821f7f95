"""Two-stage detectors with masks: their options, and what their files tell `families/two_stage/runtime`."""

from mmdeploy_ext.contract.option import Option
from mmdeploy_ext.contract.options import OF_SOME
from mmdeploy_ext.contract.schema import open_record
from mmdeploy_ext.contract.values import FLAG, FRACTION
from mmdeploy_ext.families.two_stage import options as two_stage

PASTE_MASKS = Option(
    'paste_masks',
    False,
    'full form: masks pasted in the graph, at the size of the original (default: in the frame of the box)',
    schema=FLAG,
    key='paste_masks',
    only_with=('form', 'full'),
    group=OF_SOME,
)
OPTIONS = (*two_stage.OPTIONS, PASTE_MASKS)
FACTS = dict(two_stage.FACTS, mask_thr=FRACTION)
POSTPROCESS = open_record(**FACTS)
