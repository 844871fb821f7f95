"""Lookups: who makes and reads a tensor, also through the bodies of branches."""

from hypothesis import given, settings

from mmdeploy_ext.graph.io.index import Index
from toy_graphs import random_graph, steps


def slow_ancestors(model, outputs, stops):
    """Walk back over the nodes from the last; what bodies read is found by their text."""
    wanted, found = set(outputs) - set(stops), []
    for position in reversed(range(len(model.graph.node))):
        node = model.graph.node[position]
        if wanted & set(node.output):
            found.append(position)
            inner = [name for entry in node.attribute for part in entry.g.node for name in part.input]
            wanted |= (set(node.input) | set(inner)) - set(stops)
    return sorted(found)


@settings(max_examples=15, deadline=None)
@given(steps)
def test_ancestors_are_those_of_a_walk_over_all_nodes(chosen):
    model = random_graph(chosen)
    index = Index(model)
    made = [name for name in index.tensors if index.producer(name) is not None]
    for stops in ([], made[: len(made) // 2]):
        assert index.ancestors(index.outputs, stops) == slow_ancestors(model, index.outputs, stops)
    for name in made:
        assert name in index.writes(index.producer(name))
        assert all(name in index.reads(at) for at in index.consumers(name))
    reached = set(index.descendants(['x']))
    for at in range(len(index.nodes)):
        above = index.ancestors(index.writes(at))
        assert (at in reached) == any('x' in index.reads(node) for node in above)
