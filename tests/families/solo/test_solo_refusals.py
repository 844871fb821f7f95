"""What is wrong for SOLO alone: files of the other family, original checkpoints, grids, sizes, the cap."""

import pytest
import torch

from dev.seeded import by_name as seeded_by_name
from mmdeploy_ext.base.config import load_config
from mmdeploy_ext.upstream.weights.convert.solo_names import original_name
from model_shapes import model_shapes
from refusals import REPOSITORY

SOLO, DECOUPLED = (REPOSITORY / f'configs/demo/{name}_toy.py' for name in ('solov2', 'decoupled_solo'))
TRAINED = REPOSITORY / 'demo/checkpoints/solov2_toy.pth'


@pytest.mark.parametrize('config', [SOLO, DECOUPLED])
def test_an_original_checkpoint_is_refused_with_the_command_that_converts_it(config, bench):
    shapes = model_shapes(load_config(str(config)))
    weights = seeded_by_name.solo_weights(shapes).items()
    path = bench.folder / 'original.pth'
    torch.save(dict(state_dict={original_name(key, config == DECOUPLED): w for key, w in weights}), path)
    bench.refuses('export', 'original.pth', 'convert.py solo', config=config, checkpoint=path)


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        ('--shape 100 160', ['--shape 100 160', '32']),
        ('--postprocess decode', ['--postprocess decode', 'raw']),
        ('--max-candidates 9 --postprocess raw', ['--max-candidates 9', '--postprocess full']),
        ('--layout fork', ['--layout fork', '--postprocess raw']),
        ('--layout fork --postprocess raw --dynamic-export', ['--layout fork', 'no batch axis']),
        ('--cfg-options model.mask_head.dynamic_conv_size=3', ['dynamic_conv_size=3']),
    ],
)
def test_an_option_that_the_model_does_not_take(more, words, bench):
    bench.refuses('export', *words, more=more, config=SOLO, checkpoint=TRAINED)


@pytest.mark.matrix
def test_more_candidates_than_the_cap_are_an_error_not_a_shorter_list(bench):
    path = bench.folder / 'solo.onnx'
    more = '--shape 128 160 --max-candidates 1'
    assert bench.call('export', config=SOLO, checkpoint=TRAINED, output=path, more=more)[0] == 0
    status, _, err = bench.call('run', onnx=path)
    assert status != 0 and '--max-candidates 1' in err
