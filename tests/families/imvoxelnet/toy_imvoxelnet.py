"""The toy of ImVoxelNet with seeded weights."""

import functools

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.families import model as deploy
from mmdeploy_ext.families.base import find_family
from mmdeploy_ext.families.files import export_files
from mmdeploy_ext.seeded.weights import seeded_model

CONFIG, SIZE = 'projects/configs/ImVoxelNet/imvoxelnet_toy.py', (96, 320)


@functools.cache
def seeded():
    """Return the deployment of the toy with seeded weights."""
    cfg = load_config(CONFIG)
    family = find_family(cfg)
    model = seeded_model(cfg, family).eval()
    model.CLASSES = deploy.class_names(cfg, {}, family.num_classes(model))
    return deploy.Model(
        cfg=cfg, config=CONFIG, cfg_options={}, family=family, model=model, checkpoint='seeded',
        checkpoint_sha256='0' * 64, classes=model.CLASSES, rule=family.preprocess_rule(cfg),
    )  # fmt: skip


def options(**values):
    """Return the options of an export, complete."""
    deployment = seeded()
    values = dict(dict(opset=0, height=SIZE[0], width=SIZE[1]), **values)
    chosen = deployment.family.choose(**values)
    return deploy.check_options(chosen, deployment.cfg, deployment.family, deployment.model)


def exported(path, image, **values):
    """Export the toy, traced with a picture (h, w, 3) uint8, and return the path of its file."""
    deployment, chosen = seeded(), options(**values)
    traced = [deploy.prepare_fixed(deployment.rule, image, *SIZE)]
    (file,), _ = export_files(deployment, chosen, str(path), traced)
    return file
