"""Any detector of single images: its own test path, traced whole."""

from mmdeploy_ext.families.common.options import GRID_SAMPLE, PASTE_MASKS
from mmdeploy_ext.spec.options import MAX_CANDIDATES, MAX_PROPOSALS, NMS_PLUGIN, Option
from mmdeploy_ext.spec.registry import register_family, register_files

register_family(
    'traced',
    'mmdeploy_ext.families.traced.family:TracedFamily',
    options=(
        Option(
            'whole',
            'traced',
            "traced: export a trace of your detector's own test path (default where no family claims it)",
            ('traced',),
            key='whole',
            stated=True,
        ),
        MAX_CANDIDATES,
        MAX_PROPOSALS,
        NMS_PLUGIN,
        GRID_SAMPLE,
        PASTE_MASKS,
    ),
    facts='mmdeploy_ext.families.traced.runtime:TracedFacts',
    runtime='mmdeploy_ext.families.traced.runtime',
    claims=('BaseDetector',),
)
RUNTIME = 'mmdeploy_ext.families.traced.runtime'
register_files('corner', f'{RUNTIME}:CornerFacts', RUNTIME)
register_files('instance', f'{RUNTIME}:InstanceFacts', RUNTIME)
register_files('yolact', f'{RUNTIME}:YolactFacts', RUNTIME)
