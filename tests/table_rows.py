"""A pytest plugin: tests record rows of tables, `record_property(ROW, text)`, which end the run's output."""

import pytest

ROW = 'row of a table'


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = [
        text
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, text in getattr(report, 'user_properties', ())
        if name == ROW and report.when == 'call'
    ]
    if rows:
        terminalreporter.section('tables')
        for row in rows:
            terminalreporter.write_line(row)
