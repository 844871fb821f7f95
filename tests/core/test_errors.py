"""Names of files and classes are printed as they are, on one line, without markup or control characters."""

import pytest

from mmdeploy_ext.core import errors


@pytest.mark.parametrize(
    ('text', 'expected'),
    [('a\x1b[31mb', r'a\x1b[31mb'), ('a\nb', r'a\nb'), (r'C:\x', r'C:\x'), ('\udc80', r'\x80')],
)
def test_what_cannot_be_printed_is_an_escape(text, expected):
    assert errors.printable(text) == expected


def test_markup_in_a_name_is_only_a_name():
    from rich.text import Text

    assert Text.from_markup(errors.escape('[red]a[/red]')).plain == '[red]a[/red]'


def test_a_value_is_short_whatever_it_holds():
    assert len(errors.shortened('x' * 9999)) < 300 and len(errors.shortened(list(range(9999)))) < 300
