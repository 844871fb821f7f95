"""Find what an export of a module will get wrong, before it: with the line of code and the fix.

`check(module, example_inputs)` observes one run and returns a `Report`. `tools/onnx/lint.py CONFIG CKPT`
does it for the families of this project. `docs/export-pitfalls.md` is made from the rules, and from a failing
and a passing module of each (`docs/_pages/lint`), by which tests hold what both exporters really do.
"""

from mmdeploy_ext.lint.check import check
from mmdeploy_ext.lint.report import Finding, Report
from mmdeploy_ext.lint.rules import RULES

__all__ = ['RULES', 'Finding', 'Report', 'check']
