"""Find what an export of a module will get wrong, before it: with the line of code and the fix.

`check(module, example_inputs)` observes one run and returns a `Report`. `tools/onnx/lint.py CONFIG CKPT`
does it for the families of this project. `docs/export-pitfalls.md` is made from the rules, and from a failing
and a passing module for each (`docs/_pages/lint`); tests export these modules with both exporters.

How a run is observed: numbers from shapes are marked with their origins (`record`), tensors with the inputs
that they depend on (`observe`), watches see each call of torch and add events (`watches`), and an event is
dropped if the sizes that it depends on do not differ between inputs (`check`).
"""

from mmdeploy_ext.lint.check import check
from mmdeploy_ext.lint.report import Finding, Report
from mmdeploy_ext.lint.rules import RULES

__all__ = ['RULES', 'Finding', 'Report', 'check']
