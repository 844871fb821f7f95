"""Does the preprocessing rule in a file prepare samples as the model's own pipeline does?"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import pickle
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.base.errors import DataError, Mm2OnnxError, one_line, root_cause
from mmdeploy_ext.base.source_code import is_users_class
from mmdeploy_ext.families.evaluate.evaluation import build_dataset, build_loader, loader_errors
from mmdeploy_ext.families.evaluate.loop import DatasetFrames
from mmdeploy_ext.proving.inputs import is_default, sample_files, write_array
from mmdeploy_ext.runtime import detect
from mmdeploy_ext.runtime.preprocess import pictures, points
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage, prepare_image
from mmdeploy_ext.spec.results import PreprocessingDifference, PreprocessingResult
from mmdeploy_ext.upstream.models.building import data_class, makes_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from torch import nn

    from mmdeploy_ext.families.detector import Detector
    from mmdeploy_ext.families.sequence import SequenceFamily
    from mmdeploy_ext.runtime.frames import Frame, Sweep
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.preparation import PreprocessRule

    Composer = Callable[[Sequence[Any]], Callable[[dict[str, Any]], Any]]
    """Makes the function of one sample from the steps of a pipeline."""
    Step = Any
    """The dict of a step, or a callable that mmdet's `Compose` takes as one."""
    Feeds = Callable[[PreparedImage, int], Mapping[str, np.ndarray]]
    """Takes a prepared picture and a batch size; returns name of an input -> array."""


# Compares pictures prepared by a file's rule and by the config's test pipeline.


NEXT_STEP = ('Resize', 'Normalize', 'Pad', '')
"""After reading and after each of them."""
COLLECTED = ('ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip')
"""Values that `Collect` may collect beside the tensor."""


def compare_pictures(
    cfg: Any,
    metadata: Metadata,
    files: Sequence[str | Path],
    picture: np.ndarray,
    normalisation: Mapping[str, Sequence[float]] | None = None,
    feeds: Feeds | None = None,
) -> tuple[PreprocessingResult, list[PreparedImage]]:
    """Prepare pictures by the file's rule and by the config's test pipeline, and compare the results.

    - `files`: pictures of the user, else `picture`, as the rule takes it; two generated ones follow.
    - `normalisation`: `mean` and/or `std` in place of the config's.
    - `feeds`: (picture of the pipeline, batch) -> inputs that `mm2onnx run` has to make; None: not compared.

    Returns the result, and the pipeline's pictures, [] with a difference.
    """
    options = metadata.options
    size = None if options['dynamic'] else (options['height'], options['width'])
    changes = [f'at {size[0]}x{size[1]}'] if size else []
    if normalisation:
        changes.append(f'with {" and ".join(f"--{name}" for name in normalisation)}')
    result = PreprocessingResult((), note=' '.join(changes))
    try:
        pipeline = ConfigPipeline(cfg, size, normalisation)
        with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
            banded = ''
            if metadata.preprocess.color_type == 'unchanged':
                banded = '.tiff' if test_pipeline(cfg)[0]['type'] == 'LoadImageFromFile' else '.npy'
                files = [file for file in files if not is_default(file)]  # has three bands
            samples = sample_files(files, picture, pipeline.edges, Path(folder), banded)
            compared = [compare_picture(pipeline, metadata, sample, feeds) for sample in samples]
    except Exception as error:  # mmdet's steps, OpenCV and a damaged rule raise what they like
        text = f'{type(error).__name__}: {one_line(error)[:300]}'
        return dataclasses.replace(result, error=text), []
    result = PreprocessingResult(
        tuple(sample.name for sample in samples),
        differences=tuple(difference for found, _ in compared for difference in found),
        note=result.note,
        gaps=tuple(filter(None, [pipeline.gap])),
    )
    return result, [prepared for _, prepared in compared] if result.passed else []


