"""stdout and stderr of a run, which notice a closed pipe."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from mmdeploy_ext.core.printable import writable


class ConsoleStream:
    """stdout or stderr, to which one can write without an error after its reader has closed it.

    A BrokenPipeError does not say which pipe broke: only that of a worker is an error.
    Text after the closing is dropped, so that no console, no child process and no exit raises it again.
    Loggers and default arguments that were made during the run (of mmcv's ProgressBar) keep this object;
    after the run they write to the current sys.stdout or sys.stderr. Characters that a terminal or the
    encoding cannot take are written as escapes, see `writable`. Other attributes, such as `buffer`, are those
    of the stream itself, and writing by them does raise the error. If `sys` has no stream, since the program
    was started with a closed one, the text goes to the null device.

    Attributes:
        stream: the one in `sys` during the run, or the null device; None after the run.
        unread: whether a write failed because the reader had closed the stream.
    """

    def __init__(self, name: str) -> None:
        """Take the stream of this name in `sys`, 'stdout' or 'stderr'."""
        self._name, self.stream, self.unread = name, getattr(sys, name), False

    @property
    def _stream(self) -> TextIO:
        stream = self.stream or getattr(sys, self._name)
        if stream is None or stream is self:
            stream = self.stream = open(os.devnull, 'w', encoding='utf-8')  # noqa: SIM115
        return stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text; return the number of its characters, also if a closed pipe has dropped it."""
        with self._noticing():
            self._stream.write(writable(text, getattr(self._stream, 'encoding', None)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts, one behind the other, without line ends between them."""
        self.write(''.join(lines))

    def flush(self) -> None:
        """Write buffered text to the stream; a closed pipe is noted in `unread`, other errors are raised."""
        with self._noticing():
            self._stream.flush()

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.unread = True
            drop_text(self._stream)


def drop_text(stream: TextIO) -> None:
    """Let what a stream of a file has not written yet, and what it will write, go to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


@contextlib.contextmanager
def console_streams() -> Iterator[tuple[ConsoleStream, ConsoleStream]]:
    """Replace `sys.stdout` and `sys.stderr` inside the block; yield both replacements, in this order.

    At its end they are flushed. An error of that, such as a full disk, is raised with the old ones in place.
    """
    before = sys.stdout, sys.stderr
    replacements = sys.stdout, sys.stderr = ConsoleStream('stdout'), ConsoleStream('stderr')
    try:
        yield replacements
    finally:
        try:
            for output in replacements:
                output.flush()
        finally:
            sys.stdout, sys.stderr = before
            for output in replacements:
                output.stream = None
