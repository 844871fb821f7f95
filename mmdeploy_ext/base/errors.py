"""Errors that a user can act on."""

import contextlib
import re
import reprlib
from collections.abc import Iterable, Iterator


class Mm2OnnxError(ValueError):
    """Base of all errors that the command line prints as one `error:` line.

    `exit_code` is 2 before the weights are loaded, 1 afterwards.
    """

    exit_code = 1


class UsageError(Mm2OnnxError):
    """A refused option, file or combination; exit status 2, or 1 inside `after_weights`."""

    exit_code = 2


class ConfigError(UsageError):
    """A config that cannot be read or built, is of no known family, or has an unknown setting."""


class CheckpointError(UsageError):
    """A checkpoint that is missing, damaged, unsafe, or of another architecture."""


class ImageError(UsageError):
    """An image that cannot be read or encoded."""


class DataError(UsageError):
    """Missing, damaged or empty data."""


class ModelFileError(UsageError):
    """An ONNX file or folder that is missing, corrupt, of another family, or not ours."""


class LoadError(ModelFileError):
    """An ONNX file that an engine cannot load: a failed proof, exit status 1."""


class EngineError(UsageError):
    """An engine, execution provider or option that is not available here."""


class InferenceError(Mm2OnnxError):
    """An engine is closed, out of memory, failed to run, or returned NaN or infinity."""


class ShapeError(Mm2OnnxError):
    """A tensor, picture or matrix with a name, shape, dtype or value that a graph or model refuses."""


class ExportError(Mm2OnnxError):
    """The exporter or an edit of a graph failed, or its result differs from the options."""


class OpsetError(ExportError):
    """The exporter has no form of an operator at the opset that was asked for."""


class FrozenWarning(UserWarning):
    """A file's results are wrong for an input: its traced code would have taken another branch."""


class AbsentPackageError(ModuleNotFoundError):
    """A package that the user's code imports is missing; exit status 2."""


class RankError(Mm2OnnxError):
    """Another process of a distributed run failed, so this one stops too."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextlib.contextmanager
def named(name: object) -> Iterator[None]:
    """Begin each `Mm2OnnxError` in the block with `name`, such as a file."""
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
    """Give each `Mm2OnnxError` in the block exit status 1, except a RankError."""
    try:
        yield
    except RankError:
        raise
    except Mm2OnnxError as error:
        error.exit_code = 1
        raise


def root_cause(error: BaseException) -> BaseException:
    """First error of a chain; `raise ... from None` begins one."""
    while True:
        earlier = error.__cause__ if error.__suppress_context__ else error.__context__
        if earlier is None:
            return error
        error = earlier


LONGEST = 200
"""Longest name or value from a file in a message."""
UNPRINTABLE = re.compile('[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]')
"""Control characters, bidirectional marks, line separators and surrogates."""


def printable(text: object) -> str:
    r"""One line with unprintable characters as escapes, such as r'\x1b'; backslashes stay single."""
    return UNPRINTABLE.sub(_escaped, str(text))


def escape(text: object) -> str:
    """`printable` text in which rich sees no markup."""
    from rich import markup

    return markup.escape(printable(text))


def shortened(value: object) -> str:
    """Printable repr of a value from a file, cut after `LONGEST` characters."""
    if isinstance(value, str):
        text = repr(printable(value)).replace('\\\\', '\\')  # the escapes of `printable` stay as they are
    else:
        text = printable(reprlib.repr(value))
    return text if len(text) <= LONGEST else f'{text[:LONGEST]}...'


COLOURS = re.compile(r'\x1b\[[0-9;]*m')


def one_line(message: object) -> str:
    """The message without line breaks and the colours of a terminal."""
    return ' '.join(COLOURS.sub('', str(message)).split())


def shape_text(shape: Iterable[object]) -> str:
    """'1x80xHxW', or 'scalar' for ()."""
    return 'x'.join(map(str, shape)) or 'scalar'


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f'\\x{code - 0xDC00:02x}' if 0xDC80 <= code <= 0xDCFF else ascii(match[0])[1:-1]


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """'; did you mean a, b?' with up to three similar candidates, or ''."""
    import difflib

    candidates = list(candidates)
    similar = difflib.get_close_matches(name, candidates, 3, 0.6)
    similar += [text for text in candidates if name and name in text and text not in similar]
    return f'; did you mean {", ".join(similar[:3])}?' if similar else ''


def on_inputs(count: int) -> str:
    return f'ON {count} {"INPUT" if count == 1 else "INPUTS"}'


def check_distinct(renames: Iterable[tuple[object, str]]) -> None:
    """Raise CheckpointError if two keys of a file get the same new name; `renames` are (key, new name)."""
    keys: dict[str, object] = {}
    for key, name in renames:
        if name in keys:
            raise CheckpointError(
                f'{keys[name]} and {key} both become {name}; the file holds it twice. Save it again with '
                f'the one that is meant'
            )
        keys[name] = key
