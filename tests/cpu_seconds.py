"""A pytest plugin: with `--durations`, the CPU seconds of tests, their fixtures and children, by folder."""

import collections
import os

import pytest

COLLECTION = 'collecting'
LISTED_S = 0.005
"""Shortest step that `--durations` lists."""


def is_listed(report: pytest.TestReport) -> bool:
    """Return whether a report says more than that a short set-up or tear-down passed."""
    return report.when == 'call' or not report.passed or report.duration >= LISTED_S


class Meter:
    """Seconds that reports carry from the processes that run tests to the one that prints."""

    def __init__(self) -> None:
        self.spent, self.collection = 0.0, 0.0
        self.by_test = collections.Counter()

    def take(self) -> float:
        """Return the CPU seconds of this process and its ended children since the last call."""
        before, self.spent = self.spent, sum(os.times()[:4])
        return self.spent - before

    def pytest_collection_finish(self) -> None:
        self.collection = self.take()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> object:
        report = yield
        if is_listed(report):  # to ask for the seconds takes a seventh of a millisecond
            report.user_properties.append((COLLECTION, self.collection))
            report.user_properties.append(('cpu', self.take()))
            self.collection = 0.0
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seconds = dict(report.user_properties)
        self.by_test[COLLECTION] += seconds.get(COLLECTION, 0)
        self.by_test[report.nodeid] += seconds.get('cpu', 0)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        folders, files = collections.Counter(), collections.Counter()
        for name, seconds in self.by_test.items():
            file = name.partition('::')[0]
            folders['/'.join(file.split('/')[:3])] += seconds
            files[file] += seconds
        terminalreporter.section(f'CPU seconds: {folders.total():.0f}')
        for counts, lines in ((folders, 20), (files, 60), (self.by_test, 20)):
            for name, seconds in counts.most_common(lines):
                terminalreporter.write_line(f'{seconds:7.1f} {name}')


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption('durations') is not None:
        config.pluginmanager.register(Meter())
