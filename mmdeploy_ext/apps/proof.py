"""What `pytorch2onnx.py --verify` and `verify.py` share: run the ladder, print, write, exit status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core import cli
from mmdeploy_ext.core.files import check_writable, write_json

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Sequence

    import numpy as np

    from mmdeploy_ext.deploy.deployment import Deployment
    from mmdeploy_ext.proof.verdict import PicturePair

DEFAULT_IMAGE = Path(__file__).resolve().parents[2] / 'demo' / 'toy.jpg'
MAX_IMAGES = 8
PICTURE_WIDTH = 1100


def read_images(paths: Iterable[str | Path], most: int = MAX_IMAGES) -> list[tuple[str, np.ndarray]]:
    """Read images and folders of images: (file name, BGR picture), at most `most`.

    Raises:
        ImageError: a path that is no image.
    """
    from mmdeploy_ext.inputs.pictures import list_images, read_image

    found = list_images(paths)
    files = found[:most]
    if len(found) > most > 1:
        print(f'{len(found)} images were given, the first {most} are used')
    return [(file.name, read_image(file)) for file in files]


def check_report_targets(args: argparse.Namespace) -> None:
    """Refuse a folder of a report that cannot be written, before the weights load."""
    if args.report:
        check_writable(Path(args.report) / 'report.html')


def run_proof(
    deployment: Deployment,
    path: str,
    images: list[tuple[str, np.ndarray]],
    args: argparse.Namespace,
    engine: dict[str, Any],
    metrics: Iterable[Any] = (),
    **claims: Any,
) -> int:
    """Prove `path`, write JSON and report, print the table.

    Args:
        deployment: the config and checkpoint.
        path: the file.
        images: (title, BGR picture); the first is the traced one.
        args: of the command line.
        engine: options of `build_backend`.
        metrics: rows of level 5.
        claims: `edited` and `asked` of `ladder.prove`.

    Returns:
        0 proven (float16: within its bars), 1 not.
    """
    from mmdeploy_ext.proof.ladder import prove
    from mmdeploy_ext.proof.views.table import print_verdict

    verdict, pictures = prove(deployment, path, images, **engine, **claims)
    verdict.metrics.extend(metrics)
    written = write_proof(verdict, pictures, deployment, args)
    print_verdict(verdict, cli.stdout())
    for line in written:
        print(line)
    return 0 if verdict.passed else 1


def write_proof(
    verdict: Any, pictures: Sequence[Any], deployment: Deployment, args: argparse.Namespace
) -> list[str]:
    """Write a verdict to --json and --report; returns lines that say where, to print after the table."""
    if args.json:
        write_json(args.json, verdict.to_json())
    if not args.report:
        return []
    from mmdeploy_ext.proof.views.report import write_report

    lines = [f'report: {write_report(verdict, pictures, deployment.classes, Path(args.report))}']
    if pictures:
        picture = write_picture(pictures, deployment, Path(args.report) / 'detections.png')
        lines.append(f'picture: {picture}')
    return lines


def write_picture(pictures: Sequence[PicturePair], deployment: Deployment, path: Path) -> Path:
    """Draw both engines' detections of up to four images, one image per row.

    Args:
        pictures: of the proof.
        deployment: the model, for its task and class names.
        path: PNG file to write.
    """
    import cv2
    import numpy as np

    from mmdeploy_ext.core.files import atomic_path
    from mmdeploy_ext.proof.tasks import task_module
    from mmdeploy_ext.runtime.draw import encode_png

    chosen = list({pair.title.split(',')[0]: pair for pair in pictures}.values())[:4]
    task = task_module(deployment.family.task)
    rows = [task.draw_pair(task.fit_pair(pair), deployment.classes) for pair in chosen]
    rows = [
        cv2.resize(
            row,
            (PICTURE_WIDTH, round(row.shape[0] * PICTURE_WIDTH / row.shape[1])),
            interpolation=cv2.INTER_AREA,
        )
        for row in rows
    ]
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_png(np.concatenate(rows)))
    return path
