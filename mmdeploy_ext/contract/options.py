"""What can be chosen about graphs of several families, each choice declared once.

What only one family has it is registered with, see `registry.py`. Needs neither torch nor mmcv.
"""

import dataclasses

from mmdeploy_ext.contract.option import Option
from mmdeploy_ext.contract.schema import exactly, items, number
from mmdeploy_ext.contract.stages import DEFAULT_OPSET
from mmdeploy_ext.contract.values import FLAG, NAME, SIZE

NO_BF16_FILE = (
    'a file has no bfloat16 form: ONNX has bfloat16 convolutions from opset 22 on, the exporters write up to '
    '20. Export fp32 and let OpenVINO compute it in bfloat16: --inference-precision bf16, or '
    "inference_precision='bf16' in backend_config"
)

FORM = Option(
    'form',
    'full',
    'full: detections; decode: boxes, scores, centerness; raw: head outputs; proposals, regions: two-stage '
    'detectors in two graphs, pictures to proposals and regions to detections (default: full)',
    ('full', 'decode', 'raw', 'proposals', 'regions'),
    flag='--postprocess',
    key='postprocess',
    stated=True,
    open=True,
)
OPSET = Option(
    'opset',
    DEFAULT_OPSET,
    '11 to 20; asked = written, or the export fails (default: 17; 18 for dynamo; 19 with DCN)',
    schema=number(0, 1000, whole=True),
    flag='--opset-version',
    key='opset_version',
    metavar='N',
    stated=True,
)
EXPORTER = Option(
    'exporter', 'torchscript', 'default: torchscript', ('torchscript', 'dynamo'), key='exporter', stated=True
)
SIMPLIFY = Option('simplify', False, 'run onnxslim over the graph', schema=FLAG, key='simplify')
GROUP_NORM = Option(
    'group_norm',
    '',
    'of float32 files: operator: InstanceNormalization, which ONNX Runtime sums value by value; exact: sums '
    'in two steps, in 1.2 to 1.8 times its time (default: exact where the backbone has it, else operator)',
    ('', 'operator', 'exact'),
    key='group_norm',
    only_with=('precision', 'fp32'),
)
PRECISION = Option(
    'precision',
    'fp32',
    'fp16: casts in the graph, post-processing stays float32; bf16 is a choice of OpenVINO, see '
    '--inference-precision (default: fp32)',
    ('fp32', 'fp16'),
    key='precision',
    group='half precision',
    refused=dict(bf16=NO_BF16_FILE),
)
FP16_IO = Option(
    'fp16_io',
    False,
    'with fp16: images and features are float16 outside too',
    schema=FLAG,
    key='fp16_io',
    group='half precision',
    only_with=('precision', 'fp16'),
)
KEEP_FP32 = Option(
    'keep_fp32',
    (),
    "with fp16: more nodes that stay float32, by name, operator, module or output ('*', '?')",
    schema=items(NAME),
    key='keep_fp32',
    metavar='PATTERN',
    group='half precision',
    only_with=('precision', 'fp16'),
)
HALF = (PRECISION, FP16_IO, KEEP_FP32)

IMAGE = (
    FORM,
    OPSET,
    Option(
        'height',
        0,
        'height and width of the input, or one number for both (default: from the test pipeline)',
        schema=SIZE,
        flag='--shape',
        key='shape',
        metavar='N',
        stated=True,
        pair='width',
    ),
    Option('width', 0, schema=SIZE, flag=''),
    Option(
        'batch',
        1,
        'batch of the graph (default: 1)',
        schema=number(1, 100_000, whole=True),
        flag='--batch-size',
        metavar='N',
        least=1,
        stated=True,
    ),
    Option(
        'dynamic',
        False,
        'batch, height and width stay dynamic',
        schema=FLAG,
        flag='--dynamic-export',
        key='dynamic',
    ),
    EXPORTER,
    Option(
        'score_form',
        'separate',
        'decode form: centerness as an output of its own, or multiplied into the scores',
        ('separate', 'product'),
        only_with=('form', 'decode'),
    ),
    SIMPLIFY,
    GROUP_NORM,
    *HALF,
)
"""What every family of single images has."""
OF_SOME = 'options of some families'
"""Title above what only some families of single images have; their names are put before each help."""
MAX_CANDIDATES = Option(
    'max_candidates',
    0,
    'full form: the K best candidates at most, 1 or more, with constant shapes; for TensorRT (default, '
    'without the option: all)',
    schema=number(0, 10**9, whole=True),
    key='max_candidates',
    metavar='K',
    least=1,
    hint='leave it out for all',
    only_with=('form', 'full'),
    group=OF_SOME,
)
MAX_PROPOSALS = dataclasses.replace(
    MAX_CANDIDATES,
    name='max_proposals',
    help='full form: the K best boxes at most that may become proposals, with --max-candidates (default, '
    'without the option: all)',
    key='max_proposals',
)
LIMITS = (MAX_CANDIDATES.name, MAX_PROPOSALS.name)
"""Limits of what enters a suppression; an output counts what was there."""
DRIVE = (PRECISION, FP16_IO, OPSET, EXPORTER, SIMPLIFY, KEEP_FP32)
"""What every family of frames or sweeps has."""

CONTRACT = Option(
    'contract', '', 'which files are written, and what they take', key='contract', stated=True,
    group='models of cameras and sweeps',
)  # fmt: skip
"""Of families that write one of several sets of files; each has its own choices."""

SPARSE_FORM = Option(
    'sparse_form',
    'buckets',
    'of a sparse backbone: buckets multiplies existing pairs only (default); tables takes plain neighbour '
    'tables, two to five times slower, for engines that cannot split at run time (TensorRT)',
    ('buckets', 'tables'),
    key='sparse_form',
    group='models of cameras and sweeps',
)
SPARSE = (
    Option(
        'target',
        'libspconv',
        "libspconv: NVIDIA's dialect (default); portable: standard operators, in float32, for any engine",
        ('libspconv', 'portable'),
    ),
    Option(
        'order',
        '',
        "of coordinates and weights (default: what OUTPUT_FILE's name says, else the reference's)",
        ('', 'xyz', 'zyx'),
    ),
    Option(
        'precision',
        '',
        'precision attributes of all layers (default: none, which engines read as fp16)',
        ('', 'fp16', 'int8'),
        only_with=('target', 'libspconv'),
    ),
    Option(
        'int8_fp16_io',
        False,
        "with --precision int8: the reference's INT8 file: its first layers compute in fp16, the last gives "
        'fp16; what the reference folds in fp16 is folded so, and calibrated before',
        schema=FLAG,
        flag='--int8-fp16-input-output',
        only_with=('precision', 'int8'),
    ),
    Option(
        'layer_precision',
        (),
        'layers by node or module name (*, ?): compute in P, store in Q (default: P); the last counts',
        schema=items(exactly(3, NAME)),
        metavar='PATTERN=P[:Q]',
        only_with=('target', 'libspconv'),
    ),
    Option('fold', 'fp32', 'how batch norm is folded (default: fp32)', ('fp16', 'fp32')),
    Option(
        'output_bound',
        0,
        'most active sites that the engine makes room for (default: 200000, as the reference)',
        schema=number(0, 10**9, whole=True),
        metavar='N',
        least=0,
        only_with=('target', 'libspconv'),
    ),
    dataclasses.replace(SPARSE_FORM, name='form', key=None, only_with=('target', 'portable'), group=''),
)
"""How a sparse backbone is written."""
