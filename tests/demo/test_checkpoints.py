"""The published toys: plain data, small, of the config they name, and as good as their page says."""

import copy
import re
from pathlib import Path

import pytest
import torch
from mmcv import Config

from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.families.synthetic.coco import ensure_toy_coco

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINTS = REPOSITORY / 'demo' / 'checkpoints'
CONFIGS = {
    'atss_toy': 'configs/demo',
    'solov2_toy': 'configs/demo',
    'decoupled_solo_toy': 'configs/demo',
    'centerpoint_toy': 'projects/configs/BEVFusion',
    'pointpillars_toy': 'projects/configs/PointPillars',
    'centerpoint_pillar_toy': 'projects/configs/Autoware',
}
METRICS = dict.fromkeys(
    ('atss_toy', 'yolox_toy', 'retinanet_toy', 'deformable_detr_toy', 'rtdetr_toy'), 'bbox'
)
METRICS |= dict.fromkeys(('solov2_toy', 'decoupled_solo_toy', 'mask_rcnn_toy'), 'segm')


def config_of(name):
    return load_config(str(REPOSITORY / CONFIGS.get(name, 'configs/demo') / f'{name}.py'))


@pytest.fixture(scope='module')
def toy_coco(tmp_path_factory):
    """The generated set; val2017 is that of the full set."""
    folder = tmp_path_factory.mktemp('toy') / 'set'
    ensure_toy_coco(folder, train_images=1, quiet=True)
    return folder


@pytest.mark.parametrize('path', sorted(CHECKPOINTS.glob('*.pth')), ids=lambda path: path.stem)
def test_a_checkpoint_is_small_and_plain(path):
    assert path.stat().st_size <= 8e6
    assert set(torch.load(path, map_location='cpu', weights_only=True)) == {'meta', 'state_dict'}


@pytest.mark.parametrize('name', CONFIGS)
def test_a_config_is_the_one_that_was_trained(name):
    meta = torch.load(CHECKPOINTS / f'{name}.pth', map_location='cpu', weights_only=True)['meta']
    trained, config = Config.fromstring(meta['config'], '.py'), copy.deepcopy(config_of(name))
    if name == 'decoupled_solo_toy':  # the page says what changed after the first run
        for one in (trained, config):
            one.model.mask_head.pop('scale_ranges')
    assert trained.model == config.model
    assert trained.data.test.pipeline == config.data.test.pipeline


def stated_ap(name):
    """Return the AP of a toy on the page of the checkpoints."""
    page = (CHECKPOINTS / 'README.md').read_text()
    return float(re.search(rf'`{name}\.pth`.*?\|.*?\| \*\*(0\.\d+)\*\* \|', page).group(1))


@pytest.mark.matrix  # 100 pictures; tests/cli/ evaluates a few
@pytest.mark.parametrize(('name', 'metric'), METRICS.items())
def test_a_checkpoint_has_the_ap_that_its_page_states(name, metric, toy_coco):
    from mmcv.parallel import MMDataParallel
    from mmdet.apis import single_gpu_test
    from mmdet.datasets import build_dataloader, build_dataset
    from mmdet.models import build_detector

    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401
    from mmdeploy_ext.upstream.weights.checkpoint import load_checkpoint, load_strict

    config = config_of(name)
    data = config.data.test.copy()
    annotations = str(toy_coco / 'annotations/instances_val2017.json')
    data.update(ann_file=annotations, img_prefix=str(toy_coco / 'val2017'), test_mode=True)
    dataset = build_dataset(data)
    model = build_detector(config.model, test_cfg=config.get('test_cfg'))
    load_strict(model, load_checkpoint(CHECKPOINTS / f'{name}.pth'))
    loader = build_dataloader(dataset, 1, 0, dist=False, shuffle=False)
    results = single_gpu_test(MMDataParallel(model, device_ids=[-1]), loader)
    assert dataset.evaluate(results, metric=metric)[f'{metric}_mAP'] == pytest.approx(
        stated_ap(name), abs=2e-3
    )