def compare_picture(
    pipeline: ConfigPipeline, metadata: Metadata, file: Path, feeds: Feeds | None
) -> tuple[list[PreprocessingDifference], PreparedImage]:
    """Return the differences of one picture, and the pipeline's picture."""
    expected, metas = _pipeline_values(pipeline, file)
    prepared, rule = _as_prepared(expected, metas), metadata.preprocess
    image_bgr = pictures.read_image(file, rule.color_type)
    axes, pixels = metadata.spec.inputs[0].axes, metadata.spec.inputs[0].pixels
    if pixels is not None or (len(axes) == 4 and axes[1] == rule.bands):  # as `mm2onnx run` prepares it
        image, used = detect.prepare(metadata, image_bgr), detect.rule_of_size(metadata)
    else:  # a graph of regions
        image, used = prepare_image(rule, image_bgr), rule
    differences = [*_compare_values(file.name, _rule_values(image), expected)]
    if differences:
        step = _first_step(pipeline, file, used, image, [one.name for one in differences])
        differences[0] = dataclasses.replace(differences[0], got=differences[0].got + step)
    if feeds:
        fed = detect.make_feeds(image, metadata)
        wanted = feeds(prepared, len(next(iter(fed.values()))))
        names = [name for name in metadata.spec.input_names if name in fed and name in wanted]
        sides = ({f'input {name}': side[name] for name in names} for side in (fed, wanted))
        differences += _compare_values(file.name, *sides)
    return differences, prepared


def _rule_values(image: PreparedImage) -> dict[str, Any]:
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
    picture = pipeline(file)
    values = dict(border=(0, 0)) | _collected(picture.metas)
    return dict(values, tensor=picture.tensor), picture.metas


def _collected(metas: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: metas[name] for name in COLLECTED if name in metas}
    for name in ('ori_shape', 'img_shape', 'pad_shape'):
        if name in values:
            values[name] = tuple(values[name][:2])
    if 'scale_factor' in values:  # a number without Resize
        values['scale_factor'] = np.broadcast_to(np.asarray(values['scale_factor'], np.float32), 4)
    if 'border' in metas:  # top, bottom, left, right
        values['border'] = int(metas['border'][0]), int(metas['border'][2])
    return values


