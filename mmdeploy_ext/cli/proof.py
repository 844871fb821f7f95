"""Proofs of all tools: samples of the model's kind, the levels, table, JSON file, report, exit status."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata_entries import read_entry
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.core.files import check_writable, write_json
from mmdeploy_ext.families.base import DETECTOR, FAMILIES, Family, find_family
from mmdeploy_ext.proving.tasks import task_module

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Iterable, Sequence

    import numpy as np

    from mmdeploy_ext.exporting.deployment import Deployment
    from mmdeploy_ext.proving.results import Pair

DEFAULT_IMAGE = Path(__file__).resolve().parents[2] / 'demo' / 'toy.jpg'
MAX_IMAGES = 8
PICTURE_WIDTH = 1100


def picture_files(paths: Iterable[str | Path], most: int = MAX_IMAGES) -> list[Path]:
    """Return the files of images and folders of images, at most `most`."""
    from mmdeploy_ext.preprocess.pictures import list_images

    files = list_images(paths)
    if len(files) > most > 1:
        print(f'{len(files)} images were given, the first {most} are used')
    return files[:most]


def read_images(paths: Iterable[str | Path], most: int = MAX_IMAGES) -> list[tuple[str, np.ndarray]]:
    """Read images and folders of images: (file name, BGR picture), at most `most`."""
    from mmdeploy_ext.preprocess.pictures import read_image

    return [(file.name, read_image(file)) for file in picture_files(paths, most)]


def check_report_targets(args: argparse.Namespace) -> None:
    """Refuse a folder of a report that cannot be written, before the weights load."""
    if args.report:
        check_writable(Path(args.report) / 'report.html')


class Samples:
    """What a proof runs on: pictures are read at once, frames and sweeps when there is a model.

    Attributes:
        files: of the pictures.
        pictures: (file name, BGR picture).
    """

    def __init__(
        self, family: Family, given: Sequence[str], frames: int | None = None, option: str = '--images'
    ) -> None:
        """Refuse invalid samples, before the weights load.

        Args:
            family: whose samples they are.
            given: files and folders; none takes those of the data set, generated ones, or the toy's picture.
            frames: of --frames.
            option: that gave the files, for messages.
        """
        from mmdeploy_ext.proving.inputs.samples import check_given

        pictures = family.samples == 'images'
        self.given = given
        self.files = picture_files(given or [DEFAULT_IMAGE]) if pictures else []
        self.pictures = read_images(self.files)
        self.count = 0 if pictures else check_given(family, given, frames, option)

    def of(self, deployment: Deployment) -> tuple[Collection[Any], str]:
        """Return the samples, and where frames and sweeps are from."""
        from mmdeploy_ext.proving.inputs.samples import proof_samples

        return (self.pictures, '') if self.pictures else proof_samples(deployment, self.count, self.given)


def run_proof(
    deployment: Deployment,
    paths: Sequence[str],
    samples: tuple[Collection[Any], str],
    args: argparse.Namespace,
    engine: dict[str, Any],
    metrics: Iterable[Any] = (),
    **claims: Any,
) -> int:
    """Prove files, write JSON and report, print the table.

    Args:
        deployment: the config and checkpoint.
        paths: of the files.
        samples: of the model's kind, and where they are from.
        args: of the command line.
        engine: options of `build_backend`.
        metrics: rows of level 5.
        claims: `edited` and `asked` of `ladder.prove`, and what the kind takes.

    Returns:
        0 proven (float16: within its bars), 1 not.
    """
    from mmdeploy_ext.proving.ladder import prove
    from mmdeploy_ext.proving.views.table import print_verdict

    chosen, origin = samples
    verdict, pictures = prove(deployment, paths, chosen, engine, **claims)
    verdict.notes += [f'frames: {origin}'] * bool(origin)
    verdict.metrics.extend(metrics)
    written = write_proof(verdict, pictures, deployment, args)
    print_verdict(verdict, cli.stdout())
    for line in written:
        print(line)
    return 0 if verdict.passed else 1


def family_of(cfg: Any, path: str) -> Family:
    """Return the family of a file: that which it names, where it knows the config, else the closest one."""
    from mmdeploy_ext.graph.io.files import read

    named = None
    if Path(path).is_file() and cfg.get('model'):
        with contextlib.suppress(ModelFileError):  # whoever reads the whole file says what is wrong with it
            props = {entry.key: entry.value for entry in read(path).metadata_props}
            named = FAMILIES.get(read_entry(props, 'family', path))
    return named if named is not None and named.claims(cfg) else find_family(cfg, DETECTOR)


def write_proof(
    verdict: Any, pictures: Sequence[Any], deployment: Deployment, args: argparse.Namespace
) -> list[str]:
    """Write a verdict to --json and --report; returns lines that say where, to print after the table."""
    if args.json:
        write_json(args.json, verdict.to_json())
    if not args.report:
        return []
    from mmdeploy_ext.proving.views.report import write_report
    from mmdeploy_ext.runtime.draw import write_picture

    classes = getattr(deployment, 'classes', ())
    lines = [f'report: {write_report(verdict, pictures, classes, Path(args.report))}']
    if pictures and deployment.family.task != 'bev':
        picture = Path(args.report, 'detections.png')
        write_picture(picture, draw_pairs(pictures, deployment))
        lines.append(f'picture: {picture}')
    return lines


def draw_pairs(pictures: Sequence[Pair], deployment: Deployment) -> np.ndarray:
    """Draw both engines' detections of up to four images, one image per row."""
    import cv2
    import numpy as np

    chosen = list({pair.title.split(',')[0]: pair for pair in pictures}.values())[:4]
    task, rows = task_module(deployment.family.task), []
    for pair in chosen:
        row = task.draw_pair(task.fit_pair(pair), deployment.classes)
        size = PICTURE_WIDTH, round(row.shape[0] * PICTURE_WIDTH / row.shape[1])
        rows.append(cv2.resize(row, size, interpolation=cv2.INTER_AREA))
    return np.concatenate(rows)
