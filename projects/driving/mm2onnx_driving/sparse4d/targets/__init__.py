"""Programs that load Sparse4D's files."""

from mmdeploy_ext.spec.registry import register_contract

register_contract(
    'sparse4d',
    'deploy',
    'mm2onnx_driving.sparse4d.sparseend2end:SparseEnd2EndFiles',
    'mm2onnx_driving.sparse4d.runtime:SparseEnd2EndOnnx',
    help="backbone, head of the first frame and head of later frames, with SparseEnd2End's file names",
)
