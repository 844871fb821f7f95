"""Programs that load Sparse4D's files."""

from mmdeploy_ext.contract.registry import register_contract

register_contract(
    'sparse4d',
    'deploy',
    'mmdeploy_ext.systems.sparse4d.targets.sparseend2end.export:SparseEnd2EndFiles',
    'mmdeploy_ext.systems.sparse4d.targets.sparseend2end.loop:SparseEnd2EndOnnx',
    help="the backbone and the heads of the first and of later frames, with the names of SparseEnd2End's "
    'files',
)
