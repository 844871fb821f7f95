"""The documentation: links resolve, options and targets of commands exist."""

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from mmdeploy_ext.core.commands import COMMANDS

REPOSITORY = Path(__file__).resolve().parents[2]
PLACES = (
    'README*.md',
    'CONTRIBUTING.md',
    'CHANGELOG.md',
    'docs/*.md',
    'docs/zh-CN/*.md',
    'mmdeploy_ext/families/*/README.md',
    'mmdeploy_ext/families/*/*/README.md',
    'projects/*/README.md',
    'demo/checkpoints/README.md',
)
PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix() for pattern in PLACES for path in REPOSITORY.glob(pattern)
)
PARSERS = {
    'tools/deployment/pytorch2onnx.py': 'mmdeploy_ext.cli.export_app',
    'tools/deployment/solo2onnx.py': 'mmdeploy_ext.cli.export_app',
    'tools/convert.py': 'mmdeploy_ext.cli.convert_app',
    'tools/onnx/onnx_rtdetr.py': 'mmdeploy_ext.cli.run_images',
    'tools/onnx/onnx_solo.py': 'mmdeploy_ext.cli.run_images',
    'tools/deployment/verify.py': 'mmdeploy_ext.cli.verify_app',
    'tools/deployment/export_scn.py': 'mmdeploy_ext.cli.export_scn_app',
    'tools/deployment/onnx2tensorrt.py': 'mmdeploy_ext.cli.tensorrt_app',
    'tools/deployment/quantize.py': 'mmdeploy_ext.cli.quantize_app',
    'tools/quantization/scn_ptq.py': 'mmdeploy_ext.cli.scn_ptq_app',
    'tools/onnx/graph.py': 'mmdeploy_ext.cli.graph_app',
    'tools/onnx/lint.py': 'mmdeploy_ext.cli.lint_app',
    'tools/analysis_tools/zoo.py': 'mmdeploy_ext.cli.zoo_app',
    'tools/analysis_tools/benchmark.py': 'mmdeploy_ext.cli.benchmark_app',
    'tools/analysis_tools/benchmark_all.py': 'docs._pages.benchmarks',
    'tools/test.py': 'mmdeploy_ext.cli.test_app',
    'tools/dist_test_pth.sh': 'mmdeploy_ext.cli.test_app',
    'tools/dist_test_onnx.sh': 'mmdeploy_ext.cli.test_app',
    'tools/slurm_test.sh': 'mmdeploy_ext.cli.test_app',
    'tools/onnx/onnx_with_postprocess.py': 'mmdeploy_ext.cli.run_images',
    'tools/onnx/onnx_no_topk_nms.py': 'mmdeploy_ext.cli.run_images',
    'tools/create_data.py': 'mmdeploy_ext.cli.infos_app',
    'tools/demo/lidar_demo.py': 'mmdeploy_ext.cli.lidar_demo_app',
    'tools/demo/fusion_video.py': 'mmdeploy_ext.cli.video_app',
    'tools/demo/streampetr_video.py': 'mmdeploy_ext.cli.video_app',
    **{f'mm2onnx {name}': entry.module for name, entry in COMMANDS.items()},
}


def text(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding='utf-8')


def blocks(page: str) -> list[tuple[str, str]]:
    """Return (language, content) of the fenced blocks."""
    return re.findall(r'^```(\w*)\n(.*?)^```', text(page), re.M | re.S)


def commands(page: str) -> list[list[str]]:
    """Return the words of every command of the shell blocks; blocks without a language are shell too."""
    content = '\n'.join(body for language, body in blocks(page) if language in ('', 'bash'))
    lines = content.replace('\\\n', ' ').splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.strip()]


def tool_of(words: list[str]) -> str | None:
    """Return the script of a command, or 'mm2onnx' with its sub-command."""
    if words[:1] == ['mm2onnx']:
        return ' '.join(words[:2])
    return next((word for word in words if word.startswith('tools/')), None)


def options_of(module: str) -> set[str]:
    """Return the options that a tool has."""
    if module.endswith('.py'):
        found = importlib.util.spec_from_file_location('tool', REPOSITORY / module)
        loaded = importlib.util.module_from_spec(found)
        found.loader.exec_module(loaded)
    else:
        loaded = importlib.import_module(module)
    parser = (
        loaded.build_parser()
        if hasattr(loaded, 'build_parser')
        else (loaded.make_parser('') if module.startswith('mmdeploy_ext') else loaded.make_parser())
    )
    subparsers = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    parsers = [parser, *(command for action in subparsers for command in action.choices.values())]
    return {option for found in parsers for option in found._option_string_actions}


@pytest.mark.parametrize('page', PAGES)
def test_relative_links_resolve(page):
    links = re.findall(r'\]\(([^)#]+)(?:#[^)]*)?\)', text(page))
    folder = (REPOSITORY / page).parent
    broken = [link for link in links if '://' not in link and not (folder / link).exists()]
    assert not broken


@pytest.mark.parametrize('page', PAGES)
def test_options_in_commands_exist(page):
    for words in commands(page):
        tool = tool_of(words)
        if tool in PARSERS:
            known = options_of(PARSERS[tool])
            used = {word.split('=')[0] for word in words if word.startswith('--')}
            assert used <= known, f'{" ".join(words)}: {sorted(used - known)}'


@pytest.mark.parametrize('page', PAGES)
def test_make_targets_in_commands_exist(page):
    makefile = text('Makefile')
    for target in re.findall(r'(?:^|`)make ([a-z0-9-]+)', text(page), re.M):
        assert re.search(rf'^{target}:', makefile, re.M), target


def test_pictures_are_small():
    pictures = list((REPOSITORY / 'docs/images').iterdir())
    assert pictures and all(picture.stat().st_size < 200_000 for picture in pictures)
