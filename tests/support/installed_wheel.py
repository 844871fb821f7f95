"""An environment that holds the wheel and the distributions that it asks for, and nothing else."""

import email
import importlib.metadata
import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import tomllib
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = ('mmdeploy_ext', 'pyproject.toml', 'README.md')


class Command:
    """`mm2onnx` of a fresh environment.

    Attributes:
        folder: working directory of what is run.
        site: its packages.
        env: variables.
    """

    def __init__(self, folder, extra=''):
        """Build the wheel, install it with an extra, and give it what it asks for out of this environment."""
        self.folder, python = folder / 'elsewhere', folder / 'env/bin/python'
        self.folder.mkdir()
        venv.create(folder / 'env', symlinks=True)
        self.site = next((folder / 'env').glob('lib/python*/site-packages'))
        pip('--python', python, 'install', '--no-deps', '--no-index', '--no-compile', build_wheel(folder))
        text = next(self.site.glob('mm2onnx-*.dist-info/METADATA')).read_text(encoding='utf-8')
        left, done = needed(email.message_from_string(text).get_all('Requires-Dist'), extra), set()
        while left:
            name = left.pop()
            done.add(name)
            link_distribution(name, self.site)
            left |= needed(importlib.metadata.requires(name) or ()) - done
        self.env = {name: value for name, value in os.environ.items() if not name.startswith('PYTHON')}
        self.env.update(PATH=f'{python.parent}:{self.env["PATH"]}', OMP_NUM_THREADS='1')

    def __call__(self, *words, **variables):
        """Run it; return the completed process."""
        words, env = ['mm2onnx', *map(str, words)], {**self.env, **variables}
        return subprocess.run(words, cwd=self.folder, env=env, capture_output=True, text=True, timeout=600)


def build_wheel(folder):
    """Build the wheel from a copy, in which no older build is; return its path."""
    for name in (*SOURCES, *itertools.chain(*data_files().values())):
        if (REPOSITORY / name).is_dir():
            ignored = shutil.ignore_patterns('__pycache__')
            shutil.copytree(REPOSITORY / name, folder / 'source' / name, ignore=ignored)
        else:
            (folder / 'source' / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / 'source' / name)
    pip('wheel', '--no-deps', '--no-build-isolation', '-w', folder, folder / 'source')
    return next(folder.glob('*.whl'))


def data_files():
    """Return folder below the environment -> files of the repository, of what `mm2onnx demo` exports."""
    text = (REPOSITORY / 'pyproject.toml').read_text(encoding='utf-8')
    return tomllib.loads(text)['tool']['setuptools']['data-files']


def pip(*words):
    words = [sys.executable, '-m', 'pip', '-q', *map(str, words)]
    subprocess.run(words, check=True, capture_output=True, text=True, cwd='/')


def needed(requirements, extra=''):
    """Return the names of requirements that hold with an extra, for this Python."""
    wanted = map(Requirement, requirements)
    return {
        entry.name for entry in wanted if entry.marker is None or entry.marker.evaluate(dict(extra=extra))
    }


def link_distribution(name, site):
    """Put a distribution of this environment into another one; symbolic links would lead OpenCV back here."""
    for path in importlib.metadata.distribution(name).files:
        if path.parts[0] != '..' and '__pycache__' not in path.parts and not (site / path).exists():
            (site / path).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path.locate(), site / path)
            except OSError:  # another file system
                shutil.copy2(path.locate(), site / path)


def add_stack(command):
    """Let the environment of a command have PyTorch and OpenMMLab, which are read from this one.

    Packages of this repository that are installed here are left out.
    """
    folder = command.site.parents[3] / 'stack'
    folder.mkdir()
    for path in Path(sysconfig.get_paths()['purelib']).iterdir():
        if not path.name.startswith(('mm2onnx', '__editable__')):
            (folder / path.name).symlink_to(path)
    (command.site / 'stack.pth').write_text(f'{folder}\n')


def install_source(command, source, folder):
    """Install a package of this repository into the environment of a command."""
    shutil.copytree(source, folder / 'package')
    pip('wheel', '--no-deps', '--no-build-isolation', '-w', folder / 'wheels', folder / 'package')
    python, (wheel,) = command.site.parents[2] / 'bin/python', (folder / 'wheels').glob('*.whl')
    pip('--python', python, 'install', '--no-deps', '--no-index', '--no-compile', wheel)
