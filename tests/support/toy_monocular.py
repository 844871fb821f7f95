"""The toys of FCOS3D, PGD and SMOKE with seeded weights."""

import numpy as np

from made_once import made_once
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.seeded.weights import SCENE_SHAPES, seeded_model
from mmdeploy_ext.synthetic.scene import make_scene

SIZE = (96, 320)

KINDS = ('fcos3d', 'pgd', 'smoke')
CONFIG = 'projects/configs/Monocular/{}_toy.py'


def toy(kind='smoke'):
    """Return the config of a toy."""
    return load_config(CONFIG.format(kind))


@made_once
def seeded(kind='smoke'):
    """Return the deployment of a toy with seeded weights."""
    cfg = toy(kind)
    family = find_family(cfg)
    model = seeded_model(cfg, family).eval()
    model.CLASSES = deploy.class_names(cfg, {}, family.num_classes(model))
    return deploy.Model(
        cfg=cfg, config=CONFIG.format(kind), cfg_options={}, family=family, model=model, checkpoint='seeded',
        checkpoint_sha256='0' * 64, classes=model.CLASSES, rule=family.preprocess_rule(cfg),
    )  # fmt: skip


def picture(seed=3, height=100, width=300):
    """Return the title and the pixels of a generated picture."""
    return f'scene{seed}.jpg', make_scene(np.random.default_rng(seed), height, width, SCENE_SHAPES)[0]


def options(kind='smoke', **values):
    """Return the options of an export, complete."""
    deployment = seeded(kind)
    values = dict(dict(opset=0, height=SIZE[0], width=SIZE[1]), **values)
    chosen = deployment.family.choose(**values)
    return deploy.check_options(chosen, deployment.cfg, deployment.family, deployment.model)


def exported(kind, path, **values):
    """Export a toy and return the path of its file."""
    deployment, chosen = seeded(kind), options(kind, **values)
    traced = [deploy.prepare_fixed(deployment.rule, picture()[1], *SIZE)]
    (file,), _ = export_files(deployment, chosen, str(path), traced)
    return file
