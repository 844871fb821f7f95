"""int8_table.py: what it prints, what it refuses; the figures themselves are in docs/int8-images.md."""

import pytest

from docs._pages import int8_table
from docs._pages.int8_table import ROOT, TOYS, main, table


def test_the_table_has_the_loss_and_the_size_of_each_metric():
    row = dict(toy='a', metric='NDS', engine='onnxruntime', float=0.5, int8=0.49, size=0.27)
    assert table([row]).splitlines()[-1] == '| a | NDS | onnxruntime | 0.5000 | 0.4900 | +0.0100 | 0.270x |'


def test_every_toy_has_its_config_and_checkpoint():
    for toy in TOYS.values():
        assert (ROOT / f'{toy.config}_onnx.py').is_file()
        assert (ROOT / f'demo/checkpoints/{toy.name}.pth').is_file()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nosuch'], 'nosuch: no such toy; expected some of atss_toy'),
        (['stream_petr_toy', '--engine', 'openvino'], 'keeps its memory in ONNX Runtime'),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(('after', 'status'), [(0.495, 0), (0.48, 1), (float('nan'), 1)])
def test_a_loss_above_the_bar_is_the_exit_status(after, status, monkeypatch, tmp_path):
    row = dict(toy='a', metric='NDS', engine='onnxruntime', float=0.5, int8=after, size=0.27)
    monkeypatch.setattr(int8_table, '_measure', lambda toy, args: [row])
    monkeypatch.setattr(int8_table, '_make_data', lambda kinds, args: None)
    assert main(['atss_toy', '--json', str(tmp_path / 'x.json')]) == status
