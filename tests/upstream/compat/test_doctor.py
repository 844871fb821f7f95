"""The doctor: verdicts, fixes, exit codes, and that it needs nothing that it checks."""

import json
import re
from pathlib import Path

import pytest

from mmdeploy_ext.upstream.compat import doctor
from mmdeploy_ext.upstream.compat.doctor import Finding

REPO = Path(__file__).resolve().parents[3]


def pins():
    text = '\n'.join(path.read_text() for path in REPO.glob('requirements/*.txt'))
    return {
        name.lower().replace('_', '-'): version
        for name, version in re.findall(r'^([\w-]+)==(\S+)$', text, re.MULTILINE)
    }


def test_expected_versions_are_those_of_the_requirement_files():
    for name, version in (doctor.RUNTIME | doctor.GRAPHS | doctor.EXPORT | doctor.FROZEN).items():
        assert pins()[name] == version, name


@pytest.mark.parametrize(
    ('found', 'frozen', 'verdict'),
    [
        ('1.7.2+cpu', True, 'ok'),
        ('2.1.0', True, 'problem'),
        ('2.1.0', False, 'differs'),
        (None, False, 'problem'),
    ],
)
def test_version_verdicts(monkeypatch, found, frozen, verdict):
    monkeypatch.setattr(doctor, 'installed_version', lambda name: found)
    finding = doctor.check_version('mmdet', '1.7.2', frozen)
    assert finding.verdict == verdict
    assert ('mmdet==1.7.2' in finding.fix) == (verdict != 'ok')
    assert ('--no-deps' in finding.fix) == (frozen and verdict != 'ok')


def test_an_environment_without_a_compiler_has_mmcv_under_another_name_and_says_so(monkeypatch):
    monkeypatch.setattr(doctor, 'installed_version', dict(mmcv='1.7.2').get)
    finding = doctor.check_version('mmcv-full', '1.7.2', frozen=True)
    assert (finding.name, finding.found, finding.verdict) == ('mmcv', '1.7.2', 'ok')
    operators = [Finding(doctor.OPERATORS, found) for found in ('compiled', doctor.PLAIN)]
    assert [doctor.PLAIN in doctor.summary([finding, probe]) for probe in operators] == [False, True]


@pytest.mark.parametrize(('verdict', 'status'), [('differs', 0), ('absent', 0), ('problem', 1)])
def test_exit_status_report_and_json(monkeypatch, capsys, tmp_path, verdict, status):
    monkeypatch.setattr(
        doctor,
        'examine',
        lambda *args, **kwargs: [
            Finding('mmdet', '3.0', '2.28.2', verdict, 'pip install mmdet'),
            Finding(doctor.PATCHES, 'numpy_aliases'),
        ],
    )
    assert doctor.main(['--json', str(tmp_path / 'new/d.json')]) == status
    out = capsys.readouterr().out
    assert ('fix: pip install mmdet' in out) == bool(status)
    assert 'patched: numpy_aliases' in out and 'patched: mmdet3d' not in out
    written = json.loads((tmp_path / 'new/d.json').read_text())
    assert written['healthy'] == (not status) and written['findings'][0]['found'] == '3.0'


def test_a_library_that_crashes_is_a_line_and_the_others_are_tried(monkeypatch):
    probes = {
        'first': ('print(1)', ''),
        'crashes': ('import os; os.abort()', 'again'),
        'last': ('print(3)', ''),
    }
    monkeypatch.setattr(doctor, '_RUNTIME_PROBES', probes)
    found = {finding.name: finding for finding in doctor.examine(runtime_only=True)}
    assert [found[name].verdict for name in probes] == ['ok', 'problem', 'ok']
    assert found['last'].found == '3' and found['crashes'].found == 'crashed with signal 6'
