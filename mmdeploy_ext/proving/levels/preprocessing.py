"""Level 1 of samples: does the preprocessing rule in a file prepare them as the model's own pipeline does?

Pictures are compared with the config's test pipeline to the bit, both from the same file on disk, and read by
the reader that `mm2onnx run` uses. Frames and sweeps of a data set are compared with the data set class,
which runs the test pipeline; the rule prepares them as the runtime reads the same info
(`SequenceFamily.moments`). Voxels are compared with mmcv's `Voxelization` as the config builds it. The
reference side calls nothing of `mmdeploy_ext/preprocess`: a fault in it would be on both sides.

Glossary: P points of D values, N voxels.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.config import test_dataset, test_pipeline
from mmdeploy_ext.core.errors import DataError, Mm2OnnxError, one_line, root_cause
from mmdeploy_ext.core.source_code import is_users_class
from mmdeploy_ext.evaluate.evaluation import build_dataset, build_loader, loader_errors
from mmdeploy_ext.evaluate.loop import DatasetFrames
from mmdeploy_ext.families.building import data_class
from mmdeploy_ext.preprocess import pictures, points
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.proving.inputs.config_pipeline import ConfigPipeline
from mmdeploy_ext.proving.inputs.pictures import sample_files
from mmdeploy_ext.proving.results import PreprocessingDifference, PreprocessingResult
from mmdeploy_ext.runtime import detect

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from torch import nn

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.exporting.model import Model
    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.frames import Frame, Sweep

    Feeds = Callable[[PreparedImage, int], Mapping[str, np.ndarray]]
    """Takes a prepared picture and a batch size; returns name of an input -> array."""

COLLECTED = ('ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip')
"""Values that a config's `Collect` may collect beside the tensor; those that it does not are not compared."""
OF_DATASET = 2
"""Number of samples of the user's data set that are compared besides the generated ones."""
EXACT = ('images', 'points', 'timestamp_s', 'camera_times_s', 'scene_token')
"""Values that have to be equal, of any dtype, but `images` of a data set that has a `picture_rtol`."""
NEAR = ('lidar2img', 'intrinsics', 'ego_pose')
"""Matrices, which data sets keep in float32."""
OPTIONAL = ('ego_pose', 'timestamp_s', 'camera_times_s', 'scene_token')
"""Values that a data set may lack, see `Frame`."""
MATRIX_RTOL = 2e-6
"""Tolerance of matrices, relative to the largest value: three products of float32."""
RECORD_RTOL = 1e-9
"""Tolerance of a record of the CAN bus, relative to its largest value, metres in the map: float64."""
READABLE = 'prove where the file data.test.ann_file is: its samples are compared then'
"""What to do about a data set that cannot read generated infos."""
VOXEL_SOURCE = "mmcv's Voxelization of the config"
GENERATED_SWEEP = 'generated sweep'
FEATURE_RTOL = 1e-5
"""Tolerance of features, relative to the largest of a column: sums of points in another order."""
MAX_GENERATED_VOXELS = 200_000
"""Voxels of the generated sweep at most, if a config has no limit or a very large one."""


