"""Calibration samples of a dense graph: images, camera frames, or outputs of the graphs before it.

Backbones use images of any moments; graphs with a memory run over frames and their inputs are recorded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.base.errors import DataError, ImageError, ModelFileError, UsageError
from mmdeploy_ext.base.files import read_json
from mmdeploy_ext.runtime.detect import BESIDE, has_runtime, make_feeds, opener, prepare, runtime_of
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.infos import INFOS, camera_names, find_file, read_frames, read_infos
from mmdeploy_ext.runtime.preprocess.cameras import prepare_views
from mmdeploy_ext.runtime.preprocess.pictures import list_images, read_image
from mmdeploy_ext.runtime.preprocess.points import PointRule
from mmdeploy_ext.runtime.sweeps import Sweeps, evenly
from mmdeploy_ext.spec.metadata import Metadata
from mmdeploy_ext.spec.preparation import CAMERAS, MultiViewRule, PreprocessRule

IMAGE_INPUT = 'img'
SAMPLES = 'samples'
"""nuScenes' folder with the camera folders."""
MAX_MISSING_NAMES = 3
Frame = tuple[Path, ...]
"""One image per camera, in network input order."""


@dataclasses.dataclass(frozen=True)
class CalibrationSet:
    """A graph's feeds, one item at a time.

    Attributes:
        items: image file, files of a frame, or other arguments of `feeds`.
        feeds: item -> input name -> array.
        title: name of the items in reports.
        heads: the graph ends in heads; their last layers stay float.
    """

    items: list[Any]
    feeds: Callable[[Any], dict[str, np.ndarray]]
    title: str = 'images'
    heads: bool = True

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return map(self.feeds, self.items)

    def subset(self, number: int) -> CalibrationSet:
        """At most `number` items, spread evenly; 0: all."""
        return dataclasses.replace(self, items=evenly(self.items, number))


def calibration_set(
    path: Path, metadata: Metadata, source: str | Path, root: str | Path | None, limit: int
) -> CalibrationSet:
    """Calibration samples of a graph of the model file at `path`.

    `source`: see `image_files` and `camera_frames`, or sweeps or infos. `root`: folder of files named in
    annotations or infos. `limit`: number of samples, spread evenly; 0: all.
    """
    if metadata.form == quantised_graph(metadata.family):
        model = opener(metadata)(path.parent)
        items, sample = READERS[metadata.samples](model, metadata, source, root, limit)
        title = 'frames' if metadata.samples == 'fused' else metadata.samples
        return CalibrationSet(items, lambda item: model.feeds(sample(item)), title)
    if isinstance(metadata.preprocess, MultiViewRule):
        calibration_frames(metadata, [])  # check the graph before searching files
        frames = evenly(camera_frames(source, metadata.preprocess, root), limit)
        return calibration_frames(metadata, frames)
    if root is not None and Path(source).suffix.lower() != '.json':
        raise UsageError(f'--data-root {root}: requires annotations (.json) or infos; {source} is neither')
    return calibration_images(metadata, evenly(image_files(source, root), limit))


def quantised_graph(family: str) -> str:
    """The graph that a family's runtime feeds (`QUANTISED`), or '' for the image graph."""
    return getattr(runtime_of(family), 'QUANTISED', '') if has_runtime(family) else ''


# ---------------------------------------------------------------- single images


def calibration_images(metadata: Metadata, paths: list[Path]) -> CalibrationSet:
    """Images prepared by the file's rule, read lazily."""
    if not isinstance(metadata.preprocess, PreprocessRule):
        raise ModelFileError(
            f'a model of family {metadata.family!r} has more inputs than one image; expected a model of '
            'one image, or the image backbone of a model of several cameras'
        )
    input_names = metadata.spec.input_names
    if foreign := [name for name in input_names[1:] if name not in BESIDE]:
        raise ModelFileError(
            f'the graph has the input {foreign[0]!r}, which images cannot fill; quantise the image graph'
        )

    def feeds(path: Path) -> dict[str, np.ndarray]:
        arrays = metadata.spec.rounded(
            make_feeds(prepare(metadata, read_image(path, metadata.preprocess.color_type)), metadata)
        )
        return {name: array for name, array in arrays.items() if name in input_names}

    return CalibrationSet(paths, feeds)


