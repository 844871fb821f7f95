"""Programs that load Sparse4D's files."""

from mmdeploy_ext.contract.registry import register_contract

register_contract(
    'sparse4d',
    'deploy',
    'mmdeploy_ext.consumers.sparseend2end.export:SparseEnd2EndFiles',
    'mmdeploy_ext.consumers.sparseend2end.loop:SparseEnd2EndOnnx',
    help="the backbone, the head of a first frame and that of the others, with the names of SparseEnd2End's "
    'files',
)
