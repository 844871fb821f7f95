"""tools/train.py in this process: its imports cost more than a short training."""

import importlib.util
import logging
import random
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


def load_tool(script: str) -> ModuleType:
    """Import a script of tools/."""
    spec = importlib.util.spec_from_file_location(Path(script).stem, REPOSITORY / 'tools' / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(*words: str) -> int:
    """Run the tool with mmcv's loggers as a new process has them, which write to the folder of the run."""
    import torch
    from mmcv.utils import logging as mmcv_logging

    logger, states = (
        logging.getLogger('mmdet'),
        (random.getstate(), np.random.get_state(), torch.get_rng_state()),
    )
    kept, logger.handlers = logger.handlers, []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(mmcv_logging, 'logger_initialized', {})
        try:
            return load_tool('train.py').main([str(word) for word in words])
        finally:
            logger.handlers = kept
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])