def image_files(source: str | Path, root: str | Path | None = None) -> list[Path]:
    """Images of a file, folder, or COCO's annotations (.json).

    Without `root`, images are beside the annotations; for `DATA/annotations/instances_X.json` also in
    `DATA/X`, `DATA/images` and `DATA`.
    """
    source = Path(source)
    if source.suffix.lower() != '.json':
        return list_images([source])
    content = read_json(source)
    entries = content.get('images') if isinstance(content, dict) else ()
    entries = entries if isinstance(entries, list) else ()
    names = [entry.get('file_name') for entry in entries if isinstance(entry, dict)]
    if not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{source}: lists no images; expected annotations in COCO's format")
    if root is not None:
        folder = Path(root)
    else:  # `annotations/instances_X.json` describes images in `X`
        data_root = source.parent.parent
        split = data_root / source.stem.rpartition('_')[2]
        folders = (source.parent, split, data_root / 'images', data_root)
        folder = next((folder for folder in folders if (folder / names[0]).is_file()), split)
    paths = [folder / name for name in names]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f'{source}: {len(missing)} of {len(names)} images are missing, e.g. '
            f'{", ".join(missing[:MAX_MISSING_NAMES])}; pass their folder with --data-root'
        )
    return paths


# ---------------------------------------------------------------- frames of cameras


def calibration_frames(metadata: Metadata, frames: list[Frame]) -> CalibrationSet:
    """Frames as feeds {'img': (N, 3, H, W)} or (1, N, 3, H, W); ModelFileError: it has more inputs."""
    if metadata.spec.input_names != [IMAGE_INPUT]:
        raise ModelFileError(
            f'{metadata.form!r} of family {metadata.family!r} has the inputs '
            f'{", ".join(metadata.spec.input_names[:4])}; only the image backbone of a model with several '
            'cameras can be calibrated: pass the folder of a deploy export, or its extract_img_feat.onnx'
        )
    pictures = metadata.spec.tensor(IMAGE_INPUT)

    def feeds(frame: Frame) -> dict[str, np.ndarray]:
        images = prepare_views(metadata.preprocess, [read_image(path) for path in frame])
        return {IMAGE_INPUT: images.astype(pictures.dtype).reshape(pictures.axes)}

    return CalibrationSet(frames, feeds, 'frames', heads=False)


def camera_frames(source: str | Path, rule: MultiViewRule, root: str | Path | None = None) -> list[Frame]:
    """Frames of mmdet3d's infos with `cams`, or of a folder per camera, in a rule's camera order.

    In folders the n-th frame has the n-th image of each camera. `root`: folder of the data set.
    """
    source = Path(source)
    if source.suffix in INFOS and source.is_file():
        return [
            tuple(
                find_file(info['cams'][name]['data_path'], source, root, 'picture')
                for name in camera_names(info, rule, source)
            )
            for info in read_infos(source)
        ]
    if not source.is_dir():
        raise ImageError(
            f'{source}: no such folder or infos; this model has {rule.num_cameras} cameras: pass infos '
            '(.pkl) or a folder with one folder of images per camera'
        )
    cameras = rule.cameras or CAMERAS[: rule.num_cameras]
    for parent in (source, source / SAMPLES):
        if all((parent / camera).is_dir() for camera in cameras):
            pictures = [list_images([parent / camera]) for camera in cameras]
            # some cameras of a drive may have an extra image
            return list(zip(*pictures, strict=False))
    raise ImageError(
        f'{source}: has no folders {", ".join(cameras)} (one per camera); expected them in it or in '
        f'{SAMPLES}/'
    )


# ---------------------------------------------------------------- samples of a folder of graphs


def _read_sweeps(
    model: Any, metadata: Metadata, source: str | Path, root: str | Path | None, limit: int
) -> tuple[list[Any], Callable[[Any], Sweep]]:
    columns = tuple(range(model.width))
    sweeps = Sweeps(source, lambda points: (points, points), PointRule(model.width, columns), root, limit)
    if voxels := [item for item in sweeps.items if isinstance(item, Path) and item.suffix == '.npz']:
        raise DataError(f'{voxels[0]}: has voxels, the model expects points; pass sweeps (.bin, .npy)')
    return sweeps.items, lambda item: Sweep(sweeps.points(item), sweeps.name(item))


def _read_frames(
    model: Any, metadata: Metadata, source: str | Path, root: str | Path | None, limit: int
) -> tuple[list[Any], Callable[[Any], Any]]:
    rule = getattr(metadata.preprocess, 'views', metadata.preprocess)
    if rule is None:
        raise ModelFileError(
            f'family {metadata.family!r} uses LiDAR only, and infos of frames are for models with '
            'cameras; pass sweeps'
        )
    frames = evenly(read_frames(source, rule, root), limit)
    return frames, lambda frame: model.moment(frame.read_pictures(), frame, root)


READERS = dict(sweeps=_read_sweeps, fused=_read_frames, frames=_read_frames)
"""`Metadata.samples` -> (open model, arguments of `calibration_set` from `metadata` on) -> items and their
reader."""
