"""The goldens of the nets that tests/families/solo/test_solo_golden.py leaves out."""

import pytest

import solo_golden as golden

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize('name', ['solo_r50', 'solov2_r50', 'solov2_light_dcn_r50'])
def test_a_converted_checkpoint_gives_the_originals_results(name, tmp_path):
    taps, found, linear = golden.run_model(golden.converted_model(name, tmp_path), name)
    golden.compare_tensors(name, taps)
    golden.compare_instances(name, found, linear)


@pytest.mark.parametrize('pair', golden.PAIRS)
def test_every_other_config_of_the_original(pair):
    golden.check_pair(pair)
