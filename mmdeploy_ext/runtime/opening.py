"""Opening of an exported model by the metadata of its files; needs no PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.metadata import read_metadata
from mmdeploy_ext.core.errors import ModelFileError
from mmdeploy_ext.engines.onnxruntime import OnnxRuntimeBackend
from mmdeploy_ext.preprocess.cam2img import square_matrix
from mmdeploy_ext.runtime.detect import detect, opener, runtime_of
from mmdeploy_ext.runtime.exported import Runtime, model_files

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np

    from mmdeploy_ext.runtime.detections import Detections, Instances


class ImageModel(Runtime):
    """A detector of single pictures whose file is open in ONNX Runtime.

    It is a context manager that closes the file, as `close` does.

    Attributes:
        backend: the open session.
        metadata: metadata of the file. Parts of it are attributes of the model, too: `rule`, how pictures are
            prepared, and `classes`, names by label.
    """

    def __init__(self, path: str | Path, *, providers: Sequence[str], threads: int = 0) -> None:
        """Open the file at `path`, no folder; the arguments, and the errors, are those of `open_model`."""
        super().__init__()
        self.backend = self.enter_context(OnnxRuntimeBackend(str(path), providers, threads))
        self.metadata = self.backend.metadata
        runtime_of(self.metadata.family)

    def __call__(self, image_bgr: np.ndarray, cam2img: np.ndarray | None = None) -> Detections | Instances:
        """Return the results of a picture, in descending order of score; `Segments`, all of score 1, by id.

        They are in its pixels or, in 3D, in metres in the frame that `cam2img` is from.

        Args:
            image_bgr: (h, w, 3) uint8, blue, green, red.
            cam2img: matrix (3, 3), (3, 4) or (4, 4) from the frame of the camera, in metres, or from that of
                the LiDAR for files with the input `lidar2img`, to pixels of the picture times depth, for
                detectors of boxes in 3D; None for others, which do not use it.

        Raises:
            ShapeError, InferenceError: the graph does not take or cannot compute the picture, or a graph
                would read `cam2img` wrongly, whether or not this one takes it.
            UsageError: a detector of boxes in 3D without `cam2img`.
            ValueError: `cam2img` has another shape, or a number that is not finite.
            ModelFileError: the file was exported with a limit of candidates that the picture exceeds.
        """
        return detect(self.backend, image_bgr, None if cam2img is None else square_matrix(cam2img))


def open_model(
    path: str | Path, *, providers: Sequence[str] = ('CPUExecutionProvider',), threads: int = 0
) -> Any:
    """Open an exported file, or a folder of the graphs of one model, in ONNX Runtime.

    Needs no PyTorch. Close the model by `close()` or a `with` statement.

    Args:
        path: path of the `.onnx` file, or of the folder.
        providers: execution providers of ONNX Runtime, in order of preference, or the name of one.
        threads: number of threads within an operator; 0: ONNX Runtime decides.

    Returns:
        Of a model of pictures an `ImageModel`: `model(image_bgr)` with a (h, w, 3) uint8 picture returns
        `Detections` or `Instances` in its pixels, or another class of `Scored`, of turned boxes, boxes in 3D
        or panoptic segments. Of a model of frames or sweeps the runtime of its family: `model.step(frame)`,
        see `mmdeploy_ext.runtime.frames`; `model.reset()` empties a memory.

    Raises:
        ModelFileError: no such file, not written by mm2onnx, a family that is not registered here, or a
            folder without the files of one model.
        ConfigError: the family is registered without a runtime.
        EngineError: an execution provider that is not here.
    """
    files = model_files(str(path))
    metadata = read_metadata(files[-1])
    if metadata.samples == 'images':
        if len(files) > 1:
            raise ModelFileError(f'{path}: has {len(files)} image models; name one of the files')
        return ImageModel(files[0], providers=providers, threads=threads)
    opens = opener(metadata)
    if opens is None:
        raise ModelFileError(f'{path}: the runtime of family {metadata.family!r} has no OPENS')
    return opens(str(path), providers=providers, threads=threads)
