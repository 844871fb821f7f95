"""What only instance segmentation can get wrong: the other family's files, originals, grids, sizes, caps."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.seeded import by_name as seeded_by_name
from mmdeploy_ext.weights.convert.solo_names import original_name

REPOSITORY = Path(__file__).resolve().parents[2]
SOLO = REPOSITORY / 'configs/demo/solov2_toy.py'
DECOUPLED = REPOSITORY / 'configs/demo/decoupled_solo_toy.py'
COMMAND = 'tools/convert.py solo'


def register():
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401


def weights_of(config, rename=lambda key: key):
    from mmdet.models import build_detector

    model_cfg = load_config(str(config)).model
    model_cfg.backbone.init_cfg = None
    shapes = {key: tuple(value.shape) for key, value in build_detector(model_cfg).state_dict().items()}
    return {rename(key): value for key, value in seeded_by_name.solo_weights(shapes).items()}


@pytest.fixture(scope='module')
def solo_weights():
    return weights_of(SOLO)


@pytest.fixture
def solo(bench, solo_weights):
    """Return the options of a good command, the checkpoint written."""
    path = bench.folder / 'solo.pth'
    torch.save(dict(state_dict=solo_weights), path)
    return dict(config=SOLO, checkpoint=path)


@pytest.fixture(scope='module')
def solo_onnx(tmp_path_factory, solo_weights):
    """Export the toy SOLOv2 once, with a cap that every picture exceeds."""
    from mmdeploy_ext.cli import export_app

    folder = tmp_path_factory.mktemp('solo')
    torch.save(dict(state_dict=solo_weights), folder / 'solo.pth')
    line = [
        str(SOLO),
        str(folder / 'solo.pth'),
        '--output-file',
        str(folder / 'solo.onnx'),
        '--shape',
        '128',
        '160',
    ]
    assert export_app.main([*line, '--max-candidates', '1']) == 0
    return folder / 'solo.onnx'


# ---- the other family


def test_a_solo_config_does_not_take_the_checkpoint_of_atss(bench):
    bench.refuses('export', 'atss_toy.pth: does not fit the model of the config', 'mask_head', config=SOLO)


def test_an_atss_config_does_not_take_a_solo_checkpoint(bench, solo):
    bench.refuses('export', 'solo.pth: does not fit the model', 'bbox_head', checkpoint=solo['checkpoint'])


def test_the_tool_for_solo_does_not_take_a_config_of_atss(bench, monkeypatch, capfd):
    line = bench.arguments('export', {})
    monkeypatch.setattr(sys, 'argv', ['solo2onnx.py', *line])
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(REPOSITORY / 'tools/deployment/solo2onnx.py'), run_name='__main__')
    error = capfd.readouterr().err
    assert stopped.value.code == 2 and error.startswith('error: ') and error.count('\n') == 1
    assert "is a config of family 'dense', expected 'solo'" in error and 'pytorch2onnx.py' in error
    assert (bench.out / 'm.onnx').read_bytes() == b'an earlier export'


@pytest.mark.matrix
def test_a_solo_file_is_not_an_atss_model_and_the_reverse(bench, solo, solo_onnx):
    bench.refuses('verify', 'solo.onnx', "'solo'", "'dense'", onnx=solo_onnx)
    bench.refuses('verify', 'toy.onnx', "'dense'", "'solo'", **solo)


def test_each_runner_takes_its_own_family(bench, solo_onnx):
    from mmdeploy_ext.cli import run_images

    bench.refuses('run', 'solo.onnx', 'solo', onnx=solo_onnx)
    words = [str(bench.onnx_file), str(REPOSITORY / 'demo/toy.jpg')]
    status = run_images.main(words, 'solo')
    error = bench.capfd.readouterr().err
    assert status == 2 and error.startswith('error: ') and 'dense' in error


# ---- checkpoints of the original repository


@pytest.mark.parametrize(('config', 'tool'), [(SOLO, 'export'), (SOLO, 'test'), (DECOUPLED, 'export')])
def test_an_original_checkpoint_is_refused_with_the_command_that_converts_it(config, tool, bench):
    path = bench.folder / 'original.pth'
    torch.save(dict(state_dict=weights_of(config, lambda key: original_name(key, config == DECOUPLED))), path)
    bench.data()
    if tool == 'test':
        config = config.with_name('solov2_toy_pth.py')
    bench.refuses(tool, 'original.pth', COMMAND, '--config', config=config, checkpoint=path)


def test_an_original_checkpoint_given_to_atss_is_refused_with_the_command_too(bench):
    path = bench.folder / 'original.pth'
    torch.save(dict(state_dict=weights_of(SOLO, original_name)), path)
    bench.refuses('export', 'original.pth', COMMAND, checkpoint=path)


# ---- grids


def test_masks_of_other_grids_are_refused(bench):
    path = bench.folder / 'decoupled.pth'
    torch.save(dict(state_dict=weights_of(DECOUPLED)), path)
    bench.refuses(
        'export', 'decoupled.pth: was trained on grids of [24, 20, 14, 10, 8] cells', 'num_grids=[40, 36, 24',
        config=DECOUPLED, checkpoint=path, more='--cfg-options model.mask_head.num_grids=[40,36,24,16,12]',
    )  # fmt: skip


def test_a_solov2_checkpoint_that_was_trained_on_other_grids_is_refused(bench, solo, solo_weights):
    meta = dict(config=load_config(str(SOLO)).pretty_text)
    torch.save(dict(state_dict=solo_weights, meta=meta), solo['checkpoint'])
    more = '--cfg-options model.mask_head.num_grids=[40,36,24,16,12]'
    bench.refuses(
        'export', 'solo.pth: was trained on grids of [24, 20', 'num_grids=[40, 36', more=more, **solo
    )


def test_grids_and_strides_come_in_pairs(bench, solo):
    more = '--cfg-options model.mask_head.num_grids=[24,20]'
    bench.refuses('export', 'num_grids=[24, 20]', 'strides=[8, 8, 16, 32, 32]', more=more, **solo)


# ---- sizes, layouts, caps


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        ('--shape 16 160', ['--shape 16 160', 'the largest grid of the model, 24']),
        ('--shape 100 160', ['--shape 100 160', 'multiples of 32']),
        ('--postprocess decode', ['--postprocess decode: expected full or raw']),
        ('--max-candidates -1', ['--max-candidates -1: expected a positive number']),
        ('--max-candidates 0', ['--max-candidates 0: expected a positive number; leave it out for all']),
        ('--max-candidates 9 --postprocess raw', ['--max-candidates 9 goes with --postprocess full']),
        ('--max-candidates 100000000', ['--max-candidates 100000000', 'candidates']),
        ('--layout fork', ['--layout fork goes with --postprocess raw']),
        ('--layout fork --postprocess raw --dynamic-export', ['--layout fork', '--dynamic-export']),
    ],
)
def test_options_that_the_model_does_not_take_are_refused(more, words, bench, solo):
    bench.refuses('export', *words, more=more, **solo)


@pytest.mark.parametrize('more', ['--max-candidates 0', '--max-candidates -3'])
def test_atss_takes_a_positive_number_of_candidates_only(more, bench):
    bench.refuses('export', f'{more}: expected a positive number; leave it out', more=more)


@pytest.mark.parametrize('more', ['--layout fork --postprocess raw'])
def test_atss_does_not_take_the_options_of_solo(more, bench):
    bench.refuses('export', more.split()[0], more=more)


def test_more_candidates_than_the_cap_are_an_error_not_a_shorter_list(bench, solo_onnx):
    from mmdeploy_ext.cli import run_images

    line = [str(solo_onnx), str(REPOSITORY / 'demo/toy.jpg'), '--out', str(bench.out)]
    assert run_images.main(line, 'solo') != 0
    error = bench.capfd.readouterr().err
    assert error.startswith(f'error: {line[1]}: candidates: ')  # which image of a folder it was
    assert '--max-candidates 1' in error and 'left some out' in error


@pytest.mark.matrix
def test_a_proof_that_only_the_cap_failed_names_the_number_that_passes(bench):
    trained = dict(config=SOLO, checkpoint=REPOSITORY / 'demo/checkpoints/solov2_toy.pth')
    small = bench.folder / 'small.onnx'
    done = bench.call('export', output=small, more='--shape 128 160 --max-candidates 2 --verify', **trained)
    following = done.out[done.out.index('next: ') :].splitlines()[0]
    assert done.status == 1 and 'left some out' in done.out and '--postprocess full' in following
    words = shlex.split(following.split('   #')[0])
    assert int(words[words.index('--max-candidates') + 1]) > 2
    again = bench.call('export', output=small, more=shlex.join(words[words.index('--verify') :]), **trained)
    assert again.status == 0 and 'PROVEN' in again.out, again.out
