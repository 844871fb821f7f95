"""What stood in for parts of the user's code in this process, for first lines of commands and verdicts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.upstream.compat import operator_forms, stand_ins

CUDA = 'mmdeploy_ext.upstream.compat.cuda_as_cpu'
MMCV = 'mmdeploy_ext.upstream.compat.mmcv_operators'
"""They need PyTorch."""
CONFIG = 'mmdeploy_ext.base.config'


def facts() -> dict[str, Any]:
    """Return what stood in so far, without what did not.

    - stand_ins: name -> FILE:LINE of its first use, or ''.
    - fallbacks: what imports in a `try` of the user's did not find -> FILE:LINE of the first.
    - operators: functions of compiled extensions that ran in PyTorch: 'mmcv nms'.
    - cuda_as_cpu: each FILE:LINE where CUDA meant the CPU.
    - bases: missing file of `_base_` -> the file that was read in its place.
    """
    of_mmcv = getattr(sys.modules.get(MMCV), 'executed', ())
    found: dict[str, Any] = dict(
        stand_ins={lack.name: lack.used for lack in stand_ins.lacks.values()},
        fallbacks=dict(stand_ins.fallbacks),
        operators=[*operator_forms.executed_operators, *(f'mmcv {name}' for name in of_mmcv)],
        cuda_as_cpu=list(getattr(sys.modules.get(CUDA), 'places', ())),
        bases=dict(getattr(sys.modules.get(CONFIG), 'bases', {})),
    )
    return {name: values for name, values in found.items() if values}


def lines(found: Mapping[str, Any]) -> list[str]:
    """Return `facts` in words: 'stand-ins: wandb, av2 (not called)'."""
    names = found.get('stand_ins', {})
    unused = ', '.join(name for name, used in names.items() if not used)
    texts = {
        'stand-ins': [
            *([f'{unused} (not called)'] if unused else []),
            *(f'{name} (called by {used})' for name, used in names.items() if used),
        ],
        'fallbacks': [f'{name} ({place})' for name, place in found.get('fallbacks', {}).items()],
        'operators in PyTorch': found.get('operators', []),
        'CUDA is the CPU': found.get('cuda_as_cpu', []),
        'files of _base_': [f'{other} for {missing}' for missing, other in found.get('bases', {}).items()],
    }
    return [f'{title}: {", ".join(values)}' for title, values in texts.items() if values]
