"""Find what an export of a module will get wrong, before it: with the line of code and the fix.

`check(module, example_inputs)` observes one run and returns a `Report`. `tools/onnx/lint.py CONFIG CKPT`
does it for the families of this project. The rules are in `mmdeploy_ext/lint/rules`; each holds a failing and
a passing module, and what both exporters really do with them. `docs/export-pitfalls.md` is made from them.
"""

from mmdeploy_ext.lint.check import check
from mmdeploy_ext.lint.report import Finding, Report
from mmdeploy_ext.lint.rules import RULES

__all__ = ['RULES', 'Finding', 'Report', 'check']
