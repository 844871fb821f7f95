"""Errors that a user can act on: each message says what, got, expected and what to do."""

import contextlib
import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator


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


LONGEST = 200
"""Characters of a name or value from a file that a message shows; quotes count."""
UNPRINTABLE = re.compile('[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
"""Control characters, which a terminal would obey; marks that turn or break a line; surrogates."""


def printable(text: object) -> str:
    r"""Return a text as one line in which everything can be printed: r'\x1b' stands for the control 0x1b.

    A byte of a file name that is not UTF-8, which Python keeps as a surrogate, is '\xff', too. Backslashes of
    the text itself stay single.
    """
    return UNPRINTABLE.sub(_escaped, str(text))


def escape(text: object) -> str:
    """Return a text from a file for a console of rich: one line, see `printable`, in which markup is text."""
    from rich import markup

    return markup.escape(printable(text))


def shortened(value: object) -> str:
    """Return a value from a file for a message: printable, and at most `LONGEST` + 3 characters long.

    A text is in quotes; of one that is cut, '...' replaces the end and the closing quote. Of other values
    `reprlib` leaves out what is long before.
    """
    if isinstance(value, str):
        text = repr(printable(value)).replace('\\\\', '\\')  # the escapes of `printable` stay as they are
    else:
        text = printable(reprlib.repr(value))
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'


def one_line(message: object) -> str:
    """Return the text of a message as one line: spaces, tabs and line ends in a row become one space.

    Those at its beginning and end are left out.
    """
    return ' '.join(str(message).split())


def shape_text(shape: Iterable[object]) -> str:
    """Return a shape, with sizes or letters of axes, as text: '1x80xHxW', or 'scalar' for ()."""
    return 'x'.join(map(str, shape)) or 'scalar'


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f'\\x{code - 0xDC00:02x}' if 0xDC80 <= code <= 0xDCFF else ascii(match[0])[1:-1]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return '; did you mean a, b?' with up to three candidates that resemble a name, '' if none does.

    Those that resemble it most come first, then those that contain it.
    """
    candidates = list(candidates)
    similar = difflib.get_close_matches(name, candidates, 3, 0.6)
    similar += [text for text in candidates if name and name in text and text not in similar]
    return f'; did you mean {", ".join(similar[:3])}?' if similar else ''


def on_inputs(count: int) -> str:
    """Return the end of a claim that holds on some inputs alone: 'ON 1 INPUT', 'ON 9 INPUTS'."""
    return f'ON {count} {"INPUT" if count == 1 else "INPUTS"}'


def check_distinct(renames: Iterable[tuple[object, str]]) -> None:
    """Raise CheckpointError if two keys of a file become one name; `renames` are (key, new name) of all."""
    keys: dict[str, object] = {}
    for key, name in renames:
        if name in keys:
            raise CheckpointError(
                f'{keys[name]} and {key} both become {name}; the file holds it twice. Save it again with '
                f'the one that is meant'
            )
        keys[name] = key
