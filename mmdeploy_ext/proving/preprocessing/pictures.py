"""Compares pictures prepared by a file's rule and by the config's test pipeline."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mmdeploy_ext.base.config import test_dataset, test_pipeline
from mmdeploy_ext.base.errors import one_line
from mmdeploy_ext.proving.inputs.inputs import sample_files, write_array
from mmdeploy_ext.proving.inputs.samples import is_default
from mmdeploy_ext.runtime import detect
from mmdeploy_ext.runtime.preprocess import pictures
from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage, prepare_image
from mmdeploy_ext.spec.results import PreprocessingDifference, PreprocessingResult
from mmdeploy_ext.upstream.models.building import data_class, makes_samples

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.preparation import PreprocessRule

    Composer = Callable[[Sequence[Any]], Callable[[dict[str, Any]], Any]]
    """Makes the function of one sample from the steps of a pipeline."""
    Step = Any
    """The dict of a step, or a callable that mmdet's `Compose` takes as one."""
    Feeds = Callable[[PreparedImage, int], Mapping[str, np.ndarray]]
    """Takes a prepared picture and a batch size; returns name of an input -> array."""


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
