"""Errors that a user can act on: each message says what, got, expected and what to do."""

import contextlib
from collections.abc import Iterator


class Mm2OnnxError(ValueError):
    """Base of the errors of this project, which the command line prints as one `error:` line.

    `exit_code` is 2 when the input was refused before the weights were loaded, 1 afterwards.
    """

    exit_code = 1


class UsageError(Mm2OnnxError):
    """An option, a file or a combination of them that is refused, before weights are loaded as a rule.

    Where it is raised later, `after_weights` makes its exit status 1.
    """

    exit_code = 2


class ConfigError(UsageError):
    """A config that cannot be read or built or is of no known family, or a setting that there is not."""


class CheckpointError(UsageError):
    """A checkpoint that is missing, damaged, unsafe, or of another architecture."""


class ImageError(UsageError):
    """An image that cannot be read or encoded."""


class DataError(UsageError):
    """Data that are empty, or of which a file or a value is missing, damaged or out of its range.

    Such are data sets, sweeps of points and voxels, calibrations, and the folders of kits.
    """


class ModelFileError(UsageError):
    """An ONNX file or a folder of such files that cannot be used.

    It is missing, corrupt, of another family or export, or not written by this project.
    """


class LoadError(ModelFileError):
    """An ONNX file that an engine can read but not load.

    The proof of such a file fails with this reason, exit status 1; other commands refuse the file.
    """


class EngineError(UsageError):
    """An engine, execution provider or option of it that is not available here."""


class InferenceError(Mm2OnnxError):
    """An engine that is closed, lacks room on a GPU, failed to run a file, or gave NaN or similar results."""


class ShapeError(Mm2OnnxError):
    """A tensor, picture or matrix that is missing, or that a graph or model does not take.

    It refuses its name, shape or dtype, or a value in it, such as a size of 0.
    """


class ExportError(Mm2OnnxError):
    """The exporter or an edit of a graph failed, or wrote something else than the options state."""


class AbsentPackageError(ModuleNotFoundError):
    """A package that the user's code calls is not installed; the message has the pip command.

    The command line prints it as one `error:` line, too, and ends with exit status 2.
    """


class RankError(Mm2OnnxError):
    """Another process of a distributed run failed, so this one stops too."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        """Keep the message, and the exit status of the process that failed."""
        super().__init__(message)
        self.exit_code = exit_code


@contextlib.contextmanager
def named(name: object) -> Iterator[None]:
    """Let the message of every `Mm2OnnxError` in the block begin with `name`: a file, or a frame of one.

    The class, which has to take the message alone, and the exit status stay; a message that begins with the
    name already stays, too.
    """
    try:
        yield
    except Mm2OnnxError as error:
        if str(error).startswith(f'{name}: '):
            raise
        about = type(error)(f'{name}: {error}')
        about.exit_code = error.exit_code
        raise about from error


@contextlib.contextmanager
def after_weights() -> Iterator[None]:
    """Give every `Mm2OnnxError` in the block exit status 1: the weights are loaded there.

    A `RankError` keeps that of the process that failed.
    """
    try:
        yield
    except RankError:
        raise
    except Mm2OnnxError as error:
        error.exit_code = 1
        raise


def root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain; registries and data sets raise it again, with less in it.

    `raise ... from None` begins a chain: Python's "'x' is not a package" is raised so while it handles a
    missing attribute.
    """
    while True:
        earlier = error.__cause__ if error.__suppress_context__ else error.__context__
        if earlier is None:
            return error
        error = earlier
