"""The runtime of a family: the module that finishes what its graphs compute, as it was registered.

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

from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.registry import registered
from mmdeploy_ext.core.errors import ConfigError, ModelFileError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

    import numpy as np

    from mmdeploy_ext.contract.metadata import Metadata


def check_registered(family: str) -> None:
    """Raise ModelFileError if nobody has registered the family of this name; it names those that are."""
    if family not in registered():
        raise ModelFileError(
            f'family {family!r} is not registered here; there are {", ".join(sorted(registered()))}. Install '
            f'the package that the file was exported with'
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


def runner_of(family: str, form: str) -> str:
    """Return the command that draws a file's results in pictures, 'run' or a key of `commands.RUNNERS`.

    It is '' if none does: of a family of frames or sweeps, of one that is not registered or has no runtime,
    and of a form that is not in `RUNNERS`.

    Args:
        family: name of the family, as in the metadata of the file.
        form: form of the file, such as 'full' or 'raw', by which `RUNNERS` of the runtime decides; a runtime
            of images without `RUNNERS` has 'run' for every form.
    """
    runtime = runtime_of(family) if has_runtime(family) else None
    if hasattr(runtime, 'RUNNERS'):
        return runtime.RUNNERS.get(form, '')
    takes_pictures = hasattr(runtime, 'detections') and not hasattr(runtime, 'OPENS')
    return 'run' if takes_pictures else ''
