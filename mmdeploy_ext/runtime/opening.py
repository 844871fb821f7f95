"""Open an exported model by its metadata. No PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base.errors import ModelFileError
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.runtime.detect import detect, opener, runtime_of
from mmdeploy_ext.runtime.exported import Runtime, model_files
from mmdeploy_ext.runtime.preprocess.cam2img import square_matrix
from mmdeploy_ext.spec.digest import check_whole
from mmdeploy_ext.spec.metadata import read_metadata

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.runtime.detections import Detections, Instances


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
