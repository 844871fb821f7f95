"""Images in, pictures with detections out: the library behind the runners in tools/onnx.

Needs numpy, OpenCV and ONNX Runtime only; all that it has to know about the model is in the file's metadata.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import EngineError, Mm2OnnxError, ModelFileError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
    from mmdeploy_ext.inputs.pictures import PreparedImage
    from mmdeploy_ext.runtime.detections import Detections, Instances

RUNTIMES = {
    'atss': 'mmdeploy_ext.runtime.atss.model',
    'rtdetr': 'mmdeploy_ext.runtime.rtdetr.model',
    'solo': 'mmdeploy_ext.runtime.solo.model',
}
"""Family -> the module whose `detections(metadata, outputs, feeds)` finishes what its graphs leave out."""
RUNNERS = {
    'full': 'tools/onnx/onnx_with_postprocess.py',
    'decode': 'tools/onnx/onnx_no_topk_nms.py',
    'raw': 'tools/onnx/onnx_no_topk_nms.py',
}
FAMILY_RUNNERS = {
    'atss': RUNNERS['full'],
    'rtdetr': 'tools/onnx/onnx_rtdetr.py',
    'solo': 'tools/onnx/onnx_solo.py',
}
DEFAULT_OUT = Path('work_dirs/onnx_results')
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png')
OTHER_SUFFIXES = (
    *('.gif', '.bmp', '.tif', '.tiff', '.webp', '.avif', '.heic', '.jp2', '.ppm', '.pgm', '.svg', '.pdf'),
    *('.mp4', '.avi', '.mkv', '.mov', '.json'),
)
"""Names of files, not of folders, that are not written here."""
BAR_WIDTH = 30


def main(
    argv: Sequence[str] | None,
    forms: tuple[str, ...],
    description: str = '',
    families: tuple[str, ...] = ('atss',),
) -> int:
    """Run a detector file on images.

    Args:
        argv: the command line; None means that of the process.
        forms: forms that this tool takes; another one is refused with the name of the tool for it.
        description: for `--help`.
        families: of files that this tool takes.

    Returns:
        The exit status.
    """
    return cli.run(lambda args: run_files(args, forms, families), make_parser(description), argv)


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return the options of the runners."""
    parser = cli.ArgumentParser(description=description)
    parser.add_argument('model', help='ONNX file written by tools/deployment/pytorch2onnx.py')
    parser.add_argument('images', nargs='+', help='image files or folders')
    cli.writes(
        parser.add_argument(
            '--out',
            type=Path,
            default=DEFAULT_OUT,
            metavar='PATH',
            help='folder for the pictures, which are named like the image with _det; or, for one '
            'image, a .jpg or .png file (default: %(default)s). Small images are enlarged '
            'by a whole factor to be legible; --json is in pixels of the image',
        ),
        '',
    )
    parser.add_argument(
        '--score-thr',
        type=float,
        default=0.3,
        metavar='S',
        help='draw and count boxes of at least this score, 0..1 (default: %(default)s)',
    )
    parser.add_argument('--json', metavar='FILE', help='write all detections, also those that are not drawn')
    parser.add_argument(
        '--providers',
        nargs='+',
        default=['CPUExecutionProvider'],
        metavar='NAME',
        help='execution providers in order of preference; one that is not there is an error',
    )
    parser.add_argument(
        '--threads',
        type=int,
        metavar='N',
        help="threads within an operator, 1 or more (default: ONNX Runtime's choice)",
    )
    cli.add_debug_option(parser)
    return parser


