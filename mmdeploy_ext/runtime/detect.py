"""One picture through a file of any form: preparation, the graph, and the runtime of its family.

A runtime of images has `detections(metadata, outputs, feeds)` -> results per image. Optional:
`draw(image_bgr, results, classes, score_thr)`; `RESULT`, the results' dataclass, for kits; `RUNNERS`, form ->
key of `commands.RUNNERS`; `CAMERA`, 'cam2img', if only `detections` reads cameras.

A runtime of frames or sweeps has `OPENS(path, **options)`, which opens an export, and
`boxes_of_outputs(metadata, outputs)` -> boxes of a frame, best first, from the last file. `QUANTISED` names
the graph for INT8; `feeds` of the opened object gives its inputs for a sample.
"""

from __future__ import annotations

import dataclasses
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.base.errors import (
    ConfigError,
    InferenceError,
    Mm2OnnxError,
    ModelFileError,
    UsageError,
    one_line,
)
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.runtime.detections import check_ranges, with_labels
from mmdeploy_ext.runtime.exported import Runtime, model_files
from mmdeploy_ext.runtime.preprocess.cam2img import (
    CAMERA,
    PROJECTION,
    camera_key,
    check_camera,
    check_projection,
    original,
    square_matrix,
    unmoved,
)
from mmdeploy_ext.runtime.preprocess.pictures import prepare_image
from mmdeploy_ext.spec.digest import check_whole
from mmdeploy_ext.spec.metadata import Entries, read_metadata
from mmdeploy_ext.spec.registry import (
    driving_advice,
    find_registration,
    program_loop,
    registered,
    registration_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    from mmdeploy_ext.runtime.detections import Detections, Instances
    from mmdeploy_ext.runtime.preprocess.pictures import PreparedImage
    from mmdeploy_ext.spec.metadata import Metadata
    from mmdeploy_ext.spec.preparation import PreprocessRule


def detect(
    backend: OnnxRuntimeBackend, image_bgr: np.ndarray, cam2img: np.ndarray | None = None
) -> Detections | Instances:
    """Results of a file in an image, best first, in pixels; 3D boxes in metres of the frame of `cam2img`.

    `image_bgr` is (h, w, 3) uint8, `cam2img` (4, 4) from metres to pixels times depth.

    Raises:
        ShapeError: a malformed image or camera, or a size that the graph does not take.
        InferenceError: the engine failed, or an output is NaN, infinite or out of range.
        ModelFileError: more candidates than the file's limit.
    """
    metadata = backend.metadata
    if cam2img is None and (name := camera_of(metadata)):
        raise UsageError(
            f'{backend.path}: needs the camera matrix of each image ({name}); pass a file with --cameras '
            'to `mm2onnx run`, or in Python `model(image_bgr, cam2img)`'
        )
    feeds = make_feeds(prepare(metadata, image_bgr, cam2img), metadata)
    computed = backend.infer(backend.select_inputs(feeds))
    compared = [tensor.name for tensor in metadata.spec.outputs if tensor.compare == 'values']
    problem = f'{backend.path}: the network returned NaN, so its results are meaningless'
    if any(np.isnan(computed[name]).any() for name in compared):
        raise InferenceError(problem)
    outputs = Entries(computed, f'{backend.path}: the graph of mm2onnx.form {metadata.form!r}')
    results = results_of(metadata.family, metadata, outputs, feeds)[0]
    if np.isnan(results.scores).any():
        raise InferenceError(problem)
    for field in dataclasses.fields(results):
        values = getattr(results, field.name)
        if isinstance(values, np.ndarray) and values.dtype.kind == 'f' and not np.isfinite(values).all():
            raise InferenceError(f'{backend.path}: results have NaN or infinite {field.name}')
    check_ranges(results, len(metadata.classes), str(backend.path))
    return results


def prepare(metadata: Metadata, image_bgr: np.ndarray, cam2img: np.ndarray | None = None) -> PreparedImage:
    """Resize, pad and normalise (h, w, 3) uint8 by a file's rule; `cam2img` is (4, 4) or None."""
    prepared = prepare_image(rule_of_size(metadata), image_bgr)
    return prepared if cam2img is None else prepared.with_camera(cam2img)


def rule_of_size(metadata: Metadata) -> PreprocessRule:
    """The rule of a file, with the size of a graph of fixed shape."""
    image = metadata.spec.inputs[0]
    height, width = (image.axes[place] for place in image.sides)
    if isinstance(height, int) and isinstance(width, int):
        return dataclasses.replace(metadata.preprocess, size=(height, width))
    return metadata.preprocess


BESIDE = ('img_shape', 'scale_factor', 'border', 'orig_target_sizes', 'ori_shape')
"""Further names of `make_feeds`.

float32, pixels of the network input: `img_shape` (B, 2) height, width before padding; `border` (B, 2) rows
above, columns left; `scale_factor` (B, 4) `w h w h`, input / original. int64: `ori_shape` height, width and
`orig_target_sizes` (B, 2) width, height of the original.
"""


def make_feeds(prepared: PreparedImage, metadata: Metadata) -> dict[str, np.ndarray]:
    """Every input that a graph may take, except proposals, for one image.

    The picture (B, 3, H, W) has the first input's name; `BESIDE` and `camera_feeds` follow, repeated for a
    fixed batch B.
    """
    image = metadata.spec.inputs[0]
    repeats = image.axes[0] if isinstance(image.axes[0], int) else 1
    ori_shape = np.asarray(prepared.ori_shape, np.int64)
    feeds = {
        image.name: prepared.tensor,
        'img_shape': np.asarray(prepared.img_shape, np.float32),
        'scale_factor': prepared.scale_factor,
        'border': np.asarray(prepared.border, np.float32),
        'orig_target_sizes': ori_shape[::-1],
    }
    if (camera := prepared.cam2img) is not None:
        feeds |= camera_feeds(camera, prepared, camera_key(metadata.spec.input_names))
    feeds = {name: np.stack([array] * repeats) for name, array in feeds.items()}
    is_batched = any(tensor.name == 'ori_shape' and len(tensor.axes) > 1 for tensor in metadata.spec.inputs)
    return dict(feeds, ori_shape=np.stack([ori_shape] * repeats) if is_batched else ori_shape)


def camera_feeds(camera: np.ndarray, prepared: PreparedImage, name: str) -> dict[str, np.ndarray]:
    """Camera (4, 4) under the name of its input, float32, to pixels of the network input times depth.

    `lidar2img` is for the picture before the resize; `unmoved_cam2img` (float64, no padding or warp) for
    drawing.
    """
    if name == PROJECTION:
        lidar2img = original(camera, prepared.to_input).astype(np.float32)
        check_projection(lidar2img, prepared.ori_shape)
        return {PROJECTION: lidar2img}
    check_camera(original(camera, prepared.to_input), prepared.ori_shape)
    unmoved_camera = unmoved(camera, prepared.to_input, prepared.scale_factor)
    return {CAMERA: camera.astype(np.float32), 'unmoved_cam2img': unmoved_camera}


def check_registered(family: str) -> None:
    if find_registration(family) is None:
        raise ModelFileError(
            f'family {family!r} is not installed; there are {", ".join(sorted(registered()))}. Install '
            f'the package that has it{f" ({advice})" if (advice := driving_advice()) else ""}, or export the '
            'file again'
        )


def runtime_of(family: str) -> ModuleType:
    """Runtime module of a family; ModelFileError: not registered. ConfigError: it has none."""
    check_registered(family)
    return registration_of(family).load_runtime()


def opener(metadata: Metadata) -> Callable[..., Any] | None:
    """Opener of files of frames or sweeps, see `OPENS`; None: the family gives no boxes."""
    loop = program_loop(metadata.family, metadata.options.get('contract', ''))
    return loop or getattr(runtime_of(metadata.family), 'OPENS', None)


def results_of(
    family: str, metadata: Metadata, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
) -> list[Any]:
    import numpy as np

    from mmdeploy_ext.runtime.detections import Rows

    outputs = with_labels(outputs)
    runtime = runtime_of(family)
    if runtime.__name__.startswith(f'{__name__.partition(".")[0]}.'):
        return runtime.detections(metadata, outputs, feeds)
    try:
        results = runtime.detections(metadata, outputs, feeds)
    except Mm2OnnxError:
        raise
    except Exception as error:
        place = _place_in(runtime, error)
        raise InferenceError(f'{place}: {type(error).__name__}: {one_line(error)}') from error
    broken = f'detections of {runtime.__name__}'
    if not isinstance(results, list | tuple) or not all(isinstance(entry, Rows) for entry in results):
        refused = results if not isinstance(results, list | tuple) else next(iter(results), None)
        raise ConfigError(
            f'{broken} returns {type(results).__name__} of {type(refused).__name__}; expected a list with '
            'one Rows of mmdeploy_ext.runtime.detections per image'
        )
    if any(np.any(np.diff(entry.scores) > 0) for entry in results):
        raise ConfigError(f'{broken} does not return results by descending score')
    return results


def _place_in(runtime: ModuleType, error: Exception) -> str:
    """Return the last line of the runtime's package that an error went through, FILE:LINE."""
    package = runtime.__name__.partition('.')[0]
    places = [
        f'{frame.f_code.co_filename}:{line}, in {frame.f_code.co_name}'
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get('__name__', '').partition('.')[0] == package
    ]
    return places[-1] if places else f'detections of {runtime.__name__}'


def camera_of(metadata: Metadata) -> str:
    """Name of the cameras that results need, or ''."""
    from mmdeploy_ext.runtime.preprocess.cam2img import camera_key

    return camera_key(metadata.spec.input_names) or getattr(runtime_of(metadata.family), 'CAMERA', '')


def has_runtime(family: str) -> bool:
    return bool(registration_of(family).runtime)


def runner_of(family: str, form: str, inputs: Collection[str] = ()) -> str:
    """Command that draws a file's results: 'run', a key of `commands.RUNNERS`, or ''."""
    if 'proposals' in inputs:
        return ''
    runtime = runtime_of(family) if has_runtime(family) else None
    if hasattr(runtime, 'RUNNERS'):
        return runtime.RUNNERS.get(form, '')
    takes_pictures = hasattr(runtime, 'detections') and not hasattr(runtime, 'OPENS')
    return 'run' if takes_pictures else ''


# Open an exported model by its metadata.


class ImageModel(Runtime):
    """An image detector in ONNX Runtime; a context manager with `metadata`, `rule` and `classes`."""

    def __init__(self, path: str | Path, *, providers: Sequence[str], threads: int = 0) -> None:
        super().__init__()
        self.backend = self.enter_context(OnnxRuntimeBackend(str(path), providers, threads))
        self.metadata = self.backend.metadata
        runtime_of(self.metadata.family)

    def __call__(self, image_bgr: np.ndarray, cam2img: np.ndarray | None = None) -> Detections | Instances:
        """Results of an image, best first, in pixels; 3D in metres in the frame of `cam2img`.

        Args:
            image_bgr: (h, w, 3) uint8.
            cam2img: (3, 3), (3, 4) or (4, 4), metres of the camera frame (`lidar2img`: LiDAR frame) to pixels
                times depth, for 3D boxes.

        Raises:
            ShapeError, InferenceError: the graph cannot run the image or camera.
            UsageError: `cam2img` missing for 3D.
            ValueError: malformed `cam2img`.
            ModelFileError: more candidates than the file's limit.
        """
        return detect(self.backend, image_bgr, None if cam2img is None else square_matrix(cam2img))


def open_model(
    path: str | Path, *, providers: Sequence[str] = ('CPUExecutionProvider',), threads: int = 0
) -> Any:
    """Open an exported file, or folder of one model's graphs, in ONNX Runtime, without PyTorch.

    Args:
        path: `.onnx` file or folder.
        providers: execution providers in order.
        threads: per operator; 0: ONNX Runtime decides.

    Returns:
        For 2D models an `ImageModel`: `model(image_bgr)` with (h, w, 3) uint8 returns `Detections`,
        `Instances` or another `Scored`. For frames and sweeps the family's runtime: `model.step(frame)`, see
        `mmdeploy_ext.runtime.frames`, and `model.reset()`. Close it by `close()` or `with`.

    Raises:
        ModelFileError: missing, damaged, not by mm2onnx, unknown family, or an incomplete folder.
        ConfigError: the family has no runtime.
        EngineError: missing provider.
    """
    files = model_files(str(path))
    for file in files:
        check_whole(file)
    metadata = read_metadata(files[-1])
    if metadata.samples == 'images':
        if len(files) > 1:
            raise ModelFileError(f'{path}: has {len(files)} image models; name one of the files')
        return ImageModel(files[0], providers=providers, threads=threads)
    opens = opener(metadata)
    if opens is None:
        raise ModelFileError(
            f'{path}: family {metadata.family!r} cannot be opened, as its runtime module has no OPENS'
        )
    return opens(str(path), providers=providers, threads=threads)
