"""The examples of all rules of the linter."""

from __future__ import annotations

from docs._pages.lint import boundary, numbers, operators, sizes, values, writes

EXAMPLES = {
    **values.EXAMPLES,
    **sizes.EXAMPLES,
    **writes.EXAMPLES,
    **boundary.EXAMPLES,
    **numbers.EXAMPLES,
    **operators.EXAMPLES,
}
"""Id of a rule -> its examples."""
