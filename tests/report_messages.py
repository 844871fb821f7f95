"""A pytest plugin: of a test that passed, a worker of xdist sends two messages instead of six.

Each is written, sent, read and reported, by two processes. Left out is what no output shows: when a test
begins and ends, set-ups and tear-downs that passed in less time than `--durations` lists, and of reports of
what passed their keywords and what was printed. With -v, -rP or -rA nothing is left out.
"""

from collections.abc import Callable
from typing import Any

import pytest

from cpu_seconds import LISTED_S


class FewMessages:
    """Stands for the method of a worker that sends events.

    Attributes:
        send: the method.
    """

    def __init__(self, send: Callable[..., None]) -> None:
        self.send = send

    def __call__(self, name: str, **values: Any) -> None:
        """Send an event, or less of it, or nothing."""
        if name in ('logstart', 'logfinish'):
            return
        data = values.get('data')
        if name == 'testreport' and data['outcome'] == 'passed':
            if data['when'] != 'call' and data['duration'] < LISTED_S:
                return
            data.update(keywords={}, sections=[])
        self.send(name, **values)


def pytest_sessionstart(session: pytest.Session) -> None:
    options = session.config.option
    if options.verbose > 0 or {'P', 'A'} & set(options.reportchars):
        return
    for plugin in session.config.pluginmanager.get_plugins():
        if type(plugin).__name__ == 'WorkerInteractor':
            plugin.sendevent = FewMessages(plugin.sendevent)
