"""What the tests of bad input share: a good command of each tool, one thing of which a test makes bad."""

import contextlib
import dataclasses
import importlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import cv2
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = str(REPOSITORY / 'configs/demo/atss_toy.py')
CHECKPOINT = str(REPOSITORY / 'demo/checkpoints/atss_toy.pth')
SCRIPTS = {
    'export': 'tools/deployment/pytorch2onnx.py',
    'verify': 'tools/deployment/verify.py',
    'test': 'tools/test.py',
    'run': 'tools/onnx/onnx_with_postprocess.py',
}
APPS = {name: f'mmdeploy_ext.cli.{name}_app' for name in ('export', 'verify', 'test')}
CLASSES = ('disc', 'square', 'triangle', 'star', 'ring', 'cross')
NOBODY = 65534


def register():
    """Import the families, as the scripts do."""
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Return every name below a folder, hidden ones too, and the bytes of the files."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob('*')
    }


@dataclasses.dataclass
class Outcome:
    """How a command ended."""

    status: int
    out: str
    err: str


@contextlib.contextmanager
def shown_noise():
    """Collect what Python would print for a user beside the tool, whatever pytest does with it."""
    kept, ignored = sys.unraisablehook, []
    sys.unraisablehook = lambda entry: ignored.append(f'ignored in {entry.object}: {entry.exc_value}\n')
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter('default')
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter('ignore', category)
        try:
            yield ignored
        finally:
            sys.unraisablehook = kept
    ignored.extend(f'{entry.message}\n' for entry in shown)


@contextlib.contextmanager
def file_size_limit(limit: int | None):
    """Let writes beyond `limit` bytes of a file fail (EFBIG), as they fail on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft if limit is None else limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def drop_privileges():
    """Give up root's right to read and write everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


class Bench:
    """A folder of inputs, a folder of outputs with somebody's earlier files in it, and the tools."""

    def __init__(self, folder: Path, onnx_file: Path, capfd) -> None:
        self.folder = folder
        self.out = folder / 'out'
        self.out.mkdir()
        (self.out / 'm.onnx').write_bytes(b'an earlier export')
        (self.out / 'notes.txt').write_text('keep me')
        self.onnx_file = onnx_file
        self.capfd = capfd

    def arguments(self, tool: str, options: dict) -> list[str]:
        """Return a good command line of a tool, with some of it replaced.

        Args:
            tool: key of `SCRIPTS`.
            options: `config`, `checkpoint`, `onnx` and `image` replace these; `more` is appended.
        """
        paths = dict(config=CONFIG, checkpoint=CHECKPOINT, onnx=self.onnx_file, more='')
        paths.update(image=REPOSITORY / 'demo/toy.jpg', output=self.out / 'm.onnx')
        paths.update(options)
        line = dict(
            export='{config} {checkpoint} --output-file {output} --input-img {image} {more}',
            verify='{config} {checkpoint} {onnx} --images {image} --report {out} {more}',
            test='{config} {checkpoint} --work-dir {out} --eval bbox --cfg-options {data} {more}',
            run='{onnx} {image} --out {out} {more}',
        )[tool]
        return shlex.split(line.format(**paths, out=self.out, data=self.data_options()))

    def data_options(self, **replaced: object) -> str:
        """Return config overrides that give the toy config a small data set of its own."""
        values = dict(ann_file=self.folder / 'data/instances.json', img_prefix=self.folder / 'data/images')
        values.update(replaced)
        data = ' '.join(f'data.test.{key}={value}' for key, value in values.items())
        return f'{data} data.workers_per_gpu=0 data.persistent_workers=False'

    def data(self) -> None:
        """Make a data set of one picture."""
        (self.folder / 'data/images').mkdir(parents=True)
        image = cv2.imread(str(REPOSITORY / 'demo/toy.jpg'))[:96, :128]
        cv2.imwrite(str(self.folder / 'data/images/1.png'), image)
        self.annotate()

    def annotate(self, **replaced: list) -> None:
        """Write the annotation file of `data`, with some of its tables replaced."""
        tables = dict(
            images=[dict(id=1, file_name='1.png', height=96, width=128)],
            annotations=[dict(id=1, image_id=1, category_id=1, bbox=[4, 4, 40, 40], area=1600, iscrowd=0)],
            categories=[dict(id=index + 1, name=name) for index, name in enumerate(CLASSES)],
        )
        (self.folder / 'data/instances.json').write_text(json.dumps({**tables, **replaced}))

    def call(self, tool: str, limit: int | None = None, **options: object) -> Outcome:
        """Run a tool in this process; warnings that a user would see count as stderr."""
        argv = self.arguments(tool, options)
        self.capfd.readouterr()
        with file_size_limit(limit), shown_noise() as noise:
            try:
                status = self._main(tool)(argv)
            except SystemExit as left:
                status = left.code
        out, err = self.capfd.readouterr()
        return Outcome(status, out, err + ''.join(noise))

    @staticmethod
    def _main(tool: str):
        if tool in APPS:
            return importlib.import_module(APPS[tool]).main
        from mmdeploy_ext.cli import run_images

        return lambda argv: run_images.main(argv, 'with_postprocess')

    def spawn(self, tool: str, **options: object) -> Outcome:
        """Run a tool as its script, in a process of its own."""
        command = [sys.executable, REPOSITORY / SCRIPTS[tool], *self.arguments(tool, options)]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=120)
        return Outcome(done.returncode, done.stdout, done.stderr)

    def refuses(self, tool: str, *words: str, status=2, how='call', **options: object) -> Outcome:
        """Assert that a command ends with one `error:` line that has all `words`, and changes no file."""
        before = snapshot(self.folder)
        done = getattr(self, how)(tool, **options)
        assert done.err.startswith('error: ') and done.err.count('\n') == 1, done.err
        assert done.status == status, done.err
        absent = [word for word in words if word not in done.err]
        assert not absent, f'{absent} not in {done.err}'
        after = snapshot(self.folder)
        assert after == before, sorted(after.keys() ^ before.keys()) or 'contents changed'
        return done


@pytest.fixture(scope='session')
def toy_onnx(tmp_path_factory) -> Path:
    """Export the toy model once, with the tool."""
    path = tmp_path_factory.mktemp('toy') / 'toy.onnx'
    from mmdeploy_ext.cli import export_app

    assert export_app.main([CONFIG, CHECKPOINT, '--output-file', str(path), '--shape', '128']) == 0
    return path


@pytest.fixture
def bench(tmp_path, toy_onnx, capfd, monkeypatch) -> Bench:
    """Return the tools and their folders; the working directory is the folder."""
    monkeypatch.chdir(tmp_path)
    return Bench(tmp_path, toy_onnx, capfd)


@pytest.fixture
def limited_files():
    """Return a context manager in which files cannot grow beyond some bytes, as on a full disk."""
    return file_size_limit


@pytest.fixture
def contents():
    """Return what tells the names and bytes below a folder."""
    return snapshot


@pytest.fixture
def public_folder():
    """Return a folder that another user reaches, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def without_privileges():
    """Return a context manager in which file permissions count, also for root."""
    return drop_privileges
