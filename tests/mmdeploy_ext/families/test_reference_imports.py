"""References take no numbers from code of the runners: a fault there would be on both sides of a proof."""

import ast
from pathlib import Path

import mmdeploy_ext

FAMILIES = Path(mmdeploy_ext.__file__).parent / 'families'
CHECKS = {
    'camera_times',
    'check_calibration',
    'check_camera',
    'check_images',
    'check_in_range',
    'check_points',
    'check_tokens',
    'frame_checks',
    'record_of',
}
"""They refuse; what they return is not what the model of a reference gets, but for a record of the data."""
OF_PROOFS = {'count_bounds', 'rotation_ties'}
"""Facts of a proof, not of results."""
OF_STATES = {'invert_pose', 'memory_of', 'to_global', 'to_local'}
"""They move a memory; the runner's own is made by its graph, or compared with PyTorch's tensors."""


def test_references_import_no_function_of_runners_that_decides_results():
    taken = {}
    for path in FAMILIES.rglob('*reference*.py'):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and '.runtime' in (node.module or ''):
                functions = {name.name for name in node.names if name.name.islower()}
                if others := functions - CHECKS - OF_PROOFS - OF_STATES:
                    taken[str(path.relative_to(FAMILIES))] = others
    assert not taken
