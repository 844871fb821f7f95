"""Find what an export of a module will get wrong, before the export: with the line of code and the fix.

`check(module, example_inputs)` traces a copy of a module once and returns a `Report`; `mm2onnx lint` checks
the families of this project. `docs/troubleshooting.md` lists the rules.
"""

from mmdeploy_ext.bench.lint.check import check
from mmdeploy_ext.bench.lint.report import Finding, Report
from mmdeploy_ext.bench.lint.rules import RULES

__all__ = ['RULES', 'Finding', 'Report', 'check']
