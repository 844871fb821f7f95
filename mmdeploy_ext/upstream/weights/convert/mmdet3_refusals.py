"""The configs of mmdet 3.3.0 that are not translated, by kind. `python -m dev.mmdet3_configs` counts them."""

from typing import Any

from mmdeploy_ext.base.config import types_of
from mmdeploy_ext.base.errors import ConfigError

CONFIGS = 823
"""Of mmdet 3.3.0."""
NO_MODEL, OTHER_PACKAGE, NO_BASE = (
    'files without a `model`, such as `common/`',
    'classifiers, with a `_base_` of mmpretrain',
    'files with a `_base_` that mmdet 3.3 lacks',
)
NO_PIPELINE = 'files without a test pipeline'
REFUSED: dict[str, tuple[int, tuple[str, ...]]] = {
    'models with text: GLIP, Grounding DINO, MM Grounding DINO': (73, ('GLIP', 'GroundingDINO')),
    NO_MODEL: (15, ()),
    OTHER_PACKAGE: (5, ()),
    'Mask2Former models of videos': (5, ('Mask2FormerVideo',)),
    're-identification models (`reid/`)': (4, ('BaseReID',)),
    'scripts in the folder of configs (`override_category.py`)': (3, ()),
    'models of Detectron2': (3, ('Detectron2Wrapper',)),
    'backbones of timm': (2, ('TIMMBackbone',)),
    NO_BASE: (4, ()),
    NO_PIPELINE: (1, ()),
}
"""Kind -> number of configs, and the types in them that are refused."""
KINDS = {name: kind for kind, (_, names) in REFUSED.items() for name in names}


def number_of(kind: str) -> str:
    """Text of a message: how many configs of mmdet 3.3 are of this kind."""
    return f'{kind} are not translated ({REFUSED[kind][0]} of the {CONFIGS} configs of mmdet 3.3)'


def check_types(model: dict[str, Any]) -> None:
    """ConfigError: the entry `model`, without scopes, has a type that is not translated."""
    for key, name in types_of(model, 'model'):
        if kind := KINDS.get(name):
            raise ConfigError(f'{key}={name!r}: {number_of(kind)}')