def compare_pictures(
    cfg: Any,
    metadata: Metadata,
    files: Sequence[str | Path],
    picture: np.ndarray,
    normalisation: Mapping[str, Sequence[float]] | None = None,
    feeds: Feeds | None = None,
) -> tuple[PreprocessingResult, list[PreparedImage]]:
    """Prepare pictures by the rule in a file and by the config's test pipeline, and compare the results.

    Args:
        cfg: the config, overrides applied.
        metadata: metadata of the exported file.
        files: paths of pictures of the user; if it is empty `picture` is used. Two generated ones follow.
        picture: (h, w, 3) uint8 BGR, the first sample of the proof.
        normalisation: `mean` and `std`, or one of them, that the export was given in place of the config's,
            in its channel order; None or {} keeps those of the config.
        feeds: takes a picture of the pipeline and a batch size, and returns the inputs that `mm2onnx run` has
            to make; those that both make are compared. None: inputs are not compared.

    Returns:
        The result, and the pictures of the pipeline, those of `files` first; [] if the result has an error or
        a difference.
    """
    options = metadata.options
    size = None if options['dynamic'] else (options['height'], options['width'])
    changes = [f'at {size[0]}x{size[1]}'] if size else []
    if normalisation:
        changes.append(f'with {" and ".join(f"--{name}" for name in normalisation)}')
    result = PreprocessingResult((), note=' '.join(changes))
    differences: list[PreprocessingDifference] = []
    prepared = []
    try:
        pipeline = ConfigPipeline(cfg, size, normalisation)
        with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
            samples = sample_files(files, picture, pipeline.edges, Path(folder))
            axes = metadata.spec.inputs[0].axes
            takes_pictures = len(axes) == 4 and axes[1] == 3  # else it is a graph of regions
            for sample in samples:
                expected, metas = _pipeline_values(pipeline, sample)
                image_bgr = pictures.read_image(sample)
                if takes_pictures:  # as `mm2onnx run` prepares it
                    image = detect.prepare(metadata, image_bgr)
                else:
                    image = metadata.preprocess.apply(image_bgr)
                differences += _compare_values(sample.name, _rule_values(image), expected)
                prepared.append(_as_prepared(expected, metas))
                if feeds:
                    fed = detect.make_feeds(image, metadata)
                    pipeline_feeds = feeds(prepared[-1], len(next(iter(fed.values()))))
                    names = [
                        name for name in metadata.spec.input_names if name in fed and name in pipeline_feeds
                    ]
                    sides = (
                        {f'input {name}': side[name] for name in names} for side in (fed, pipeline_feeds)
                    )
                    differences += _compare_values(sample.name, *sides)
    except Exception as error:  # mmdet's steps, OpenCV and a damaged rule raise what they like
        text = f'{type(error).__name__}: {one_line(error)[:300]}'
        return dataclasses.replace(result, error=text), []
    names = tuple(sample.name for sample in samples)
    note = ', '.join(filter(None, (result.note, pipeline.note)))
    result = dataclasses.replace(result, note=note, samples=names, differences=tuple(differences))
    return result, prepared if result.passed else []


def _rule_values(image: PreparedImage) -> dict[str, Any]:
    """Return the values of a picture that a rule prepared, by the names of mmdet's pipelines."""
    return dict(
        tensor=image.tensor,
        ori_shape=image.ori_shape,
        img_shape=image.img_shape,
        pad_shape=image.tensor.shape[1:],
        scale_factor=image.scale_factor,
        border=image.border,
        flip=False,
    )


