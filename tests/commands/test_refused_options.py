"""Options that a kind of model does not have are refused by the name that was typed."""

import pytest

from mmdeploy_ext.cli import benchmark_app, export_app, test_app, verify_app
from mmdeploy_ext.cli.lint_app import main as lint
from mmdeploy_ext.cli.options import refuse_options
from mmdeploy_ext.core.errors import UsageError
from toy_atss import REPO

ATSS, STREAM, LIDAR = (
    str(REPO / path)
    for path in (
        'configs/demo/atss_toy.py',
        'projects/configs/StreamPETR/stream_petr_toy.py',
        'projects/configs/BEVFusion/centerpoint_toy.py',
    )
)
UNREAD = str(REPO / 'README.md')
"""No checkpoint: what reads it says so instead of what is expected."""


def register():
    import mmdeploy_ext.families.mmdet3d_plugin
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401


def refusal(main, words, capsys):
    capsys.readouterr()
    status = main([str(word) for word in words])
    lines = capsys.readouterr().err.splitlines()
    assert status == 2 and len(lines) == 1, lines
    return lines[0]


GRAPH_OPTIONS = (
    '--max-candidates 0',
    '--max-candidates 5',
    '--layout fork',
    '--no-fuse',
    '--grid-sample gather',
    '--dynamic-batch',
    '--score-form product',
)


@pytest.mark.parametrize('words', GRAPH_OPTIONS)
@pytest.mark.parametrize(('config', 'name'), [(STREAM, 'streampetr'), (LIDAR, 'centerpoint')])
def test_graph_options_of_single_images_are_refused_for_models_of_frames(
    config, name, words, tmp_path, capsys
):
    argv = [config, UNREAD, '--output-file', tmp_path / 'x', *words.split()]
    line = refusal(export_app.main, argv, capsys)
    assert line.startswith(f'error: {words}: family {name!r} has no such option; '), line
    assert "the config's; " in line and line.endswith((' has it', ' have it'))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    'words', ['--layout fork', '--no-fuse', '--grid-sample gather', '--dynamic-batch', '--contract deploy']
)
def test_graph_options_of_other_families_are_refused_for_atss(words, tmp_path, capsys):
    line = refusal(export_app.main, [ATSS, UNREAD, '--output-file', tmp_path / 'x', *words.split()], capsys)
    assert line.startswith(f'error: {words.split()[0]}') and ('no such option' in line or 'goes with' in line)


@pytest.mark.parametrize('config', [ATSS, STREAM])
@pytest.mark.parametrize(
    'words',
    ['--engine openvino', '--threads 2', '--providers CPUExecutionProvider'],
)
def test_engine_options_without_a_proof_are_refused(config, words, tmp_path, capsys):
    if 'openvino' in words:
        pytest.importorskip('openvino', reason='optional: pip install openvino')
    line = refusal(export_app.main, [config, UNREAD, '--output-file', tmp_path / 'x', *words.split()], capsys)
    assert line.startswith(f'error: {words.split()[0]}: goes with --verify'), line


@pytest.mark.parametrize('words', ['--show-score-thr 0.5', '--show-dir x'])
def test_pictures_of_the_image_test_loop_are_refused_for_models_of_frames(words, tmp_path, capsys):
    argv = [STREAM.replace('.py', '_pth.py'), UNREAD, '--eval', 'bbox', '--work-dir', tmp_path / 'w']
    line = refusal(test_app.main, [*argv, *words.split()], capsys)
    assert line.startswith(f'error: {words.split()[0]}: '), line


@pytest.mark.parametrize(
    ('config', 'setting', 'expected'),
    [
        (LIDAR, 'memory=reset', "unknown keys ['memory']"),
        (LIDAR, 'max_candidates=5', "unknown keys ['max_candidates']"),
        (STREAM, 'grid_sample=gather', "unknown keys ['grid_sample']"),
    ],
)
def test_backend_config_keys_that_a_family_does_not_have_are_refused(
    config, setting, expected, tmp_path, capsys
):
    argv = [config.replace('.py', '_onnx.py'), UNREAD, '--eval', 'bbox', '--work-dir', tmp_path / 'w']
    line = refusal(test_app.main, [*argv, '--cfg-options', f'backend_config.{setting}'], capsys)
    assert expected in line


@pytest.mark.parametrize(
    'words', ['--postprocess raw', '--shape 64', '--dynamic-export', '--input-img x.jpg']
)
def test_lint_refuses_image_options_for_models_of_frames(words, capsys):
    line = refusal(lint, [STREAM, UNREAD, *words.split()], capsys)
    assert line.startswith(f'error: {words.split()[0]}: streaming and LiDAR models do not have it'), line


@pytest.mark.parametrize(
    ('config', 'words', 'name'),
    [
        (STREAM, '--fuse-conv-bn', '--fuse-conv-bn'),
        (STREAM, '--batch-size 2', '--samples-per-gpu/--batch-size'),
        (LIDAR, '--shape 64', '--shape'),
        (LIDAR, '--voxels 9 --device cuda', '--device'),
        (ATSS, f'--sweep {__file__}', '--sweep'),
        (STREAM, f'--sweep {__file__}', '--sweep'),
        (ATSS, '--engines onnxruntime --fuse-conv-bn', '--fuse-conv-bn'),
        (ATSS, '--engines torch --onnx m.onnx', '--onnx m.onnx'),
        (STREAM, '--engines torch --onnx folder', '--onnx folder'),
        (LIDAR, '--engines torch --onnx m.onnx', '--onnx m.onnx'),
    ],
)
def test_benchmark_options_without_an_effect_are_refused(config, words, name, capsys):
    line = refusal(benchmark_app.main, [config, UNREAD, *words.split()], capsys)
    assert line.startswith(f'error: {name}: '), line


def test_a_switch_and_an_alias_are_named_as_they_are_typed():
    parser = export_app.build_parser()
    args = parser.parse_args(['c.py', 'c.pth', '--no-fuse'])
    with pytest.raises(UsageError, match=r'^--no-fuse: why$'):
        refuse_options(args, parser, ['fuse'], 'why')
    parser.set_defaults(fuse=False)
    args = parser.parse_args(['c.py', 'c.pth', '--fuse'])
    with pytest.raises(UsageError, match=r'^--fuse: why$'):
        refuse_options(args, parser, ['fuse'], 'why')


def test_a_proof_refuses_a_form_that_no_export_has(capsys):
    with pytest.raises(SystemExit) as refused:
        verify_app.main(['c.py', 'c.pth', 'm.onnx', '--postprocess', 'half'])
    assert refused.value.code == 2 and "invalid choice: 'half'" in capsys.readouterr().err


def test_a_provider_that_is_not_here_is_refused_before_the_proof(capsys):
    words = [ATSS, 'demo/checkpoints/atss_toy.pth', 'demo/atss_toy.onnx', '--providers', 'NoSuchProvider']
    line = refusal(verify_app.main, words, capsys)
    assert 'NoSuchProvider' in line and 'CPUExecutionProvider' in line
