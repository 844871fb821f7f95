"""Test pictures by a data set class of the user's, without its annotations.

Nothing of `mmdeploy_ext/preprocess` is called here, as in `ConfigPipeline`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    Composer = Callable[[Sequence[Any]], Callable[[dict[str, Any]], Any]]
    """Takes the steps of a pipeline and returns the function of one sample that they make."""

OF_LOADERS = ('type', 'samples_per_gpu', 'pipeline', 'test_mode')
"""Keys of `data.test` that are no arguments of its class, and those that `UsersDataset` gives itself."""


class UsersDataset:
    """A data set of the user's that makes a picture as its class does, with a pipeline that fits an input.

    Its class is built as a config builds it, by its own `__init__`; only its annotations and
    proposals are not read.

    Attributes:
        dataset: the data set, an object of a class derived from the user's.
        info: what its annotations say of the picture that is prepared; {} before the first.
    """

    def __init__(
        self, kind: type, settings: Mapping[str, Any], composer: Composer, boxes: NDArray[Any]
    ) -> None:
        """Build the class `kind` by the settings of `data.test`.

        `composer` gets the steps that the class hands on, in the place of mmdet's `Compose`; `boxes` (n, 4)
        are the proposals of each picture.

        Raises:
            Exception: whatever the class raises.
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
        """Return the sample of the picture that `info` names by `filename`, as its test loop gets it.

        Raises:
            Exception: whatever the class or a step raises.
        """
        height, width = cv2.imread(str(info['filename'])).shape[:2]
        file_name = Path(info['filename']).name
        self.info = dict(info, id=0, file_name=file_name, height=height, width=width)
        self.dataset.data_infos = [self.info]
        return self.dataset[0]


@contextlib.contextmanager
def _composed_by(kind: type, composer: Composer) -> Iterator[None]:
    """Put `composer` in the place of `Compose` in the modules of a data set's classes, and restore them."""
    modules = [sys.modules[base.__module__] for base in kind.__mro__]
    originals = {module: vars(module)['Compose'] for module in modules if 'Compose' in vars(module)}
    try:
        for module in originals:
            module.Compose = composer
        yield
    finally:
        for module, original in originals.items():
            module.Compose = original
