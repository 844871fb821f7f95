"""Two-stage detectors given what is not theirs: one line that names the file, the key or the layer."""

import types
from pathlib import Path

import mmcv
import numpy as np
import pytest

from mmdeploy_ext.cli.options import parse_cfg_options
from mmdeploy_ext.cli.run_images import check_file
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.core.errors import ConfigError, ModelFileError
from mmdeploy_ext.evaluate import evaluation
from mmdeploy_ext.families.two_stage.checks import heads_of
from toy_two_stage import family_of, options_of, seeded, toy, write_config

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = REPOSITORY / 'demo/checkpoints/mask_rcnn_toy.pth'
MASKS = REPOSITORY / 'configs/demo/mask_rcnn_toy.py'


@pytest.mark.parametrize(
    ('head', 'layer'), [('bbox_head', 'fc_cls.bias: (7,)'), ('mask_head', 'conv_logits.bias: (6,)')]
)
def test_a_checkpoint_of_another_number_of_classes_is_refused_by_the_layer(head, layer, bench):
    path = bench.folder / 'seven.py'
    path.write_text(f"_base_ = ['{MASKS}']\nmodel = dict(roi_head=dict({head}=dict(num_classes=7)))\n")
    words = 'mask_rcnn_toy.pth: does not fit', f'roi_head.{head}.', layer, 'in the model'
    bench.refuses('export', *words, config=path, checkpoint=CHECKPOINT)


def given(bench, **test):
    """Write the config of a Fast R-CNN whose data set is of one picture; `test` replaces entries of it."""
    bench.data()
    cfg = toy('fast')
    cfg.data.test.update(test)
    return write_config(cfg, bench.folder / 'fast.py')


def test_proposals_that_are_missing_are_asked_for_before_the_weights_load(bench):
    words = 'fast.py: data.test.proposal_file is missing', 'FastRCNN looks at proposals'
    bench.refuses('test', *words, config=given(bench), checkpoint='no.pth')


def test_a_pipeline_that_leaves_proposals_out_is_refused(bench):
    proposals = bench.folder / 'proposals.pkl'
    mmcv.dump([np.float32([[4, 4, 40, 40, 1]])], proposals)
    words = 'fast.py: data.test.pipeline collects no proposals', 'LoadProposals'
    bench.refuses('test', *words, config=given(bench, proposal_file=str(proposals)), checkpoint='no.pth')


def test_pictures_alone_do_not_run_a_file_that_is_given_its_proposals():
    spec = family_of('fast').spec(seeded('fast'), options_of('fast'))
    metadata = types.SimpleNamespace(family='two_stage', form='full', spec=spec)
    with pytest.raises(ModelFileError, match=r'fast\.onnx: .*no tool for pictures takes it'):
        check_file('fast.onnx', metadata, 'with_postprocess')


def test_masks_are_not_evaluated_of_results_that_have_none(bench):
    bench.data()
    given = parse_cfg_options(bench.data_options().split())
    cfg = load_config(str(MASKS), given)
    results = [[np.float32([[4, 4, 40, 40, 0.9]])] * 6]
    with pytest.raises(ConfigError, match='--eval'):
        evaluation.evaluate(cfg, evaluation.build_dataset(cfg), results, ['segm'])


@pytest.mark.parametrize(
    ('override', 'words'),
    [
        ('model.test_cfg.rpn=none', ("model.test_cfg.rpn='none': expected a dict of settings",)),
        ('model.roi_head.bbox_head=None', ('model.roi_head.bbox_head is missing', 'StandardRoIHead')),
        (
            'model.rpn_head.bbox_coder.target_stds=0.5',
            ('DeltaXYWHBBoxCoder.target_stds=0.5: expected four numbers',),
        ),
    ],
)
def test_an_entry_of_another_kind_is_named(override, words, bench):
    bench.refuses('export', *words, config=MASKS, checkpoint=CHECKPOINT, more=f'--cfg-options {override}')


@pytest.mark.parametrize('entry', [dict(test_cfg=0.5), dict(rpn_head='RPNHead')])
def test_a_head_and_settings_that_are_no_dicts_are_named(entry):
    cfg = load_config(str(MASKS))
    ((key, value),) = entry.items()
    cfg._cfg_dict.model[key] = value
    with pytest.raises(ConfigError, match=f'model.{key}={value!r}: expected a dict'):
        heads_of(cfg)
