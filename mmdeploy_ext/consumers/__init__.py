"""Programs that load our files, without them: what their files have to be, and their loops in numpy.

Modules called `export`, or whose names end so, are the side of PyTorch; the others need none.
"""

FOLDERS = {
    'autoware': 'mmdeploy_ext.consumers.autoware.check',
    'cuda-bevfusion': 'mmdeploy_ext.consumers.cuda_bevfusion.folder',
}
"""Contract -> module of its check of a folder.

`PATTERNS` are patterns of its files, by which a folder is recognised; `check(folder)` returns the violations,
and name -> path of the files that are there.
"""
TABLES = {'cuda-bevfusion': 'mmdeploy_ext.consumers.cuda_bevfusion.pooling'}
"""Contract -> module whose `write_tables` writes the tables of a rig, see `graph write-tables`."""
