"""A good command line of each tool, one part of which a test makes bad, and the check of its refusal."""

import contextlib
import importlib
import json
import shlex
from pathlib import Path

import cv2

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / 'configs/demo/atss_toy.py'
CHECKPOINT = REPOSITORY / 'demo/checkpoints/atss_toy.pth'
MODEL = REPOSITORY / 'demo/atss_toy.onnx'
PICTURE = REPOSITORY / 'demo/toy.jpg'
LINES = dict(
    export='{config} {checkpoint} --output-file {output} {more}',
    verify='{config} {checkpoint} {onnx} {more}',
    test='{config} {checkpoint} --work-dir {out} --eval bbox --cfg-options {data} {more}',
    run='{onnx} {image} --out {out} {more}',
)
CLASSES = ('disc', 'square', 'triangle', 'star', 'ring', 'cross')


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every name below a folder and the bytes of the files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


def refused(capture, main, *words: object, status: int = 2) -> str:
    """Run the `main` of a tool, expect an exit status and one `error:` line, and return the line."""
    capture.readouterr()
    try:
        found = main(list(map(str, words)))
    except SystemExit as left:
        found = left.code
    text = capture.readouterr().err
    assert found == status, text
    (error,) = (line for line in text.splitlines() if line.startswith('error: '))
    return error


class Bench:
    """A folder with an earlier export in `out`, and the tools run in this process."""

    def __init__(self, folder: Path, capfd) -> None:
        self.folder, self.out, self.capfd = folder, folder / 'out', capfd
        self.out.mkdir()
        (self.out / 'm.onnx').write_bytes(b'an earlier export')

    def data(self, **tables: list) -> None:
        """Make a COCO set of one picture; `tables` replace those of its annotation file."""
        (self.folder / 'data').mkdir()
        cv2.imwrite(str(self.folder / 'data/1.png'), cv2.imread(str(PICTURE))[:96, :128])
        content = dict(
            images=[dict(id=1, file_name='1.png', height=96, width=128)],
            annotations=[dict(id=1, image_id=1, category_id=1, bbox=[4, 4, 40, 40], area=1600, iscrowd=0)],
            categories=[dict(id=index + 1, name=name) for index, name in enumerate(CLASSES)],
        )
        (self.folder / 'data/instances.json').write_text(json.dumps({**content, **tables}))

    def call(self, tool: str, **options: object) -> tuple[int, str, str]:
        """Run a tool; returns its exit status, stdout and stderr."""
        data = dict(ann_file=self.folder / 'data/instances.json', img_prefix=self.folder / 'data')
        words = ' '.join(f'data.test.{key}={value}' for key, value in data.items())
        parts = dict(config=CONFIG, checkpoint=CHECKPOINT, onnx=MODEL, image=PICTURE, more='')
        parts.update(output=self.out / 'm.onnx', out=self.out, data=f'{words} data.workers_per_gpu=0')
        argv = shlex.split(LINES[tool].format(**{**parts, **options}))
        self.capfd.readouterr()
        status = None
        with contextlib.suppress(SystemExit):
            status = importlib.import_module(f'mmdeploy_ext.cli.{tool}_app').main(argv)
        out, err = self.capfd.readouterr()
        return 2 if status is None else status, out, err

    def refuses(self, tool: str, *words: str, status: int = 2, **options: object) -> None:
        """Assert one `error:` line that has all `words`, the exit status, and no changed file."""
        before = snapshot(self.folder)
        found, _, err = self.call(tool, **options)
        assert err.startswith('error: ') and err.count('\n') == 1, err
        assert found == status, err
        assert not [word for word in words if word not in err], err
        assert snapshot(self.folder) == before
