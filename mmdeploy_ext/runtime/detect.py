"""One picture through a file of any form: preparation, the graph, and the runtime of its family.

The runtime of a family of images has `detections(metadata, outputs, feeds)`, which returns the results of
each image of a batch, from the outputs and inputs of a file by name (`feeds` may have more than the graph
takes, such as sizes of the images) and from its metadata, whatever its form is. If its results are not boxes
and masks, it may have `draw(image_bgr, results, classes, score_thr)`, and `RESULT`, their class, a dataclass
of arrays and what JSON can hold, without which there are no kits. It may have `RUNNERS`: form of a file ->
the command that draws its results, a key of `commands.RUNNERS`; and `CAMERA`, 'cam2img', if `detections`
reads the cameras of the pictures from `feeds` also of a form whose graph does not take them.

The runtime of a family of frames or sweeps has `OPENS`, a class that runs the files of an export or a
function that returns an object of one, called with the path and options of the engine, and
`boxes_of_outputs(metadata, outputs)`, which returns the boxes of a frame, best first, from the metadata and
the outputs of the last file; it runs no file. If one of these graphs is fed by the others and has the layers
that `quantize.py` puts in INT8, `QUANTISED` is its name, and `feeds` of the class returns its inputs for a
sample.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.contract.metadata import Entries
from mmdeploy_ext.contract.registry import program_loop, registered
from mmdeploy_ext.core.errors import ConfigError, InferenceError, ModelFileError, UsageError
from mmdeploy_ext.preprocess.cam2img import (
    CAMERA,
    PROJECTION,
    camera_key,
    check_camera,
    check_projection,
    original,
    unmoved,
)
from mmdeploy_ext.runtime.detections import check_ranges

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import ModuleType

    from mmdeploy_ext.contract.metadata import Metadata
    from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
    from mmdeploy_ext.preprocess.pictures import PreparedImage
    from mmdeploy_ext.runtime.detections import Detections, Instances


def detect(
    backend: OnnxRuntimeBackend, image_bgr: np.ndarray, cam2img: np.ndarray | None = None
) -> Detections | Instances:
    """Return the results of a file in an image, best first, whatever its form is.

    Boxes and masks are in pixels of the image, boxes in 3D in metres, in the frame that `cam2img` is from.
    The class of the results is that of the family's runtime, which may be another `Scored`, such as
    `MonocularDetections`. `Segments` have no scores of their own and are in the order of their `ids`.

    Args:
        backend: an active session of the file.
        image_bgr: (h, w, 3) uint8 BGR.
        cam2img: (4, 4) from the camera's frame in metres, or from the LiDAR's for a file with the input
            `lidar2img`, to pixels of the image times depth, for detectors of boxes in 3D; None for others,
            which do not use it.

    Raises:
        UsageError: a detector of boxes in 3D without a camera.
        ShapeError: no such image, a camera that a graph would read wrongly, or an image of a size that the
            graph does not take.
        InferenceError: the engine failed, or a score of a result is NaN, or any value of an output that is
            compared value by value, such as logits; every threshold would leave an empty list. Or a box or
            another value of a result is NaN or infinite, a score is not in 0..1, or a label is of no class.
        ModelFileError: the file was exported with a limit of candidates that the image exceeds.
    """
    metadata = backend.metadata
    if cam2img is None and (name := camera_of(metadata)):
        raise UsageError(
            f'{backend.path}: takes the camera of each picture ({name}), none was named; with '
            f'`mm2onnx run` name a file by --cameras, in Python `model(image_bgr, cam2img)`'
        )
    feeds = make_feeds(prepare(metadata, image_bgr, cam2img), metadata)
    computed = backend.infer(backend.select_inputs(feeds))
    compared = [tensor.name for tensor in metadata.spec.outputs if tensor.compare == 'values']
    problem = f'{backend.path}: the network gave NaN, of which no result means anything'
    if any(np.isnan(computed[name]).any() for name in compared):
        raise InferenceError(problem)
    outputs = Entries(computed, f'{backend.path}: the graph of mm2onnx.form {metadata.form!r}')
    results = results_of(metadata.family, metadata, outputs, feeds)[0]
    if np.isnan(results.scores).any():
        raise InferenceError(problem)
    for field in dataclasses.fields(results):
        values = getattr(results, field.name)
        if isinstance(values, np.ndarray) and values.dtype.kind == 'f' and not np.isfinite(values).all():
            raise InferenceError(f'{backend.path}: results have {field.name} that are NaN or infinite')
    check_ranges(results, len(metadata.classes), str(backend.path))
    return results


def prepare(metadata: Metadata, image_bgr: np.ndarray, cam2img: np.ndarray | None = None) -> PreparedImage:
    """Resize, pad and normalise by the rule in a file's metadata, to the size of a graph with a fixed shape.

    `image_bgr` is (h, w, 3) uint8, else ShapeError; `cam2img` its camera (4, 4), or None. `cam2img` of the
    result is for pixels of the network input.
    """
    height, width = metadata.spec.inputs[0].axes[2:]
    rule = metadata.preprocess
    if isinstance(height, int) and isinstance(width, int):
        rule = dataclasses.replace(rule, size=(height, width))
    prepared = rule.apply(image_bgr)
    return prepared if cam2img is None else prepared.with_camera(cam2img)


BESIDE = ('img_shape', 'scale_factor', 'border', 'orig_target_sizes', 'ori_shape')
"""Names that `make_feeds` returns besides that of the picture, for what `PreparedImage` has of it.