def _pipeline_values(pipeline: ConfigPipeline, file: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the values of a picture that are compared, by the names of `_rule_values`, and all collected."""
    picture = pipeline(file)
    values = {name: picture.metas[name] for name in COLLECTED if name in picture.metas}
    for name in ('ori_shape', 'img_shape', 'pad_shape'):
        if name in values:
            values[name] = tuple(values[name][:2])
    if 'scale_factor' in values:  # a number without Resize
        values['scale_factor'] = np.broadcast_to(np.asarray(values['scale_factor'], np.float32), 4)
    border = picture.metas.get('border', (0, 0, 0, 0))  # top, bottom, left, right
    return dict(values, tensor=picture.tensor, border=(int(border[0]), int(border[2]))), picture.metas


def _as_prepared(values: Mapping[str, Any], metas: Mapping[str, Any]) -> PreparedImage:
    """Return the picture of a pipeline as a proof feeds it; shapes that are not collected are the input's."""
    size = values['tensor'].shape[1:]
    return PreparedImage(
        tensor=values['tensor'],
        img_shape=values.get('img_shape', size),
        scale_factor=np.array(values.get('scale_factor', np.ones(4)), np.float32),
        ori_shape=values.get('ori_shape', size),
        border=values['border'],
        collected=metas,
    )


def _compare_values(
    sample: str, got: Mapping[str, Any], expected: Mapping[str, Any]
) -> Iterator[PreprocessingDifference]:
    """Yield how the values of a sample differ from `expected`; arrays are compared by their bits."""
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            texts = _differing_bits(np.asarray(got[name]), value)
        else:
            texts = None if got[name] == value else (str(got[name]), str(value))
        if texts:
            yield PreprocessingDifference(sample, name, *texts)


def _differing_bits(got: np.ndarray, expected: np.ndarray) -> tuple[str, str] | None:
    """Return texts about both arrays; None if they are equal to the bit."""
    if (got.dtype, got.shape) != (expected.dtype, expected.shape):
        return tuple(f'{side.dtype} {"x".join(map(str, side.shape))}' for side in (got, expected))
    bits = (np.ascontiguousarray(side).view(f'u{side.itemsize}') for side in (got, expected))
    differs = np.not_equal(*bits)
    if not differs.any():
        return None
    index = tuple(int(axis) for axis in np.argwhere(differs)[0])
    with np.errstate(invalid='ignore'):
        largest = float(np.abs(np.subtract(got, expected, dtype=np.float64)).max())
    count = f'{int(differs.sum()):,} of {differs.size:,} values differ, by {largest:.3g} at most'
    return f'{got[index]:.7g} at {list(index)} ({count})', f'{expected[index]:.7g}'


def compare_prepared(
    deployment: Model, rule: Any, samples: Collection[Any], unit: str
) -> PreprocessingResult:
    """Compare samples prepared by the rule and by the data set class: frames or sweeps ("moments").

    They are generated ones, and up to two of the data set that a proof runs on, if it runs on one that has
    `data_infos`. Generated ones that the class of the data set cannot read, such as one of the user's whose
    infos have entries of their own, are left out with a note if there are others. An error of this project
    (`Mm2OnnxError`), or of the data set, is not raised, but the `error` of the result.

    Only what the model reads is compared: neither `unread_fields` of its family nor the points of a rule
    without voxels. Numbers of `EXACT` have to be equal, of the points those inside the range to which the
    test pipeline cuts them, if it does, or inside that of the rule's voxels if that is larger: then the
    runtime has points that the pipeline has not. Matrices and the CAN bus have tolerances. NaN equals
    nothing.

    Args:
        deployment: the config and checkpoint.
        rule: `Metadata.preprocess` of the file, by which the runtime prepares frames.
        samples: the prepared frames or sweeps that the proof runs on.
        unit: name of a sample: 'frame' or 'sweep'.
    """
    compared: list[tuple[str, list[PreprocessingDifference], list[str]]] = []
    error, notes = '', []
    of_dataset = []
    if isinstance(samples, DatasetFrames) and hasattr(samples.dataset, 'data_infos'):
        count = len(samples.indices)
        positions = (0, count // 2) if count > OF_DATASET else range(count)
        of_dataset = [(samples.dataset, samples.indices[position]) for position in positions]
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            generated = deployment.family.generated_dataset(folder, deployment.cfg, deployment.rule)
            notes += _notes_on_generated(deployment.cfg, generated)
            try:
                for dataset, index in _generated_moments(deployment, generated):
                    compared.append(_compare_moment(deployment, rule, dataset, index, folder))
            except UnreadError as unread:
                if not of_dataset:
                    raise DataError(f'{unread} for generated infos; {READABLE}') from unread
                notes.append(f'without generated {unit}s ({one_line(unread)})')
            for dataset, index in of_dataset:
                compared.append(_compare_moment(deployment, rule, dataset, index, folder))
    except Mm2OnnxError as raised:
        error = one_line(raised)[:300]
    titles = tuple(title for title, _, _ in compared)
    differences = tuple(difference for _, of_moment, _ in compared for difference in of_moment)
    if absent := dict.fromkeys(name for _, _, missing in compared for name in missing):
        notes.append(f'without {", ".join(absent)}, which samples of the data set lack')
    return PreprocessingResult(titles, unit, differences, ', '.join(notes), error)


class UnreadError(Mm2OnnxError):
    """A data set whose class, `kind`, raised an `error` of its own when it was built or read."""

    def __init__(self, kind: str, error: BaseException) -> None:
        reason = f'{type(error).__name__}: {one_line(error)}' if str(error) else type(error).__name__
        super().__init__(f'{kind} of data.test raised {reason[:150]}')


def _notes_on_generated(cfg: Any, generated: Mapping[str, Any]) -> Iterator[str]:
    """Yield what generated moments are compared without: augmentation, and a data set of the user's."""
    if generated['pipeline'] != test_pipeline(cfg):
        yield 'without test-time augmentation'
    kind = data_class(test_dataset(cfg).get('type'), 'DATASETS')
    if kind not in (None, data_class(generated['type'], 'DATASETS')) and is_users_class(kind):
        yield f'without {kind.__name__} of data.test, whose files are of another kind'


def _generated_moments(deployment: Model, generated: Mapping[str, Any]) -> Iterator[tuple[Any, int]]:
    """Yield the data set of generated files, and the index of each of its samples."""
    cfg = copy.deepcopy(deployment.cfg)
    classes = generated.get('classes') or list(deployment.classes)
    cfg.data = dict(cfg.get('data') or {}, test=dict(generated, classes=classes))
    try:
        dataset = build_dataset(cfg)
    except Exception as error:  # a user's class raises what it likes
        raise UnreadError(str(generated['type']), root_cause(error)) from error
    yield from ((dataset, index) for index in range(len(dataset)))


def _compare_moment(
    deployment: Model, rule: Any, dataset: Any, index: int, folder: Path
) -> tuple[str, list[PreprocessingDifference], list[str]]:
    """Return the name of a sample of a data set, its differing values that the model uses, and absent ones.

    Of those of `OPTIONAL` a value of None says that the samples of the data set do not have it.
    """
    family, infos = deployment.family, folder / 'moment.pkl'
    expected, data = _read_sample(family, dataset, index, infos)
    try:
        (moment,) = family.moments(deployment.cfg, rule, infos, getattr(dataset, 'data_root', None))
    except Mm2OnnxError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise DataError(f'{type(error).__name__}: {error}') from error
    voxels = getattr(rule, 'voxels', rule)
    takes_points = voxels is not None
    picture_rtol = float(getattr(dataset, 'picture_rtol', 0.0))  # of a data set that normalises otherwise
    points_range = _points_range(deployment.cfg)
    title, differences, absent = expected.name or f'moment {index}', [], []
    for name, value, got, rtol in _moment_values(expected, moment, picture_rtol):
        if name in family.unread_fields or (name == 'points' and not takes_points):
            continue
        if value is None and got is not None and name in OPTIONAL:
            absent.append(name)
            continue
        if name == 'points' and points_range is not None:  # x, y, z lowest, then highest
            ranges = np.array([points_range, voxels.point_cloud_range], np.float32)
            low, high = ranges[:, :3].min(axis=0), ranges[:, 3:].max(axis=0)
            value, got = (
                cloud[((cloud[:, :3] > low) & (cloud[:, :3] < high)).all(1)] for cloud in (value, got)
            )
        if texts := _differing_values(got, value, rtol):
            differences.append(PreprocessingDifference(title, name, *texts))
    if texts := _differing_boxes(data):
        differences.append(PreprocessingDifference(title, 'box_type_3d', *texts))
    return title, differences, absent


def _differing_boxes(data: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what files and a data set give as the class of boxes, if it is another; else None.

    A head makes its boxes of the class in the metas of a sample, `data` of the test loader, and suppresses
    them as this class shows them from above. That of a copy of mmdet3d in a repository counts as mmdet3d's.
    """
    from mmcv.parallel import DataContainer
    from mmdet3d.core.bbox import LiDARInstance3DBoxes

    meta = data.get('img_metas', {})
    while isinstance(meta, DataContainer | list | tuple):  # of one sample, as `family.frame` has found
        meta = meta.data if isinstance(meta, DataContainer) else meta[0]
    kind = LiDARInstance3DBoxes
    if isinstance(meta, Mapping):
        kind = meta.get('box_type_3d', kind)
    is_derived = issubclass(kind, LiDARInstance3DBoxes)
    if kind is LiDARInstance3DBoxes or (kind.__name__ == LiDARInstance3DBoxes.__name__ and not is_derived):
        return None
    return LiDARInstance3DBoxes.__name__, f'{kind.__module__}.{kind.__qualname__}'


def _read_sample(
    family: SequenceFamily, dataset: Any, index: int, infos: Path
) -> tuple[Any, Mapping[str, Any]]:
    """Return a sample of a data set as a frame or sweep, and as its loader gives it; write its info."""
    try:
        content = dict(infos=[dataset.data_infos[index]], metadata=dict(version=''))
        infos.write_bytes(pickle.dumps(content))  # before the sample is read, which may change it
        with loader_errors():
            (data,) = build_loader(dataset, [index], workers_per_gpu=0)
            expected = family.frame(data)
    except Mm2OnnxError:
        raise
    except Exception as error:  # a user's class raises what it likes
        raise UnreadError(type(dataset).__name__, error) from error
    return expected, data


def _points_range(cfg: Any) -> Sequence[float] | None:
    """Return the range to which a test pipeline cuts points; None if it does not."""
    steps = list(test_pipeline(cfg))
    steps += [inner for step in steps for inner in step.get('transforms', ())]
    ranges = (step['point_cloud_range'] for step in steps if step.get('type') == 'PointsRangeFilter')
    return next(ranges, None)


def _moment_values(
    expected: Frame | Sweep, moment: Frame | Sweep, picture_rtol: float
) -> Iterator[tuple[str, Any, Any, float]]:
    """Yield name, value by the pipeline, value by the rule and relative tolerance of all that is prepared."""
    for names, rtol in ((EXACT, 0.0), (NEAR, MATRIX_RTOL), (('can_bus',), RECORD_RTOL)):
        for name in names:
            if name in vars(expected):
                tolerance = picture_rtol if name == 'images' else rtol
                yield name, getattr(expected, name), getattr(moment, name), tolerance
    calibration: Mapping[str, np.ndarray] = getattr(expected, 'calibration', {})
    for name, matrix in calibration.items():
        yield name, matrix, moment.calibration.get(name), MATRIX_RTOL


def _differing_values(got: Any, expected: Any, rtol: float) -> tuple[str, str] | None:
    """Return texts about both values; None if they are equal within `rtol` of the largest value.

    The largest value is that of each matrix. Arrays of another dtype may be equal; NaN equals nothing.
    """
    if not isinstance(expected, np.ndarray):
        return None if got == expected else (repr(got), repr(expected))
    if not isinstance(got, np.ndarray) or got.shape != expected.shape:
        shape = got.shape if isinstance(got, np.ndarray) else None
        return f'shape {shape}', f'shape {expected.shape}'
    gap = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    if not gap.size:
        return None
    axes = (-2, -1) if expected.ndim > 2 else None
    scale = np.abs(expected).max(axis=axes, keepdims=True) if rtol else 0.0
    wrong = ~(gap <= rtol * scale)
    if not wrong.any():
        return None
    index = tuple(int(axis) for axis in np.unravel_index(np.argmax(np.where(wrong, gap, -1)), gap.shape))
    count = f'{wrong.sum()} of {wrong.size} values differ'
    return f'{got[index]:.7g} at {list(index)} ({count})', f'{expected[index]:.7g}'


def compare_voxels(
    layer: nn.Module, order: str, in_channels: int, rule: Mapping[str, Any]
) -> PreprocessingResult:
    """Compare the voxel rule in a file with the voxelisation of its model, on a generated sweep.

    The attributes of the rule are compared first; only if they are equal are the voxels of the sweep, in any
    order.

    Args:
        layer: mmcv's `Voxelization` of the model, in evaluation mode.
        order: order of the axes of coordinates that the model's encoder takes, 'xyz' or 'zyx'.
        in_channels: D.
        rule: the voxel rule in the file's metadata, as `VoxelRule.to_json` returns it: `point_cloud_range`,
            `voxel_size`, `max_points`, `max_voxels`, `order`, `in_channels` and `mode`.
    """
    result = PreprocessingResult((), 'sweep', source=VOXEL_SOURCE)
    try:
        expected = _layer_rule(layer, order, in_channels)
        differences = [
            PreprocessingDifference('voxel rule', name, str(rule.get(name)), str(value))
            for name, value in expected.items()
            if _as_floats(rule.get(name)) != value
        ]
        if not differences:
            sweep = _generated_sweep(expected)
            voxels = points.voxelise(sweep, points.VoxelRule.from_json(rule))
            differences += _differing_voxels(voxels, _layer_voxels(layer, sweep, order))
    except Exception as error:  # mmcv and a damaged rule raise what they like
        return dataclasses.replace(result, error=f'{type(error).__name__}: {one_line(error)[:300]}')
    return dataclasses.replace(result, samples=(GENERATED_SWEEP,), differences=tuple(differences))


def _as_floats(value: Any) -> Any:
    """Return a list or tuple as a list of floats, anything else as it is."""
    return [float(entry) for entry in value] if isinstance(value, list | tuple) else value


def _layer_rule(layer: nn.Module, order: str, in_channels: int) -> dict[str, Any]:
    """Return the voxel rule of mmcv's layer, by its attributes."""
    limits = int(layer.max_num_points), int(layer.max_voxels[1])
    return dict(
        point_cloud_range=_as_floats(tuple(layer.point_cloud_range)),
        voxel_size=_as_floats(tuple(layer.voxel_size)),
        max_points=limits[0],
        max_voxels=limits[1],
        order=order,
        in_channels=in_channels,
        mode='dynamic' if -1 in limits else 'hard',
    )


def _generated_sweep(rule: Mapping[str, Any]) -> np.ndarray:
    """Return points (P, D) float32 that reach the limits of a voxel rule.

    They lie on both edges of every axis and beyond them, in more voxels than the rule keeps if that is less
    than about half of the grid and than `MAX_GENERATED_VOXELS`, and some voxels have more points than the
    rule keeps. Points inside are not near the faces of voxels, where the last bit of float32 decides.
    """
    rng = np.random.default_rng(0)
    low, high = np.array(rule['point_cloud_range']).reshape(2, 3)
    size = np.array(rule['voxel_size'])
    grid = np.rint((high - low) / size).astype(np.int64)
    limit = rule['max_voxels'] if rule['mode'] == 'hard' else 1000
    count = min(limit + limit // 20 + 10, int(np.prod(grid)) // 2 + 1, MAX_GENERATED_VOXELS)
    cells = rng.permutation(np.unique(rng.integers(0, int(np.prod(grid)), 4 * count)))[:count]
    full = np.repeat(cells[: count // 50 + 2], 2 * max(rule['max_points'], 4))
    first = rng.permutation(np.concatenate([cells[: count // 2], full]))
    cells = np.concatenate([first, cells[count // 2 :]])
    positions = np.stack(np.unravel_index(cells, grid), 1) + rng.uniform(0.2, 0.8, (len(cells), 3))
    edges = np.tile((low + high) / 2 + 0.3 * size, (12, 1))
    for axis in range(3):  # first, since voxels beyond the limit do not count
        rows = slice(4 * axis, 4 * axis + 4)
        edges[rows, axis] = low[axis], high[axis], low[axis] - size[axis], high[axis] + size[axis]
    sweep = rng.uniform(0.1, 1, (len(edges) + len(positions), rule['in_channels']))
    sweep[:, :3] = np.concatenate([edges, low + size * positions])
    return sweep.astype(np.float32)


def _layer_voxels(layer: nn.Module, sweep: np.ndarray, order: str) -> tuple[np.ndarray, np.ndarray]:
    """Return means (N, D) float32 and coordinates (N, 4), axes in an order, as mmcv's layer makes them."""
    import torch

    outputs = layer(torch.from_numpy(sweep))
    if isinstance(outputs, tuple):
        voxels, cells, counts = (tensor.numpy() for tensor in outputs)
        means = voxels.sum(1) / counts[:, None]
    else:  # dynamic: the cell of each point, -1 outside
        cells = outputs.numpy()
        inside = (cells >= 0).all(1)
        cells, rows, counts = np.unique(cells[inside], axis=0, return_inverse=True, return_counts=True)
        sums = np.zeros((len(cells), sweep.shape[1]))
        np.add.at(sums, rows.reshape(-1), sweep[inside])
        means = sums / counts[:, None]
    cells = cells if order == 'zyx' else cells[:, ::-1]  # mmcv counts z, y, x
    return means.astype(np.float32), np.pad(cells, ((0, 0), (1, 0)))


def _differing_voxels(
    got: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]
) -> Iterator[PreprocessingDifference]:
    """Yield how features and coordinates of voxels differ; their order does not count for sparse networks."""
    rows = (np.lexsort(coordinates.T) for _, coordinates in (got, expected))
    got, expected = (
        tuple(array[order] for array in side) for side, order in zip((got, expected), rows, strict=True)
    )
    if not np.array_equal(got[1], expected[1]):
        sides = (f'{len(side[1])} voxels, the last {side[1][-1:].tolist()}' for side in (got, expected))
        yield PreprocessingDifference(GENERATED_SWEEP, 'coordinates', *sides)
    elif got[0].shape != expected[0].shape:
        sides = (str(side[0].shape) for side in (got, expected))
        yield PreprocessingDifference(GENERATED_SWEEP, 'features', *sides)
    else:
        gaps = np.abs(got[0] - expected[0])
        wrong = ~(gaps <= FEATURE_RTOL * np.abs(expected[0]).max(0, initial=0))
        if wrong.any():
            index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
            text = f'{got[0][index]:.7g} at {list(index)} ({wrong.sum()} of {wrong.size} values differ)'
            yield PreprocessingDifference(GENERATED_SWEEP, 'features', text, f'{expected[0][index]:.7g}')