def run_files(args: argparse.Namespace, forms: tuple[str, ...], families: tuple[str, ...]) -> int:
    """Do what the options say: everything is looked at before the model is opened."""
    if not 0 <= args.score_thr <= 1:
        raise UsageError(f'--score-thr {args.score_thr}: expected a value in 0..1')
    if args.threads is not None and args.threads < 1:
        raise UsageError(f'--threads {args.threads}: expected 1 or more; without it ONNX Runtime chooses')
    try:
        importlib.import_module('onnxruntime')
        from mmdeploy_ext.core.files import check_writable, will_write, write_json
        from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
    except ImportError as error:
        raise EngineError(
            f'{error.name} is not installed; this tool needs: pip install numpy '
            f'opencv-python-headless onnxruntime'
        ) from error
    targets = plan_pictures(args.images, args.out)
    will_write('--out', targets.values())
    for target in (*targets.values(), *([args.json] if args.json else [])):
        check_writable(target)
    with OnnxRuntimeBackend(args.model, args.providers, args.threads or 0) as backend:
        check_file(args.model, backend.metadata, forms, families)
        start = time.perf_counter()
        entries = run_all(backend, targets, args.score_thr)
    if args.json:
        metadata = backend.metadata
        write_json(
            args.json,
            dict(
                model=args.model,
                family=metadata.family,
                form=metadata.form,
                classes=list(metadata.classes),
                images=entries,
            ),
        )
    if len(entries) > 1:
        seconds = time.perf_counter() - start
        drawn = sum(entry['drawn'] for entry in entries)
        print(f'{len(entries)} images, {drawn} detections, {seconds:.1f} s')
    return 0


def check_file(path: str, metadata: Metadata, forms: tuple[str, ...], families: tuple[str, ...]) -> None:
    """Refuse a file that this tool cannot finish.

    Raises:
        ModelFileError: unknown family, or a form that another tool takes.
    """
    if metadata.family not in families:
        other = f'; use {FAMILY_RUNNERS[metadata.family]} for it' if metadata.family in FAMILY_RUNNERS else ''
        raise ModelFileError(
            f'{path}: is a model of family {metadata.family!r}, expected {" or ".join(families)}{other}'
        )
    if metadata.form not in forms:
        other = f'; use {RUNNERS[metadata.form]} for it' if metadata.form in RUNNERS else ''
        raise ModelFileError(
            f'{path}: its post-processing form is {metadata.form!r}, expected {" or ".join(forms)}{other}'
        )
    check_picture_graph(path, metadata)
    if metadata.options.get('score_form') == 'product':
        print(
            'note: score_form=product: the threshold looks at class score times centerness, which keeps '
            'fewer boxes than the PyTorch model does',
            file=sys.stderr,
        )


def check_picture_graph(path: str, metadata: Metadata) -> None:
    """Refuse a file whose graph does not take one picture, or whose rule is not of one.

    Raises:
        ModelFileError: names the key.
    """
    from mmdeploy_ext.contract.metadata_entries import damaged
    from mmdeploy_ext.inputs.pictures import PreprocessRule

    first = metadata.spec.inputs[0]
    if len(first.axes) != 4 or first.axes[1] != 3 or not first.dtype.startswith('float'):
        said = f'inputs[0] is {first.dtype} {first.shape_text()}, expected pictures Bx3xHxW'
        raise damaged(path, 'spec', said)
    if not isinstance(metadata.preprocess, PreprocessRule):
        raise damaged(path, 'preprocess', 'is of rigs or sweeps, expected the rule of one picture')


def plan_pictures(inputs: Sequence[str], out: Path) -> dict[Path, Path]:
    """Return image -> picture to write; no two pictures and no picture and image share a name.

    Raises:
        UsageError: `out` names one file for several images, an image itself, or a kind of file that is not
            written.
    """
    from mmdeploy_ext.core.files import check_outputs
    from mmdeploy_ext.inputs.pictures import list_images

    if out.suffix.lower() in OTHER_SUFFIXES and not out.is_dir():
        raise UsageError(f'--out {out}: expected a folder, or a .jpg or .png file for one image')

    relative = {
        file: file.relative_to(path) if path.is_dir() else Path(file.name)
        for path in map(Path, inputs)
        for file in list_images([path])
    }
    if out.suffix.lower() in PICTURE_SUFFIXES and not out.is_dir():
        if len(relative) > 1:
            raise UsageError(f'--out {out}: is one file, for {len(relative)} images; give a folder')
        targets = dict.fromkeys(relative, out)
    else:
        targets = {}
        for file, name in relative.items():
            suffix = file.suffix.lower() if file.suffix.lower() in PICTURE_SUFFIXES else '.png'
            targets[file] = _free(out / name.parent, name.stem, suffix, set(targets.values()))
    check_outputs({'--out': targets.values()}, {'a picture': targets})
    return targets


def _free(folder: Path, stem: str, suffix: str, taken: set[Path]) -> Path:
    target, number = folder / f'{stem}_det{suffix}', 2
    while target in taken:
        target, number = folder / f'{stem}_det_{number}{suffix}', number + 1
    return target


