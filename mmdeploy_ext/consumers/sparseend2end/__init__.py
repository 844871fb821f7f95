from mmdeploy_ext.contract.registry import register_contract

register_contract(
    'sparse4d',
    'deploy',
    f'{__name__}.export:SparseEnd2EndFiles',
    f'{__name__}.loop:SparseEnd2EndOnnx',
    help="the backbone, the head of a first frame and that of the others, with the names of SparseEnd2End's "
    'files',
)
