"""The smallest part of a graph that is faulty."""
