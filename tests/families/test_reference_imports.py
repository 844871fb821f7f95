"""References share no code with the runners: a fault there would be on both sides of a proof."""

import ast
from pathlib import Path

import mmdeploy_ext

PACKAGE = Path(mmdeploy_ext.__file__).parent
OF_REFERENCES = (
    'families/**/*reference*.py',
    'families/**/*samples.py',
    'families/*/fork*.py',
    'models/**/*.py',
)
"""PyTorch's side: what runs the user's model, what makes frames of samples of data sets, models and data sets
of ours."""
OF_RUNNERS = 'runtime', 'consumers', 'preprocess'
"""Packages of the other side, at any depth."""
CHECKS = {
    'camera_times',
    'check_calibration',
    'check_camera',
    'check_images',
    'check_in_range',
    'check_points',
    'check_projection',
    'check_tokens',
    'frame_checks',
    'record_of',
}
"""They refuse; what they return is not what the model of a reference gets."""
OF_PROOFS = {'count_bounds', 'count_tokens', 'num_candidates', 'rotation_ties'}
"""Facts of a proof, not of results."""
OF_MOMENTS = {'frame_of_rig', 'read_frames', 'read_infos'}
"""They make the runner's frames of infos, with which those of the data set are compared."""
OTHERS = {
    'in_lidar_columns': 'of our own models; runners are compared with `reference.detections`, without it',
    'original': 'the camera that a runner is fed; PyTorch gets `camera_on_disk`',
    'point_rule': 'the rule of a config, whose points are compared with those of its pipeline',
    'rule_from_pipeline': 'the rule of a config, whose pictures are compared with those of its pipeline',
}


def functions_of_runners(path):
    """Yield the names of what a file imports from runners, but not types and constants."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith('mmdeploy_ext.'))
        if isinstance(node, ast.ImportFrom) and {*OF_RUNNERS} & {*(node.module or '').split('.')}:
            yield from (alias.name for alias in node.names if alias.name.islower())


def test_references_import_no_function_of_runners_that_decides_results():
    allowed = {*CHECKS, *OF_PROOFS, *OF_MOMENTS, *OTHERS}
    imported = {
        str(path.relative_to(PACKAGE)): set(functions_of_runners(path))
        for pattern in OF_REFERENCES
        for path in PACKAGE.glob(pattern)
    }
    others = {name: functions - allowed for name, functions in imported.items() if functions - allowed}
    assert not others
