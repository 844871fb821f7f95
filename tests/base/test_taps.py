"""A tap returns its tensor, is collected only inside the block, and blocks nest."""

import pytest
import torch

from mmdeploy_ext.base.taps import tap


@pytest.mark.filterwarnings('ignore:.*torch.jit.trace:DeprecationWarning')
def test_a_tap_leaves_no_operator_in_a_traced_graph():
    traced = torch.jit.trace(lambda x: tap('y', x + 1) * 2, torch.zeros(2))
    assert [node.kind() for node in traced.graph.nodes()].count('aten::add') == 1
    assert traced(torch.ones(2)).tolist() == [4.0, 4.0]
