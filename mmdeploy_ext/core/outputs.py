"""stdout and stderr of a run, which notice a closed pipe."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from mmdeploy_ext.core.printable import writable


class Output:
    """A stream that is written to without an error when its reader has closed it.

    A broken pipe's error does not say whose it was: that of a worker is an error, stdout's own is none.
    What is written after it goes nowhere, so that no console, no child process and no exit meets it again.
    Loggers and default arguments that were made during the run (of mmcv's ProgressBar) keep it; after the
    run they write to the sys.stdout or sys.stderr of that moment. What a terminal or the encoding cannot take
    is written as an escape, see `writable`.

    Attributes:
        own: the stream, None after the run.
        unread: whether a write found it closed.
    """

    def __init__(self, name: str) -> None:
        """Take the stream of this name in `sys`."""
        self._name, self.own, self.unread = name, getattr(sys, name), False

    @property
    def _stream(self) -> TextIO:
        return self.own or getattr(sys, self._name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write; returns how many characters."""
        with self._noticing():
            self._stream.write(writable(text, getattr(self._stream, 'encoding', None)))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        self.write(''.join(lines))

    def flush(self) -> None:
        """Write what is kept back."""
        with self._noticing():
            self._stream.flush()

    @contextlib.contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self.unread = True
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextlib.contextmanager
def outputs() -> Iterator[tuple[Output, Output]]:
    """Let stdout and stderr notice a closed pipe."""
    before = sys.stdout, sys.stderr
    made = sys.stdout, sys.stderr = Output('stdout'), Output('stderr')
    try:
        yield made
    finally:
        for output in made:
            output.flush()
        sys.stdout, sys.stderr = before
        for output in made:
            output.own = None
