"""Original SOLO checkpoints, converted, give what the original repository gave."""

import pytest

import solo_golden as golden
from marking import in_suite

NETS = 'solov2_light_r34', 'decoupled_solo_r50', 'solo_r50', 'solov2_r50', 'solov2_light_dcn_r50'


@pytest.mark.parametrize('name', in_suite(NETS, 'solov2_light_r34'))
def test_tensors_and_instances_are_the_originals(name):
    taps, found, linear = golden.run_model(golden.converted_model(name), name)
    golden.compare_tensors(name, taps)
    golden.compare_instances(name, found, linear)


@pytest.mark.parametrize('pair', in_suite(golden.PAIRS, 'solo r101', 'decoupled light dcn'))
def test_configs_that_mmdet_does_not_have_are_made(pair):
    golden.check_pair(pair)
