"""More outputs, other names: the numbers stay."""

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdeploy_ext.contract.comparison import is_exact
from mmdeploy_ext.core.errors import UsageError
from mmdeploy_ext.graph.io.index import Index
from mmdeploy_ext.graph.output_comparison import compare_edited
from mmdeploy_ext.graph.passes.rename import rename
from toy_graphs import conv_net, random_graph, steps


@settings(max_examples=15, deadline=None)
@given(steps, st.booleans(), st.booleans(), st.integers(0, 99))
def test_renamed_graphs_compute_the_same(chosen, prefixed, filled, pick):
    model = random_graph(chosen)
    before = model.SerializeToString()
    index = Index(model)
    tensor = index.tensors[pick % len(index.tensors)]
    wanted = {tensor: 'new', 'x': 'image'}
    prefix = 'net/' if prefixed else ''
    result = rename(model, wanted, {'#0': 'first'}, prefix=prefix, fill=filled)
    onnx.checker.check_model(result, full_check=True)
    assert is_exact(compare_edited(model, result, renamed=wanted))
    assert rename(result, wanted, {'#0': 'first'}, prefix=prefix, fill=filled) == result
    new = Index(result)
    assert 'image' in new.inputs and tensor not in new.tensors
    assert all(node.name for node in new.nodes) or not filled
    assert model.SerializeToString() == before


def test_names_can_swap():
    result = rename(conv_net(), {'a': 'b', 'b': 'a'})
    assert [list(node.output) for node in result.graph.node[:2]] == [['b'], ['a']]
    assert is_exact(compare_edited(conv_net(), result, renamed={'a': 'b', 'b': 'a'}))


def test_what_is_renamed_is_renamed_everywhere():
    model = conv_net()
    model.graph.value_info.append(onnx.helper.make_tensor_value_info('b', 1, [1, 4, 4, 4]))
    model.graph.quantization_annotation.add(tensor_name='b')
    model.graph.quantization_annotation[0].quant_parameter_tensor_names.add(
        key='SCALE_TENSOR', value='stem.bias'
    )
    model.metadata_props.add(key='mm2onnx.spec', value='{}')
    result = rename(model, {'b': 'new', 'stem.bias': 'offset'}, {'/stem/Conv': 'conv'})
    text = str(result)
    assert 'stem.bias' not in text and '"b"' not in text and '/stem/Conv' not in text and 'mm2onnx' in text
    assert 'mm2onnx' not in str(rename(model, {'images': 'x'}))


def test_the_metadata_of_an_input_with_a_default_do_not_outlive_its_name():
    model = conv_net()
    model.graph.input.append(onnx.helper.make_tensor_value_info('size', 1, [1]))
    model.graph.initializer.append(onnx.helper.make_tensor('size', 1, [1], [2.0]))
    model.metadata_props.add(key='mm2onnx.spec', value='{}')
    assert 'mm2onnx' not in str(rename(model, {'size': 'length'}))


BAD = {
    'an unknown tensor': (dict(tensors={'bb': 'c1'}), "no tensor 'bb'"),
    'an unknown node': (dict(nodes={'/stem/Con': 'x'}), 'did you mean /stem/Conv'),
    'a tensor as a node': (dict(nodes={'scores': 'x'}), 'is a tensor, not a node'),
    'a name that is taken': (dict(tensors={'a': 'stem.bias'}), 'another tensor has that name'),
    'a node name that is taken': (dict(nodes={'/stem/Conv': '/fc/Gemm'}), 'another node has that name'),
    'two that become one': (dict(tensors={'a': 'q', 'b': 'q'}), 'another tensor has that name'),
    'no name': (dict(tensors={'a': ''}), 'is empty'),
}


@pytest.mark.parametrize('case', BAD)
def test_names_that_cannot_be_given_are_refused(case):
    options, words = BAD[case]
    with pytest.raises(UsageError, match=words):
        rename(conv_net(), **options)


def test_a_name_inside_a_branch_is_taken_too():
    with pytest.raises(UsageError, match='another tensor'):
        rename(random_graph([('If', 0, 1)]), {'t0': 't0_Neg'})
    with pytest.raises(UsageError, match='would get a name'):
        rename(rename(conv_net(), {'a': 'net/b'}), prefix='net/')
