"""Level 1 of pictures: the rule in a file prepares them as the config's own test pipeline does, to the bit.

Both sides begin with the same file on disk. The rule is read back from the metadata of the exported file, and
the picture by the reader that `mm2onnx run` uses.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdeploy_ext.core.cli import one_line
from mmdeploy_ext.preprocess import pictures
from mmdeploy_ext.preprocess.pictures import PreparedImage
from mmdeploy_ext.proving.inputs.config_pipeline import ConfigPipeline
from mmdeploy_ext.proving.inputs.picture_files import sample_files
from mmdeploy_ext.proving.results import PreprocessingDifference, PreprocessingResult
from mmdeploy_ext.runtime import detect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from mmdeploy_ext.contract.metadata import Metadata

    Feeds = Callable[[PreparedImage, int], Mapping[str, np.ndarray]]

COLLECTED = ('ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip')
"""Values that configs collect beside the tensor; those that one does not collect are not compared."""


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
        metadata: of the exported file.
        files: pictures of the user; none takes the next one.
        picture: (h, w, 3) uint8 BGR, that the proof begins with.
        normalisation: `mean` and `std` that the export was given in place of the config's.
        feeds: (picture of the pipeline, batch) -> inputs that `mm2onnx run` has to make.

    Returns:
        The result, and the pictures of the pipeline, those of `files` first; none where something failed.
    """
    size = fixed_size(metadata)
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
            for sample in samples:
                expected, metas = pipeline_values(pipeline, sample)
                image = prepare_file(metadata, sample)
                differences += compare_values(sample.name, values_of(image), expected)
                prepared.append(as_prepared(expected, metas))
                if feeds:
                    fed = detect.make_feeds(image, metadata)
                    wanted = feeds(prepared[-1], len(next(iter(fed.values()))))
                    names = [name for name in metadata.spec.input_names if name in fed and name in wanted]
                    sides = ({f'input {name}': side[name] for name in names[1:]} for side in (fed, wanted))
                    differences += compare_values(sample.name, *sides)
    except Exception as error:  # mmdet's steps, OpenCV and a damaged rule raise what they like
        words = f'{type(error).__name__}: {one_line(error)[:300]}'
        return dataclasses.replace(result, error=words), []
    names = tuple(sample.name for sample in samples)
    result = dataclasses.replace(result, samples=names, differences=tuple(differences))
    return result, prepared if result.passed else []


def fixed_size(metadata: Metadata) -> tuple[int, int] | None:
    """Return the (H, W) that a file with a fixed size takes, by its options; None of a dynamic file."""
    options = metadata.options
    return None if options['dynamic'] else (options['height'], options['width'])


def prepare_file(metadata: Metadata, file: Path) -> PreparedImage:
    """Return a picture as `mm2onnx run` prepares it for a file; the regions of two graphs have no size."""
    image = pictures.read_image(file)
    axes = metadata.spec.inputs[0].axes
    takes_pictures = len(axes) == 4 and axes[1] == 3
    return detect.prepare(metadata, image) if takes_pictures else metadata.preprocess.apply(image)


def values_of(image: PreparedImage) -> dict[str, Any]:
    """Return what a rule made of a picture, by the names of mmdet's pipelines."""
    return dict(
        tensor=image.tensor,
        ori_shape=image.ori_shape,
        img_shape=image.img_shape,
        pad_shape=image.tensor.shape[1:],
        scale_factor=image.scale_factor,
        border=image.border,
        flip=False,
    )


def pipeline_values(pipeline: ConfigPipeline, file: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the same of the config's pipeline, as far as it collects them, and all that it collects."""
    picture = pipeline(file)
    values = {name: picture.metas[name] for name in COLLECTED if name in picture.metas}
    for name in ('ori_shape', 'img_shape', 'pad_shape'):
        if name in values:
            values[name] = tuple(values[name][:2])
    if 'scale_factor' in values:  # a number without Resize
        values['scale_factor'] = np.broadcast_to(np.asarray(values['scale_factor'], np.float32), 4)
    top, _, left, _ = picture.metas.get('border', (0, 0, 0, 0))
    return dict(values, tensor=picture.tensor, border=(int(top), int(left))), picture.metas


def as_prepared(values: Mapping[str, Any], metas: Mapping[str, Any]) -> PreparedImage:
    """Return what a pipeline made as the samples of a proof have it; else the size of the input."""
    size = values['tensor'].shape[1:]
    return PreparedImage(
        tensor=values['tensor'],
        img_shape=values.get('img_shape', size),
        scale_factor=np.array(values.get('scale_factor', np.ones(4)), np.float32),
        ori_shape=values.get('ori_shape', size),
        border=values['border'],
        collected=metas,
    )


def compare_values(
    sample: str, got: Mapping[str, Any], expected: Mapping[str, Any]
) -> Iterator[PreprocessingDifference]:
    """Yield what differs of a sample: the bits of arrays, and sizes, of all that is expected."""
    for name, wanted in expected.items():
        if isinstance(wanted, np.ndarray):
            words = differing_arrays(np.asarray(got[name]), wanted)
        else:
            words = None if got[name] == wanted else (str(got[name]), str(wanted))
        if words:
            yield PreprocessingDifference(sample, name, *words)


def differing_arrays(got: np.ndarray, expected: np.ndarray) -> tuple[str, str] | None:
    """Return both sides of two arrays in words; None where they are equal to the bit."""
    if (got.dtype, got.shape) != (expected.dtype, expected.shape):
        return tuple(f'{side.dtype} {"x".join(map(str, side.shape))}' for side in (got, expected))
    bits = (np.ascontiguousarray(side).view(f'u{side.itemsize}') for side in (got, expected))
    differs = np.not_equal(*bits)
    if not differs.any():
        return None
    place = tuple(int(axis) for axis in np.argwhere(differs)[0])
    with np.errstate(invalid='ignore'):
        largest = float(np.abs(np.subtract(got, expected, dtype=np.float64)).max())
    count = f'{int(differs.sum()):,} of {differs.size:,} values differ, by {largest:.3g} at most'
    return f'{got[place]:.7g} at {list(place)} ({count})', f'{expected[place]:.7g}'
