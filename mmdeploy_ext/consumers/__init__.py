"""Programs that load our files, without them: the names and checks of their files, and their loops in numpy.

Each folder registers its contracts. Modules called `export`, or with a name that ends so, need PyTorch.
"""

import importlib
import pkgutil

FOLDERS = {
    'autoware': 'mmdeploy_ext.consumers.autoware.check',
    'cuda-bevfusion': 'mmdeploy_ext.consumers.cuda_bevfusion.folder',
}
"""Contract -> module that checks a folder.

`PATTERNS` are patterns of its files, by which a folder is recognised; `check(folder)` returns the violations,
and name -> path of the files that are there.
"""
TABLES = {'cuda-bevfusion': 'mmdeploy_ext.consumers.cuda_bevfusion.pooling'}
"""Contract -> module with `write_tables`, which writes the tables of a rig, see `graph write-tables`."""

for module in pkgutil.iter_modules(__path__, f'{__name__}.'):
    if module.ispkg:
        importlib.import_module(module.name)
