"""What calibrates a graph: images, frames of a camera rig, or what the graphs before it make of sensors.

Frames are infos or nuScenes' folders, prepared as the model file says. An image backbone looks at each
picture alone, so those of a frame need not be of one moment. Needs numpy and OpenCV only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.core.errors import DataError, ImageError, ModelFileError
from mmdeploy_ext.preprocess.cameras import CAMERAS, MultiViewRule
from mmdeploy_ext.preprocess.pictures import list_images, read_image
from mmdeploy_ext.quantize.images import CalibrationSet, calibration_images, evenly, image_files
from mmdeploy_ext.quantize.sweeps import PointRule, Sweeps
from mmdeploy_ext.runtime.consumers import has_runtime, runtime_of
from mmdeploy_ext.runtime.frames import Sweep
from mmdeploy_ext.runtime.infos import INFOS, camera_names, find_file, read_frames, read_infos

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from mmdeploy_ext.contract.metadata import Metadata

IMAGES = 'img'
"""The only input of a graph that this can feed."""
SAMPLES = 'samples'
Frame = tuple[Path, ...]
"""One picture per camera, in the order of the network input."""


def calibration_frames(metadata: Metadata, frames: list[Frame]) -> CalibrationSet:
    """Return frames of all cameras as the rule of a model file prepares them: {'img': (N, 3, H, W)}.

    The heads of such a model are in another graph: the last layers here give features as all others do. A
    graph that takes more than the pictures (a memory, calibrations) is a ModelFileError.
    """
    if not isinstance(metadata.preprocess, MultiViewRule) or metadata.spec.input_names != [IMAGES]:
        raise ModelFileError(
            f'{metadata.form!r} of family {metadata.family!r} takes '
            f'{", ".join(metadata.spec.input_names[:4])}; of a model of several cameras the image backbone '
            f'alone can be calibrated: give the folder of a deploy export, or its extract_img_feat.onnx'
        )
    dtype = metadata.spec.tensor(IMAGES).dtype

    def feeds(frame: Frame) -> dict[str, np.ndarray]:
        return {IMAGES: metadata.preprocess.apply([read_image(path) for path in frame]).astype(dtype)}

    return CalibrationSet(frames, feeds, 'frames', False)


def camera_frames(source: str | Path, rule: MultiViewRule, root: str | Path | None = None) -> list[Frame]:
    """Return the frames of a source, for the cameras of a model's rule in their order.

    Args:
        source: infos of mmdet3d's kind (.pkl, .json) with `cams`, or a folder with one folder of pictures
            per camera, such as nuScenes' own or its `samples`.
        rule: of the model.
        root: folder of the data set, where the infos' paths do not exist as they are.

    Raises:
        DataError: infos without these cameras, or whose pictures are not there.
        ImageError: no such source, or a folder without these cameras.
    """
    source = Path(source)
    if source.suffix in INFOS and source.is_file():
        frames = [
            [info['cams'][name]['data_path'] for name in camera_names(info, rule, source)]
            for info in read_infos(source)
        ]
        return [tuple(find_file(name, source, root, 'picture') for name in names) for names in frames]
    if not source.is_dir():
        raise ImageError(
            f'{source}: no such folder or infos; this model takes {rule.num_cameras} cameras: give infos '
            f'(.pkl) or a folder with one folder of pictures per camera'
        )
    pictures = [list_images([folder]) for folder in _folders(source, rule)]
    return list(zip(*pictures, strict=False))  # the cameras of a drive may have taken one picture more


def _folders(source: Path, rule: MultiViewRule) -> list[Path]:
    wanted = rule.cameras or CAMERAS[: rule.num_cameras]
    for place in (source, source / SAMPLES):
        folders = [place / name for name in wanted]
        if all(folder.is_dir() for folder in folders):
            return folders
    raise ImageError(
        f'{source}: has no folders {", ".join(wanted)}, one per camera; expected them there or in {SAMPLES}/'
    )


def calibration_set(
    path: Path, metadata: Metadata, source: str | Path, root: str | Path | None, limit: int
) -> CalibrationSet:
    """Return what calibrates a graph: single images, frames of cameras, or what other graphs make of sensors.

    Args:
        path: of the model file; the others of its export are beside it.
        metadata: of it.
        source: see `image_files` and `camera_frames`; sweeps, or infos of sweeps or of frames.
        root: folder of the files that annotations or infos name.
        limit: at most so many, evenly; 0 takes all.

    Raises:
        ModelFileError: the model takes none of these, or a graph of the export is missing.
        ImageError: no such source, or no picture in it.
        DataError: nothing in it that the model takes, or files that it names are not there.
    """
    if metadata.form == quantised_graph(metadata.family):
        model = runtime_of(metadata.family).OPENS(path.parent)
        items, sample = READERS[metadata.samples](model, metadata, source, root, limit)
        return CalibrationSet(items, lambda item: model.feeds(sample(item)), metadata.samples)
    if isinstance(metadata.preprocess, MultiViewRule):
        calibration_frames(metadata, [])  # refuses the graph before files are looked for
        frames = evenly(camera_frames(source, metadata.preprocess, root), limit)
        return calibration_frames(metadata, frames)
    return calibration_images(metadata, evenly(image_files(source, root), limit))


def quantised_graph(family: str) -> str:
    """Return the name of the graph of a family's folders that the others feed and INT8 is for, '' of none."""
    return getattr(runtime_of(family), 'QUANTISED', '') if has_runtime(family) else ''


def _sweeps(
    model: Any, metadata: Metadata, source: str | Path, root: str | Path | None, limit: int
) -> tuple[list[Any], Callable[[Any], Sweep]]:
    every = tuple(range(model.width))
    sweeps = Sweeps(source, lambda points: (points, points), PointRule(model.width, every), root, limit)
    if voxels := [item for item in sweeps.items if isinstance(item, Path) and item.suffix == '.npz']:
        raise DataError(f'{voxels[0]}: holds voxels, the model takes points; give sweeps (.bin, .npy)')
    return sweeps.items, lambda item: Sweep(sweeps.points(item), sweeps.name(item))


def _frames(
    model: Any, metadata: Metadata, source: str | Path, root: str | Path | None, limit: int
) -> tuple[list[Any], Callable[[Any], Any]]:
    rule = metadata.preprocess.views
    if rule is None:
        raise ModelFileError(
            f'a model of family {metadata.family!r} of LiDAR alone: frames to calibrate on come with '
            f'pictures, so that only models with cameras are quantised'
        )
    frames = evenly(read_frames(source, rule, root), limit)
    return frames, lambda frame: model.moment(frame.read_pictures(), frame, root)


READERS = dict(sweeps=_sweeps, fused=_frames)
"""Kind of samples -> what lists them, and what reads one."""
