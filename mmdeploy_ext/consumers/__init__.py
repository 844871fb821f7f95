"""Programs that load our files, without these programs: names and checks of files, loops in numpy."""

import importlib
import pkgutil

FOLDERS = {
    'autoware': 'mmdeploy_ext.consumers.autoware.check',
    'cuda-bevfusion': 'mmdeploy_ext.consumers.cuda_bevfusion.folder',
}
"""Contract -> module that checks a folder."""
TABLES = {'cuda-bevfusion': 'mmdeploy_ext.consumers.cuda_bevfusion.pooling'}
"""Contract -> module with `write_tables`, see `graph write-tables`."""

for module in pkgutil.iter_modules(__path__, f'{__name__}.'):
    if module.ispkg:
        importlib.import_module(module.name)