@contextlib.contextmanager
def watched(compose: Any, read: Callable[[dict[str, Any]], Any]) -> Iterator[list[tuple[str, Any]]]:
    """Collect (step, `read` of its results unless None) while `compose` runs."""
    seen: list[tuple[str, Any]] = []

    def watch(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        name = type(step.step if isinstance(step, PadAround) else step).__name__

        def run(results: Any) -> Any:
            results = step(results)
            if isinstance(results, dict) and (value := read(results)) is not None:
                seen.append((name, value))
            return results

        return run

    with contextlib.ExitStack() as stack:
        pending = [compose]
        while pending:
            compose = pending.pop()
            steps = getattr(compose, 'transforms', None)
            if not isinstance(steps, list):
                continue
            pending += [step.transforms for step in steps if hasattr(step, 'transforms')]
            stack.callback(setattr, compose, 'transforms', steps)
            compose.transforms = [step if hasattr(step, 'transforms') else watch(step) for step in steps]
        yield seen


def first_after(seen: Sequence[tuple[str, Any]], agrees: Callable[[Any], bool]) -> str:
    """Text that names the step after which no value agrees any more, or ''."""
    equal = [place for place, (_, value) in enumerate(seen) if agrees(value)]
    after = equal[-1] + 1 if equal else 0
    return f' (first after {seen[after][0]})' if after < len(seen) else ''


def _first_step(
    pipeline: ConfigPipeline, file: Path, rule: PreprocessRule, image: PreparedImage, names: Sequence[str]
) -> str:
    """See `first_after`; `image` is of the rule, `names` are of the values that differ."""
    dataset = getattr(pipeline.dataset, 'dataset', None)
    with watched(getattr(dataset, 'pipeline', pipeline.compose), _values_of_step) as seen:
        pipeline(file)
    if not seen:  # by a callable of the user's
        return ''
    if 'tensor' not in names:
        got = _rule_values(image)[names[0]]
        return first_after(seen, lambda values: np.array_equal(values.get(names[0], ()), got))
    picture = pictures.read_image(file, rule.color_type)
    unsized = dataclasses.replace(rule, img_scale=None, size=None, resize='cv2')
    read, resized = (pictures.resize_image(one, picture)[0] for one in (unsized, rule))
    padded = image.tensor.transpose(1, 2, 0)
    colours = dict(mean=rule.mean, std=rule.std, to_rgb=rule.to_rgb)
    normalised = pictures.normalise(resized, **colours)
    stages = [np.atleast_3d(stage) for stage in (read, resized, normalised, padded)]

    def agrees(values: Mapping[str, Any]) -> bool:
        tensor = values['tensor']
        if any(np.array_equal(tensor, stage) for stage in stages):
            return True
        if tensor.shape != padded.shape:
            return False
        before = pictures.normalise(tensor, **colours)  # of a pipeline that pads first
        return np.array_equal(np.atleast_3d(before), padded)

    step, last = first_after(seen, agrees), seen[-1][1]['tensor']
    for following, stage in zip(NEXT_STEP[::-1], stages[::-1], strict=True):
        if not step and np.array_equal(last, stage):
            return f' (the pipeline has no {following})' if following else ''
    return step


def _values_of_step(results: Mapping[str, Any]) -> dict[str, Any] | None:
    from mmcv.parallel import DataContainer

    image = results.get('img')
    image = image.data if isinstance(image, DataContainer) else image
    if not hasattr(image, 'ndim') or image.ndim not in (2, 3):
        return None
    is_tensor = not isinstance(image, np.ndarray)
    array = np.array(image)  # a copy
    return dict(_collected(results), tensor=np.atleast_3d(array.transpose(1, 2, 0) if is_tensor else array))


def _as_prepared(values: Mapping[str, Any], metas: Mapping[str, Any]) -> PreparedImage:
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
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            texts = _differing_bits(np.asarray(got[name]), value)
        else:
            texts = None if got[name] == value else (str(got[name]), str(value))
        if texts:
            yield PreprocessingDifference(sample, name, *texts)


def _differing_bits(got: np.ndarray, expected: np.ndarray) -> tuple[str, str] | None:
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


BOXES = np.array([[1.0, 1.0, 9.0, 9.0]], np.float32)
"""Proposals (1, 4) for `LoadProposals`; without effect on pictures."""
INTRINSICS = [[500.0, 0.0, 320.0], [0.0, 500.0, 240.0], [0.0, 0.0, 1.0]]
"""Camera for `LoadImageFromFileMono3D`; without effect on pictures."""
OF_LOADERS = ('type', 'samples_per_gpu', 'pipeline', 'test_mode')
IMAGE_STEPS = ('Resize', 'AffineResize', 'RandomFlip', 'RandomCenterCropPad', 'Normalize', 'Pad')
"""Steps that change a picture; new steps go behind them."""


@dataclasses.dataclass(frozen=True)
class PipelinePicture:
    """A picture (3, H, W) float32 as the pipeline prepares it, and the values of `Collect`."""

    tensor: np.ndarray
    metas: Mapping[str, Any]


class ConfigPipeline:
    """The test pipeline of a config, with the changes of a file's export."""

    def __init__(
        self,
        cfg: Any,
        size: tuple[int, int] | None = None,
        normalisation: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Build the steps.

        - `size`: (H, W) of a file with a fixed size; None: the config's sizes.
        - `normalisation`: `mean` and/or `std` in place of the config's.
        """
        steps = test_pipeline(cfg)
        self.edges = size
        scales = (step['img_scale'] for step in _all_dicts(steps) if step.get('img_scale'))
        if size is None and (scale := next(scales, None)):
            edge = int(max(scale[0] if np.ndim(scale) > 1 else scale))
            self.edges = edge, edge
        composer = functools.partial(_composed, size=size, normalisation=normalisation)
        self.takes_planes = any(kind_of(step) == 'LoadMultiChannelImageFromFiles' for step in steps)
        with _without_warnings():
            self.compose = composer(steps)
            self.dataset, self.gap = _users_dataset(cfg, composer)

    def __call__(self, path: str | Path) -> PipelinePicture:
        """Prepare a picture; ValueError: the pipeline makes several."""
        if not self.takes_planes:
            return self._prepared(str(Path(path).absolute()))
        array = pictures.read_image(path, 'unchanged')
        with tempfile.TemporaryDirectory(prefix='mm2onnx-') as folder:
            planes = np.moveaxis(array, 2, 0)
            files = [write_array(Path(folder, f'{band}.tiff'), plane) for band, plane in enumerate(planes)]
            return self._prepared([*map(str, files)])

    def _prepared(self, filename: str | list[str]) -> PipelinePicture:
        from mmcv.parallel import DataContainer

        img_info = dict(filename=filename, cam_intrinsic=INTRINSICS)
        results = dict(img_info=img_info, img_prefix=None, proposals=BOXES.copy())
        results |= {f'{name}_fields': [] for name in ('bbox', 'mask', 'seg', 'bbox3d', 'pts_mask', 'pts_seg')}
        with _without_warnings():
            data = None
            if self.dataset is not None:
                try:
                    data = self.dataset.sample(img_info)
                except Exception as error:  # a user's class raises what it likes, also about annotations
                    self.gap = self.gap or _gap(type(self.dataset.dataset), error)
            data = data or self.compose(results)
        values = [data['img'], data['img_metas']]
        for index, value in enumerate(values):
            if isinstance(value, list):
                if len(value) != 1:
                    raise ValueError(f'the pipeline returns {len(value)} images for one, expected 1')
                value = value[0]
            values[index] = value.data if isinstance(value, DataContainer) else value
        return PipelinePicture(np.asarray(values[0], np.float32), values[1])


class UsersDataset:
    """A data set of the user with another pipeline; annotations and proposals are not read."""

    def __init__(
        self, kind: type, settings: Mapping[str, Any], composer: Composer, boxes: np.ndarray
    ) -> None:
        """Build `kind` by the settings of `data.test`.

        `composer` replaces mmdet's `Compose`; `boxes` (n, 4) are each picture's proposals.
        """
        without_files = type(
            kind.__name__,
            (kind,),
            dict(load_annotations=lambda *_: [self.info], load_proposals=lambda *_: [boxes.copy()]),
        )
        self.info: dict[str, Any] = {}
        arguments = {key: value for key, value in settings.items() if key not in OF_LOADERS}
        with _composed_by(kind, composer):
            self.dataset: Any = without_files(**arguments, pipeline=settings['pipeline'], test_mode=True)
        self.dataset.proposals = [boxes.copy()]

    def sample(self, info: Mapping[str, Any]) -> Any:
        """Return the sample of a picture, `info['filename']`, an absolute path."""
        path = Path(info['filename'])
        height, width = cv2.imread(str(path)).shape[:2]
        self.info = dict(info, id=0, file_name=path.name, height=height, width=width)
        self.dataset.img_prefix = str(path.parent)
        self.dataset.data_infos = [self.info]
        sample = self.dataset[0]
        if sample is None:
            raise ValueError(f'no sample from {path}')
        return sample


@contextlib.contextmanager
def _composed_by(kind: type, composer: Composer) -> Iterator[None]:
    modules = [sys.modules[base.__module__] for base in kind.__mro__]
    originals = {module: vars(module)['Compose'] for module in modules if 'Compose' in vars(module)}
    try:
        for module in originals:
            module.Compose = composer
        yield
    finally:
        for module, original in originals.items():
            module.Compose = original


def _users_dataset(cfg: Any, composer: Composer) -> tuple[UsersDataset | None, str]:
    settings = test_dataset(cfg)
    kind = data_class(settings.get('type'), 'DATASETS')
    if kind is None or not settings.get('pipeline') or not makes_samples(kind):
        return None, ''
    try:
        return UsersDataset(kind, copy.deepcopy(settings), composer, BOXES), ''
    except Exception as error:  # a user's class raises what it likes
        return None, _gap(kind, error)


def _gap(kind: type, error: BaseException) -> str:
    return (
        f'without {kind.__name__} of data.test, which raised {type(error).__name__}: {one_line(error)[:100]}'
    )


def _composed(
    steps: Sequence[Step],
    size: tuple[int, int] | None,
    normalisation: Mapping[str, Sequence[float]] | None,
) -> Any:
    steps = [copy.deepcopy(dict(step) if hasattr(step, 'get') else step) for step in steps]
    for step in steps:
        if hasattr(step, 'get') and step.get('type') == 'LoadImageFromWebcam':
            step['type'] = 'LoadImageFromFile'
    if normalisation:
        _normalise_with(steps, normalisation)
    if size is not None:
        _fit(steps, size)
    return _composer(steps)(steps)


def kind_of(step: Step) -> str:
    """Return the name of mmdet's (base) step, '' for a callable."""
    from mmdet.datasets.builder import PIPELINES

    if not hasattr(step, 'get'):
        return ''
    bases = getattr(PIPELINES.get(str(step.get('type'))), '__mro__', ())
    names = (base.__name__ for base in bases if base.__module__.startswith('mmdet.datasets.pipelines'))
    return next(names, str(step.get('type', '')))


def has_normalisation(steps: Sequence[Step]) -> bool:
    return any(kind_of(step) == 'Normalize' for step in _all_dicts(steps))


def _composer(steps: Sequence[Step]) -> Any:
    from mmdet.datasets.builder import PIPELINES
    from mmdet.datasets.pipelines import Compose

    library = sys.modules.get('mmdet3d.datasets.pipelines')  # imported by the families that need it
    names = [str(step.get('type')) for step in _all_dicts(steps)]
    if library is None or all(name in PIPELINES.module_dict for name in names):
        return Compose
    return library.Compose


def _all_dicts(steps: Sequence[Step]) -> Iterator[dict[str, Any]]:
    for step in steps:
        if hasattr(step, 'get'):
            yield step
            yield from _all_dicts(step.get('transforms', ()))


def _image_steps(steps: list[Step]) -> list[Step]:
    nested = next((step for step in steps if step.get('type') == 'MultiScaleFlipAug'), None)
    return steps if nested is None else nested['transforms']


def _insert_after(steps: list[Step], new: Step, kinds: Sequence[str]) -> None:
    indices = [
        index
        for index, step in enumerate(steps)
        if not hasattr(step, 'get') or kind_of(step) in kinds or kind_of(step).startswith('Load')
    ]
    steps.insert(indices[-1] + 1 if indices else 0, new)


def _normalise_with(steps: list[Step], normalisation: Mapping[str, Sequence[float]]) -> None:
    replaced = {name: list(values) for name, values in normalisation.items()}
    for step in _all_dicts(steps):
        if kind_of(step) in ('Normalize', 'RandomCenterCropPad'):
            step.update(replaced)
    if not has_normalisation(steps):
        new = dict(dict(type='Normalize', mean=[0.0] * 3, std=[1.0] * 3, to_rgb=False), **replaced)
        _insert_after(_image_steps(steps), new, [name for name in IMAGE_STEPS if name != 'Pad'])


def _fit(steps: list[Step], size: tuple[int, int]) -> None:
    inner = _image_steps(steps)
    warps = [step for step in inner if kind_of(step) == 'AffineResize']
    for step in warps:
        step['img_scale'] = size[::-1]
    if not warps:
        if not any(kind_of(step) == 'Resize' for step in inner):
            _insert_after(inner, dict(type='Resize', img_scale=size[::-1], keep_ratio=True), ())
        resize = next(index for index, step in enumerate(inner) if kind_of(step) == 'Resize')
        inner[resize].pop('override', None)  # with it the step would not take the scale that is set
        inner.insert(resize, ScaleToFit(size, inner[resize].get('keep_ratio', True)))
    padded = False
    for index, step in enumerate(inner):
        kind = kind_of(step)
        if kind == 'Pad':
            pad_val = {key: step[key] for key in ('pad_val',) if key in step}
            inner[index] = dict(type='Pad', size=size, **pad_val)
        elif kind == 'RandomCenterCropPad':
            inner[index] = PadAround(step, size)
        padded = padded or kind in ('Pad', 'RandomCenterCropPad')
    if not padded:
        _insert_after(inner, dict(type='Pad', size=size, pad_val=dict(img=0)), IMAGE_STEPS)


class ScaleToFit:
    """A step that sets the scale with which a picture fits into an input, before mmdet's Resize."""

    def __init__(self, size: tuple[int, int], keep_ratio: bool) -> None:
        """Keep the input's (H, W); without `keep_ratio` pictures are stretched."""
        self.size, self.keep_ratio = size, keep_ratio

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results['img'].shape[:2]
        results.pop('scale_factor', None)
        results['scale'] = self.size[::-1]
        if self.keep_ratio and (height > width) != (self.size[0] > self.size[1]):
            results['scale'] = (min(self.size), min(self.size))
        return results


class PadAround:
    """RandomCenterCropPad in test mode to a given size, by mmdet's own method."""

    def __init__(self, step: Mapping[str, Any], size: tuple[int, int]) -> None:
        """Build mmdet's step; `size` is (H, W)."""
        from mmcv.utils import build_from_cfg
        from mmdet.datasets.builder import PIPELINES

        self.step, self.size = build_from_cfg(dict(step), PIPELINES), size

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        image = results['img']
        height, width = image.shape[:2]
        results['img_shape'] = image.shape
        middle = [height // 2, width // 2]
        results['img'], results['border'], _ = self.step._crop_image_and_paste(image, middle, list(self.size))
        results['pad_shape'] = results['img'].shape
        return results


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


# Compares frames and sweeps prepared by a file's rule and by the data set class.


OF_DATASET = 2
"""Number of compared samples of the user's data set."""
EXACT = ('images', 'points', 'timestamp_s', 'camera_times_s', 'scene_token', 'command')
"""Values that have to be equal (`images` unless the data set has a `picture_rtol`)."""
NEAR = ('lidar2img', 'intrinsics', 'ego_pose')
"""Matrices, which data sets keep in float32."""
OPTIONAL = ('ego_pose', 'timestamp_s', 'camera_times_s', 'scene_token', 'command')
"""Values that a data set may lack, see `Frame`."""
MATRIX_RTOL = 2e-6
"""Tolerance of matrices, relative to the largest value: three products of float32."""
RECORD_RTOL = 1e-9
"""Tolerance of a CAN bus record, relative to its largest value (metres): float64."""
READABLE = 'run the proof where data.test.ann_file exists, so that its samples are compared'
"""Advice for a data set that cannot read generated infos."""


def compare_prepared(
    detector: Detector, rule: Any, samples: Collection[Any], unit: str
) -> PreprocessingResult:
    """Compare frames or sweeps prepared by the rule and by the data set class.

    `rule` is `Metadata.preprocess`; `unit` is 'frame' or 'sweep'.
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
            generated = detector.family.data.generated_dataset(folder, detector.cfg, detector.rule)
            notes += _notes_on_generated(detector.cfg, generated)
            try:
                for dataset, index in _generated_moments(detector, generated):
                    compared.append(_compare_moment(detector, rule, dataset, index, folder))
            except UnreadError as unread:
                if not of_dataset:
                    raise DataError(f'{unread} for generated infos; {READABLE}') from unread
                notes.append(f'without generated {unit}s ({one_line(unread)})')
            for dataset, index in of_dataset:
                compared.append(_compare_moment(detector, rule, dataset, index, folder))
    except Mm2OnnxError as raised:
        error = one_line(raised)[:300]
    titles = tuple(title for title, _, _ in compared)
    differences = tuple(difference for _, of_moment, _ in compared for difference in of_moment)
    if absent := dict.fromkeys(name for _, _, missing in compared for name in missing):
        notes.append(f'without {", ".join(absent)}, missing in the samples of the data set')
    return PreprocessingResult(titles, unit, differences, gaps=tuple(notes), error=error)


class UnreadError(Mm2OnnxError):
    """A data set class (`kind`) raised `error`."""

    def __init__(self, kind: str, error: BaseException) -> None:
        reason = f'{type(error).__name__}: {one_line(error)}' if str(error) else type(error).__name__
        super().__init__(f'{kind} of data.test raised {reason[:150]}')


def _notes_on_generated(cfg: Any, generated: Mapping[str, Any]) -> Iterator[str]:
    if generated['pipeline'] != test_pipeline(cfg):
        yield 'without test-time augmentation'
    kind = data_class(test_dataset(cfg).get('type'), 'DATASETS')
    if kind not in (None, data_class(generated['type'], 'DATASETS')) and is_users_class(kind):
        yield f'without {kind.__name__} of data.test: its files have another format'


def _generated_moments(detector: Detector, generated: Mapping[str, Any]) -> Iterator[tuple[Any, int]]:
    cfg = copy.deepcopy(detector.cfg)
    classes = generated.get('classes') or list(detector.classes)
    cfg.data = dict(cfg.get('data') or {}, test=dict(generated, classes=classes))
    try:
        dataset = build_dataset(cfg)
    except Exception as error:  # a user's class raises what it likes
        raise UnreadError(str(generated['type']), root_cause(error)) from error
    yield from ((dataset, index) for index in range(len(dataset)))


def _compare_moment(
    detector: Detector, rule: Any, dataset: Any, index: int, folder: Path
) -> tuple[str, list[PreprocessingDifference], list[str]]:
    family, infos = detector.family, folder / 'moment.pkl'
    expected, data = _read_sample(family, dataset, index, infos)
    try:
        (moment,) = family.data.moments(detector.cfg, rule, infos, getattr(dataset, 'data_root', None))
    except Mm2OnnxError as error:
        place = f'{getattr(dataset, "ann_file", type(dataset).__name__)}: info {index}'
        raise DataError(str(error).replace(f'{infos}: info 0', place)) from error
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise DataError(f'{type(error).__name__}: {error}') from error
    voxels = getattr(rule, 'voxels', rule)
    takes_points = voxels is not None
    picture_rtol = float(getattr(dataset, 'picture_rtol', 0.0))  # of a data set that normalises otherwise
    points_range = _points_range(detector.cfg)
    title, differences, absent = expected.name or f'moment {index}', [], []
    for name, value, got, rtol in _moment_values(expected, moment, picture_rtol):
        if name in family.data.unread_fields or (name == 'points' and not takes_points):
            continue
        if value is None and got is not None and name in OPTIONAL:
            absent.append(name)
            continue
        whole = got
        if name == 'points' and points_range is not None:  # x, y, z lowest, then highest
            ranges = np.array([points_range, voxels.point_cloud_range], np.float32)
            low, high = ranges[:, :3].min(axis=0), ranges[:, 3:].max(axis=0)
            value, got = (
                cloud[((cloud[:, :3] > low) & (cloud[:, :3] < high)).all(1)] for cloud in (value, got)
            )
        if texts := _differing_values(got, value, rtol):
            if name == 'points':
                texts = f'{texts[0]}{_first_named_step(dataset, index, whole)}', texts[1]
            differences.append(PreprocessingDifference(title, name, *texts))
    if texts := _differing_boxes(data):
        differences.append(PreprocessingDifference(title, 'box_type_3d', *texts))
    return title, differences, absent


def _differing_boxes(data: Mapping[str, Any]) -> tuple[str, str] | None:
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
    try:
        content = dict(infos=[dataset.data_infos[index]], metadata=dict(version=''))
        infos.write_bytes(pickle.dumps(content))  # before the sample is read, which may change it
        with loader_errors():
            (data,) = build_loader(dataset, [index], workers_per_gpu=0)
            expected = family.data.frame(data)
    except Mm2OnnxError:
        raise
    except Exception as error:  # a user's class raises what it likes
        raise UnreadError(type(dataset).__name__, error) from error
    return expected, data


def _first_named_step(dataset: Any, index: int, points: np.ndarray) -> str:
    compose = getattr(dataset.pipeline, 'args', [dataset.pipeline])[0]
    try:
        with watched(compose, _points_of_step) as seen:
            dataset[index]
    except Exception:  # a user's class raises what it likes
        return ''
    return first_after(seen, lambda cloud: _differing_values(points, cloud, 0.0) is None)


def _points_of_step(results: Mapping[str, Any]) -> np.ndarray | None:
    cloud = results.get('points')
    return cloud.tensor.numpy().copy() if hasattr(cloud, 'tensor') else None


def _points_range(cfg: Any) -> Sequence[float] | None:
    steps = list(test_pipeline(cfg))
    steps += [inner for step in steps for inner in step.get('transforms', ())]
    ranges = (step['point_cloud_range'] for step in steps if step.get('type') == 'PointsRangeFilter')
    return next(ranges, None)


def _moment_values(
    expected: Frame | Sweep, moment: Frame | Sweep, picture_rtol: float
) -> Iterator[tuple[str, Any, Any, float]]:
    for names, rtol in ((EXACT, 0.0), (NEAR, MATRIX_RTOL), (('can_bus',), RECORD_RTOL)):
        for name in names:
            if name in vars(expected):
                tolerance = picture_rtol if name == 'images' else rtol
                yield name, getattr(expected, name), getattr(moment, name), tolerance
    calibration: Mapping[str, np.ndarray] = getattr(expected, 'calibration', {})
    for name, matrix in calibration.items():
        yield name, matrix, moment.calibration.get(name), MATRIX_RTOL


def _differing_values(got: Any, expected: Any, rtol: float) -> tuple[str, str] | None:
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


# Compares voxels made by a file's rule and by mmcv's `Voxelization`.
#
# Glossary: P points of D values, N voxels.


VOXEL_SOURCE = "mmcv's Voxelization of the config"
GENERATED_SWEEP = 'generated sweep'
FEATURE_RTOL = 1e-5
"""Tolerance of features, relative to the largest of a column: sums of points in another order."""
MAX_GENERATED_VOXELS = 200_000
"""Most voxels of the generated sweep."""


def compare_voxels(
    layer: nn.Module, order: str, in_channels: int, rule: Mapping[str, Any]
) -> PreprocessingResult:
    """Compare the voxel rule in a file with the voxelisation of its model, on a generated sweep.

    Args:
        layer: mmcv's `Voxelization`.
        order: axes of coordinates that the encoder takes, 'xyz' or 'zyx'.
        in_channels: D.
        rule: as `VoxelRule.to_json` returns it.
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
    return [float(entry) for entry in value] if isinstance(value, list | tuple) else value


def _layer_rule(layer: nn.Module, order: str, in_channels: int) -> dict[str, Any]:
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
    rng = np.random.default_rng(0)
    low, high = np.array(rule['point_cloud_range']).reshape(2, 3)
    size = np.array(rule['voxel_size'])
    grid = np.floor((high - low) / size + 0.5).astype(np.int64)
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