def run_file(backend: OnnxRuntimeBackend, source: Path, target: Path, score_thr: float) -> dict[str, Any]:
    """Detect, draw and write one image; return its entry for the JSON file."""
    from mmdeploy_ext.core.files import atomic_path
    from mmdeploy_ext.inputs.pictures import read_image
    from mmdeploy_ext.runtime import draw
    from mmdeploy_ext.runtime.detections import Instances

    image = read_image(source)
    start = time.perf_counter()
    try:
        found = detect(backend, image)
    except Mm2OnnxError as error:
        raise type(error)(f'{source}: {error}') from error
    milliseconds = (time.perf_counter() - start) * 1000
    classes = backend.metadata.classes
    paint = draw.draw_instances if isinstance(found, Instances) else draw.draw_detections
    picture = paint(*draw.enlarged(image, found), classes, score_thr)
    encode = draw.encode_png if target.suffix.lower() == '.png' else draw.encode_jpeg
    with atomic_path(target) as temporary:
        temporary.write_bytes(encode(picture))
    return dict(
        image=str(source),
        picture=str(target),
        height=image.shape[0],
        width=image.shape[1],
        milliseconds=round(milliseconds, 2),
        drawn=len(found.above(score_thr)),
        detections=found.to_json(classes),
    )


def detect(backend: OnnxRuntimeBackend, image_bgr: np.ndarray) -> Detections | Instances:
    """Run one image through a file of any form.

    Args:
        backend: an active session.
        image_bgr: (h, w, 3) uint8.

    Returns:
        Detections in pixels of `image_bgr`, in descending score order.
    """
    from mmdeploy_ext.contract.metadata_entries import Facts

    metadata = backend.metadata
    runtime = importlib.import_module(RUNTIMES[metadata.family])
    feeds = make_feeds(prepare(metadata, image_bgr), metadata)
    found = backend.infer(backend.known(feeds))
    outputs = Facts(found, f'{backend.path}: the graph of mm2onnx.form {metadata.form!r}')
    return runtime.detections(metadata, outputs, feeds)[0]


def prepare(metadata: Metadata, image_bgr: np.ndarray) -> PreparedImage:
    """Resize, pad and normalise by the file's rule, to the size of a graph with a fixed shape."""
    height, width = metadata.spec.inputs[0].axes[2:]
    rule = metadata.preprocess
    if isinstance(height, int) and isinstance(width, int):
        rule = dataclasses.replace(rule, size=(height, width))
    return rule.apply(image_bgr)


def make_feeds(prepared: PreparedImage, metadata: Metadata) -> dict[str, np.ndarray]:
    """Return what graphs may take of one image, repeated where the batch is fixed."""
    import numpy as np

    image = metadata.spec.inputs[0]
    batch = image.axes[0]
    repeats = batch if isinstance(batch, int) else 1
    feeds = {
        image.name: prepared.tensor,
        'img_shape': np.asarray(prepared.img_shape, np.float32),
        'scale_factor': prepared.scale_factor,
        'orig_target_sizes': np.asarray(prepared.ori_shape[::-1], np.int64),
    }
    feeds = {name: np.stack([array] * repeats) for name, array in feeds.items()}
    return dict(feeds, ori_shape=np.asarray(prepared.ori_shape, np.int64))


def run_all(
    backend: OnnxRuntimeBackend, targets: Mapping[Path, Path], score_thr: float
) -> list[dict[str, Any]]:
    """Run the images, one printed line each, above a bar on stderr where that is a terminal."""
    total, entries = len(targets), []
    visible = total > 1 and sys.stderr.isatty()
    for done, (source, target) in enumerate(targets.items()):
        if visible:
            filled = BAR_WIDTH * done // total
            bar = '#' * filled + '.' * (BAR_WIDTH - filled)
            print(f'[{bar}] {done}/{total} ', end='', file=sys.stderr, flush=True)
        try:
            entry = run_file(backend, source, target, score_thr)
        finally:
            if visible:
                print('\r\x1b[K', end='', file=sys.stderr, flush=True)
        print(
            f'{source}: {entry["drawn"]} detection{"s" * (entry["drawn"] != 1)}, '
            f'{entry["milliseconds"]:.0f} ms -> {target}',
            flush=True,
        )
        entries.append(entry)
    return entries
