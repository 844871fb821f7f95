"""Changes in classes of a user's repository: a proof is against these classes, whatever the change is."""

import pytest

import user_changes
from user_changes import REFUSED, SILENT

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize('name', user_changes.MODELS)
def test_no_change_is_silent(name, tmp_path):
    outcomes = list(user_changes.outcomes(name, tmp_path / name))
    assert len(outcomes) >= 10
    assert [entry.change.title for entry in outcomes if entry.kind == SILENT] == []
    for entry in outcomes:
        if entry.kind == REFUSED:
            assert 'My' in entry.words, entry
