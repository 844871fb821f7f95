"""The families of this package, registered by the names of their modules; imports neither torch nor mmcv.

`bevfusion`, `centerpoint-det3d` and `sparse-encoder` export the sparse backbone of a detector alone.
"""

from mmdeploy_ext.contract.registry import register_family
from mmdeploy_ext.families.anchor3d import options as anchor3d
from mmdeploy_ext.families.bevformer import options as bevformer
from mmdeploy_ext.families.bevfusion import options as bevfusion_det
from mmdeploy_ext.families.centerpoint import options as centerpoint
from mmdeploy_ext.families.dense import options as dense
from mmdeploy_ext.families.petr import options as petr
from mmdeploy_ext.families.query import options as query
from mmdeploy_ext.families.rtdetr import options as rtdetr
from mmdeploy_ext.families.solo import options as solo
from mmdeploy_ext.families.sparse4d import options as sparse4d
from mmdeploy_ext.families.streampetr import options as streampetr
from mmdeploy_ext.families.two_stage import options as two_stage

MMDET3D = 'mmdet3d'
"""Library whose import the LiDAR and multi-camera families need."""

register_family(
    'anchor3d',
    'mmdeploy_ext.families.anchor3d.family:AnchorFamily',
    options=anchor3d.OPTIONS,
    facts='mmdeploy_ext.families.anchor3d.facts:AnchorFacts',
    runtime='mmdeploy_ext.families.anchor3d.runtime',
    library=MMDET3D,
    claims=('VoxelNet', 'MVXFasterRCNN', 'SASSD', 'DynamicVoxelNet'),
)
register_family(
    'bevformer',
    'mmdeploy_ext.families.bevformer.family:BevFormerFamily',
    options=bevformer.OPTIONS,
    postprocess=bevformer.POSTPROCESS,
    runtime='mmdeploy_ext.families.bevformer.runtime',
    library=MMDET3D,
    claims=('BEVFormerHead',),
)
register_family('bevfusion', 'mmdeploy_ext.families.sparse_backbone.family:BEVFUSION', library=MMDET3D)
register_family(
    'bevfusion_det',
    'mmdeploy_ext.families.bevfusion.family:BEVFusionFamily',
    options=bevfusion_det.OPTIONS,
    facts='mmdeploy_ext.families.bevfusion.facts:BEVFusionFacts',
    runtime='mmdeploy_ext.families.bevfusion.runtime.model',
    library=MMDET3D,
    claims=('BEVFusion',),
)
register_family(
    'centerpoint',
    'mmdeploy_ext.families.centerpoint.family:CenterPointFamily',
    options=centerpoint.OPTIONS,
    facts='mmdeploy_ext.families.centerpoint.facts:CenterPointFacts',
    runtime='mmdeploy_ext.families.centerpoint.runtime',
    library=MMDET3D,
    claims=('CenterPoint',),
)
register_family(
    'centerpoint-det3d',
    'mmdeploy_ext.families.sparse_backbone.family:CENTERPOINT',
    library=MMDET3D,
)
register_family(
    'corner',
    'mmdeploy_ext.families.corner.family:CornerFamily',
    facts='mmdeploy_ext.families.corner.facts:CornerFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    claims=('CornerNet',),
)
register_family(
    'dense',
    'mmdeploy_ext.families.dense.family:DenseFamily',
    options=dense.OPTIONS,
    facts='mmdeploy_ext.families.parts.runtime.dense_facts:DenseFacts',
    runtime='mmdeploy_ext.families.dense.runtime',
    claims=('BaseDenseHead',),
)
register_family(
    'imvoxelnet',
    'mmdeploy_ext.families.imvoxelnet.family:ImVoxelNetFamily',
    facts='mmdeploy_ext.families.imvoxelnet.facts:ImVoxelNetFacts',
    runtime='mmdeploy_ext.families.imvoxelnet.runtime',
    library=MMDET3D,
    claims=('ImVoxelNet',),
)
register_family(
    'monocular',
    'mmdeploy_ext.families.monocular.family:PointsFamily',
    facts='mmdeploy_ext.families.monocular.facts:PointsFacts',
    runtime='mmdeploy_ext.families.monocular.runtime.fcos3d',
    library=MMDET3D,
    claims=('FCOSMono3DHead',),
)
register_family(
    'mvxnet',
    'mmdeploy_ext.families.anchor3d.mvxnet.family:MvxNetFamily',
    options=anchor3d.OPTIONS,
    facts='mmdeploy_ext.families.anchor3d.facts:AnchorFacts',
    runtime='mmdeploy_ext.families.anchor3d.mvxnet.runtime',
    library=MMDET3D,
    claims=('DynamicMVXFasterRCNN',),
)
register_family(
    'petr',
    'mmdeploy_ext.families.petr.family:PETR',
    options=petr.OPTIONS,
    postprocess=petr.POSTPROCESS,
    runtime='mmdeploy_ext.families.petr.runtime',
    library=MMDET3D,
    claims=('PETRHead',),
)
register_family(
    'petrv2',
    'mmdeploy_ext.families.petr.family:PETRV2',
    options=petr.OPTIONS,
    postprocess=petr.POSTPROCESS,
    runtime='mmdeploy_ext.families.petr.runtime',
    library=MMDET3D,
    claims=('PETRv2Head',),
)
register_family(
    'query',
    'mmdeploy_ext.families.query.family:QueryFamily',
    options=query.OPTIONS,
    facts='mmdeploy_ext.families.query.facts:QueryFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    claims=('DETR', 'DeformableDETR', 'DINO', 'CoDETR'),
)
register_family(
    'query_masks',
    'mmdeploy_ext.families.query.family:QueryMasksFamily',
    options=query.OPTIONS,
    facts='mmdeploy_ext.families.query.facts:QueryFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    claims=('MaskFormer',),
)
register_family(
    'query_panoptic',
    'mmdeploy_ext.families.query.family:QueryPanopticFamily',
    options=query.OPTIONS,
    facts='mmdeploy_ext.families.query.facts:QueryPanopticFacts',
    runtime='mmdeploy_ext.families.query.runtime',
    keep_fp32=query.PANOPTIC_KEEP_FP32,
    claims=('MaskFormer',),
)
register_family(
    'query_regions',
    'mmdeploy_ext.families.query.family:QUERY_REGIONS',
    facts='mmdeploy_ext.families.query.facts:QueryFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    keep_fp32=query.REGION_KEEP_FP32,
    claims=('SparseRCNN', 'QueryInst'),
)
register_family(
    'query_regions_masks',
    'mmdeploy_ext.families.query.family:QUERY_REGIONS_MASKS',
    options=query.REGION_MASK_OPTIONS,
    facts='mmdeploy_ext.families.query.facts:QueryFacts',
    runtime='mmdeploy_ext.families.parts.runtime.pasted_masks',
    keep_fp32=query.REGION_KEEP_FP32,
    claims=('SparseRCNN', 'QueryInst'),
)
register_family(
    'rtdetr',
    'mmdeploy_ext.families.rtdetr.family:RtDetrFamily',
    options=rtdetr.OPTIONS,
    facts='mmdeploy_ext.families.rtdetr.facts:RtDetrFacts',
    runtime='mmdeploy_ext.families.rtdetr.runtime',
    keep_fp32=rtdetr.KEEP_FP32,
    claims=('RTDETR',),
)
register_family(
    'smoke',
    'mmdeploy_ext.families.monocular.family:SmokeFamily',
    facts='mmdeploy_ext.families.monocular.facts:SmokeFacts',
    runtime='mmdeploy_ext.families.monocular.runtime.smoke',
    library=MMDET3D,
    claims=('SMOKEMono3DHead',),
)
register_family(
    'solo',
    'mmdeploy_ext.families.solo.family:SoloFamily',
    options=solo.OPTIONS,
    facts='mmdeploy_ext.families.solo.facts:SoloFacts',
    runtime='mmdeploy_ext.families.solo.runtime',
    claims=('SOLOHead', 'DecoupledSOLOHead', 'DecoupledSOLOLightHead', 'SOLOV2Head'),
)
register_family(
    'sparse4d',
    'mmdeploy_ext.families.sparse4d.family:Sparse4DFamily',
    options=sparse4d.OPTIONS,
    postprocess=sparse4d.POSTPROCESS,
    runtime='mmdeploy_ext.families.sparse4d.runtime.model',
    library=MMDET3D,
    claims=('Sparse4D', 'Sparse4DHead'),
)
register_family(
    'sparse-encoder', 'mmdeploy_ext.families.sparse_backbone.family:SPARSE_ENCODER', library=MMDET3D
)
register_family(
    'streampetr',
    'mmdeploy_ext.families.streampetr.family:StreamPetrFamily',
    options=streampetr.OPTIONS,
    postprocess=streampetr.POSTPROCESS,
    runtime='mmdeploy_ext.families.streampetr.runtime.model',
    library=MMDET3D,
    claims=('StreamPETRHead', 'StreamPETRHeadPTH', 'StreamPETRHeadONNX'),
)
register_family(
    'two_stage',
    'mmdeploy_ext.families.two_stage.family:TWO_STAGE',
    options=two_stage.OPTIONS,
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    keep_fp32=two_stage.KEEP_FP32,
    claims=('TwoStageDetector', 'RPN'),
)
register_family(
    'two_stage_image_branch',
    'mmdeploy_ext.families.two_stage.image_branch:IMAGE_BRANCH',
    options=two_stage.OPTIONS,
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.parts.runtime.padded_results',
    keep_fp32=two_stage.KEEP_FP32,
    library=MMDET3D,
    claims=('ImVoteNet',),
)
register_family(
    'two_stage_masks',
    'mmdeploy_ext.families.two_stage.family:TWO_STAGE_MASKS',
    options=two_stage.MASK_OPTIONS,
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.parts.runtime.pasted_masks',
    keep_fp32=two_stage.KEEP_FP32,
    claims=('TwoStageDetector', 'RPN'),
)
register_family(
    'two_stage_panoptic',
    'mmdeploy_ext.families.two_stage.family:TwoStagePanopticFamily',
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.two_stage.runtime.panoptic',
    keep_fp32=two_stage.PANOPTIC_KEEP_FP32,
    claims=('TwoStagePanopticSegmentor',),
)
register_family(
    'two_stage_regions',
    'mmdeploy_ext.families.two_stage.family:TWO_STAGE_REGIONS',
    facts='mmdeploy_ext.families.two_stage.facts:TwoStageFacts',
    runtime='mmdeploy_ext.families.two_stage.runtime.regions',
    keep_fp32=two_stage.KEEP_FP32,
    claims=('TwoStageDetector', 'RPN'),
)
register_family(
    'yolact',
    'mmdeploy_ext.families.yolact.family:YolactFamily',
    facts='mmdeploy_ext.families.yolact.facts:YolactFacts',
    runtime='mmdeploy_ext.families.yolact.runtime',
    claims=('YOLACT',),
)
