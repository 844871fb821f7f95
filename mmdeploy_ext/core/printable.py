"""Names and texts of files, messages of errors, and shapes, as they are printed."""

import difflib
import re
import reprlib
from collections.abc import Iterable

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