`img_shape` (B, 2) is height, width of the content before padding, `border` (B, 2) the rows of padding above
it and the columns left of it, pixels of the network input; `scale_factor` (B, 4) `w h w h` is network input
over original; these are float32. `ori_shape` is height, width of the original, `orig_target_sizes` (B, 2) the
same as width, height; these are int64."""


def make_feeds(prepared: PreparedImage, metadata: Metadata) -> dict[str, np.ndarray]:
    """Return name -> every input that a graph may have, but proposals, for one prepared image.

    Besides the picture (B, 3, H, W), named like the first input, these are `BESIDE`, and of a picture with a
    camera those of `camera_feeds`. By the file's `metadata` each is repeated for a graph of a fixed batch B;
    of others B is 1. `ori_shape` alone has no axis of the batch, and is (2,), unless the graph takes one per
    picture.
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
    """Return the camera (4, 4) of a picture by the name of the input that takes it.

    `camera` goes to pixels of the network input times depth; `name` is that of the input: `lidar2img`, which
    takes it for pixels of the picture before it is resized, or else `cam2img`, which takes it as it is, with
    `unmoved_cam2img`, the same without padding or warp, beside it. Both inputs are float32; `unmoved_cam2img`
    is float64, and no input: results are drawn with it. `prepared` is the picture. ShapeError: the graph
    would read it wrongly.
    """
    if name == PROJECTION:
        lidar2img = original(camera, prepared.to_input).astype(np.float32)
        check_projection(lidar2img)
        return {PROJECTION: lidar2img}
    cam2img = camera.astype(np.float32)
    check_camera(cam2img)
    return {CAMERA: cam2img, 'unmoved_cam2img': unmoved(camera, prepared.to_input, prepared.scale_factor)}


def check_registered(family: str) -> None:
    """Raise ModelFileError if nobody has registered the family of this name; it names those that are."""
    if family not in registered():
        raise ModelFileError(
            f'family {family!r} is not registered here; there are {", ".join(sorted(registered()))}. Install '
            f'the package that the file was exported with, or export it again'
        )


def runtime_of(family: str) -> ModuleType:
    """Return the runtime of a family, which is given by its name, such as 'corner'.

    Raises:
        ModelFileError: nobody has registered the family; the message names those that are.
        ConfigError: it was registered without a runtime, or with a module that is none.
        ImportError: the module of its runtime is not there.
    """
    check_registered(family)
    return registered()[family].load_runtime()


def opener(metadata: Metadata) -> Callable[..., Any] | None:
    """Return what opens the files of frames or sweeps: the program's loop, or `OPENS` of the family.

    It is called with the path and options of the engine; None: the family gives no boxes. `metadata` are
    those of a file; for the errors see `runtime_of`.
    """
    loop = program_loop(metadata.family, metadata.options.get('contract', ''))
    return loop or getattr(runtime_of(metadata.family), 'OPENS', None)


def results_of(
    family: str, metadata: Metadata, outputs: Mapping[str, np.ndarray], feeds: Mapping[str, np.ndarray]
) -> list[Any]:
    """Return the results of each image of a batch by `detections` of a family's runtime.

    Args:
        family: name of the family.
        metadata: metadata of the file.
        outputs: its outputs by name.
        feeds: its inputs by name, and what else the runtime reads.

    Raises:
        ConfigError: the runtime of another package gives something else than a list of `Rows`, or results
            that are not in descending order of score.
        Exception: whatever the runtime raises.
    """
    import numpy as np

    from mmdeploy_ext.runtime.detections import Rows

    runtime = runtime_of(family)
    results = runtime.detections(metadata, outputs, feeds)
    if runtime.__name__.startswith(f'{__name__.partition(".")[0]}.'):
        return results
    broken = f'detections of {runtime.__name__}'
    if not isinstance(results, list | tuple) or not all(isinstance(entry, Rows) for entry in results):
        refused = results if not isinstance(results, list | tuple) else next(iter(results), None)
        raise ConfigError(
            f'{broken} gives {type(results).__name__} of {type(refused).__name__}; expected a list with a '
            f'Rows of mmdeploy_ext.runtime.detections per image'
        )
    if any(np.any(np.diff(entry.scores) > 0) for entry in results):
        raise ConfigError(f'{broken} gives results in another order than the best first')
    return results


def camera_of(metadata: Metadata) -> str:
    """Return the name of the cameras that results of a file of pictures need, '' if they need none.

    It is that of the input of its graph that takes them, or else `CAMERA` of the runtime of its family.
    `metadata` are those of the file. Errors: see `runtime_of`.
    """
    from mmdeploy_ext.preprocess.cam2img import camera_key

    return camera_key(metadata.spec.input_names) or getattr(runtime_of(metadata.family), 'CAMERA', '')


def has_runtime(family: str) -> bool:
    """Return whether the family of this name is registered, and with a runtime."""
    return family in registered() and bool(registered()[family].runtime)


def runner_of(family: str, form: str, inputs: Collection[str] = ()) -> str:
    """Return the command that draws a file's results in pictures, 'run' or a key of `commands.RUNNERS`.

    It is '' if none does: of a family of frames or sweeps, of one that is not registered or has no runtime,
    of a form that is not in `RUNNERS`, and of a file that takes proposals, which pictures come without.

    Args:
        family: name of the family, as in the metadata of the file.
        form: form of the file, such as 'full' or 'raw', by which `RUNNERS` of the runtime decides; a runtime
            of images without `RUNNERS` has 'run' for every form.
        inputs: names of the inputs of the file.
    """
    if 'proposals' in inputs:
        return ''
    runtime = runtime_of(family) if has_runtime(family) else None
    if hasattr(runtime, 'RUNNERS'):
        return runtime.RUNNERS.get(form, '')
    takes_pictures = hasattr(runtime, 'detections') and not hasattr(runtime, 'OPENS')
    return 'run' if takes_pictures else ''
