"""The rules, in the order of the documentation; each with two modules that show it."""

from __future__ import annotations

from mmdeploy_ext.lint.rules import boundary, numbers, operators, sizes, values, writes

THEMES = {
    'Numbers taken out of tensors': values.RULES,
    'Sizes': sizes.RULES,
    'Writes into tensors': writes.RULES,
    'Inputs, outputs and state': boundary.RULES,
    'Precision': numbers.RULES,
    'Operators': operators.RULES,
}
"""Heading -> rules."""

RULES = {rule.id: rule for rules in THEMES.values() for rule in rules}
"""Id -> rule."""
