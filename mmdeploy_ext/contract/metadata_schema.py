"""What each `mm2onnx.*` entry of a file may be: a check for each. Needs neither torch nor numpy.

A check is a function of a value and its key, which is for the message; it raises `Mismatch` if the value is
not allowed, see `schema`.
"""

from collections.abc import Mapping
from typing import Any

from mmdeploy_ext.contract import options
from mmdeploy_ext.contract.options import schemas
from mmdeploy_ext.contract.registry import detector_options
from mmdeploy_ext.contract.schema import (
    COUNT,
    DIGEST,
    FLAG,
    LIMIT,
    NAME,
    PIXELS,
    POSITIVE,
    TRIPLE,
    Check,
    Mismatch,
    anything,
    exactly,
    full_record,
    items,
    mapping,
    maybe,
    number,
    one_of,
    record,
    text,
)

DTYPES = ('bool', 'int8', 'uint8', 'int16', 'int32', 'int64', 'float16', 'float32', 'float64')
COLOURS = dict(mean=exactly(3, number()), std=exactly(3, POSITIVE), to_rgb=FLAG)
COLOURS['size_divisor'] = number(1, 4096, integer=True)
"""Fields that the rule of single pictures and that of several cameras have."""
IMAGE = full_record(
    **COLOURS,
    img_scale=maybe(exactly(2, PIXELS)),
    keep_ratio=FLAG,
    size=maybe(exactly(2, PIXELS)),
    pad_val=exactly(3, number()),
    pad_size=maybe(exactly(2, PIXELS)),
    resize=one_of('cv2', 'pillow', 'warp'),
    pad_or=number(0, 4096, integer=True),
    pad_more=number(0, 4096, integer=True),
    centred=FLAG,
    to_float32=FLAG,
)
"""Check of the JSON form of a `PreprocessRule`, of single pictures."""


def _check_rig(rule: Mapping[str, Any], key: str) -> None:
    """Refuse a crop outside of its picture, padding that is smaller than the crop, and too many names."""
    for index, side in enumerate(('top', 'left')):
        start, size, resized = rule['crop'][index], rule['size'][index], rule['resized'][index]
        if not -size < start < resized:
            raise Mismatch(f'crop[{index}] is {start}, which leaves nothing of {resized} pixels ({side})')
        if rule.get('pad_size') and rule['pad_size'][index] < size:
            raise Mismatch(f'pad_size[{index}] is {rule["pad_size"][index]}, expected at least size, {size}')
    if (count := len(rule['cameras'])) not in (0, rule['num_cameras']):
        raise Mismatch(f'cameras has {count} names, expected num_cameras, {rule["num_cameras"]}')


MULTIVIEW = full_record(
    **COLOURS,
    kind=one_of('multiview'),
    source=exactly(2, PIXELS),
    scale=number(above=0, maximum=64),
    resized=exactly(2, PIXELS),
    crop=exactly(2, number(-16_384, 16_384, integer=True)),
    size=exactly(2, PIXELS),
    pad_size=maybe(exactly(2, PIXELS)),
    num_cameras=number(1, 64, integer=True),
    cameras=items(NAME, 0, 64),
    normalised_first=FLAG,
    also=_check_rig,
)
"""Check of the JSON form of a `MultiViewRule`, of the pictures of several cameras."""
VOXELS = full_record(
    point_cloud_range=exactly(6, number(-1e6, 1e6)),
    voxel_size=exactly(3, number(above=0, maximum=1e6)),
    max_points=LIMIT,
    max_voxels=LIMIT,
    order=one_of('xyz', 'zyx'),
    in_channels=number(1, 1024, integer=True),
    mode=one_of('hard', 'dynamic'),
)
"""Check of the JSON form of a `VoxelRule`, of LiDAR sweeps."""


def pictures(value: Any, key: str) -> None:
    """Check the rule of the pictures of several cameras, which has a `kind`, or that of one picture."""
    (MULTIVIEW if isinstance(value, dict) and 'kind' in value else IMAGE)(value, key)


FUSION = full_record(
    kind=one_of('fusion'),
    views=maybe(pictures),
    voxels=maybe(VOXELS),
    load_dim=number(3, 1024, integer=True),
    use_dim=items(number(0, 1023, integer=True), 3, 1024),
    sweeps=number(0, 1000, integer=True),
    pad_empty_sweeps=FLAG,
    remove_close=FLAG,
)
"""Check of the JSON form of a `FusionRule`, of cameras and LiDAR."""


def rule_of_points(value: Any, key: str) -> None:
    """Check the rule of a sweep, or that of a frame of cameras and LiDAR, which has a sweep's in `voxels`."""
    (FUSION if isinstance(value, dict) and 'voxels' in value else VOXELS)(value, key)


def preprocess(value: Any, key: str) -> None:
    """Check a preprocessing rule by the check of its kind."""
    if isinstance(value, dict) and {'voxel_size', 'voxels'} & value.keys():
        return rule_of_points(value, key)
    return pictures(value, key)


AXIS_SIZE = number(0, 2**31, integer=True)
"""Check of the size of a fixed axis, or of the index of a column."""


def axis(value: Any, key: str) -> None:
    """Check an axis of a tensor: a name, such as a letter, if it is dynamic, else its size."""
    (NAME if isinstance(value, str) else AXIS_SIZE)(value, key)


GROUP = full_record(
    name=text(),
    columns=maybe(items(AXIS_SIZE, 1)),
    unit=text(),
    rtol=number(0),
    atol=number(0),
)
"""Check of the JSON form of a `ColumnGroup`."""
TENSOR = full_record(
    name=NAME,
    dtype=one_of(*DTYPES),
    axes=items(axis, 0, 8),
    meaning=text(),
    unit=text(),
    groups=items(GROUP),
    default=maybe(number()),
    unused=FLAG,
    compare=one_of('values', 'detections'),
    single=FLAG,
    smallest=PIXELS,
    multiple=PIXELS,
    positive=FLAG,
)
"""Check of the JSON form of a `TensorSpec`."""


def _check_tensor_names(spec: Mapping[str, Any], key: str) -> None:
    """Refuse inputs or outputs of the same name, and a state of tensors that do not exist."""
    inputs = [tensor['name'] for tensor in spec['inputs']]
    outputs = [tensor['name'] for tensor in spec['outputs']]
    for list_name, names in (('inputs', inputs), ('outputs', outputs)):
        if len(set(names)) < len(names):
            raise Mismatch(f'{list_name} has a name twice: {", ".join(names)}')
    for index, (source, target) in enumerate(spec['state']):
        if source not in outputs or target not in inputs:
            raise Mismatch(f'state[{index}] is {[source, target]}, expected an output and an input')


SPEC = full_record(
    name=NAME,
    inputs=items(TENSOR, 1),
    outputs=items(TENSOR, 1),
    state=items(exactly(2, NAME)),
    also=_check_tensor_names,
)
"""Check of the JSON form of a `GraphSpec`."""


def checks_of_options() -> dict[str, Check]:
    """Return name -> check of every option of detectors: of images, frames and sweeps, and of families.

    The families are those registered now. `cfg_options`, the overrides of the config, are among the options.
    """
    return dict(schemas((*detector_options(), *options.DRIVE)), cfg_options=mapping(anything))


def options_of_detector(value: Any, key: str) -> None:
    """Check the options of a detector's file: `opset` and `exporter` are needed, unknown ones pass."""
    record(checks_of_options(), ('opset', 'exporter'), closed=False)(value, key)


def options_of_backbone(value: Any, key: str) -> None:
    """Check the options of a sparse backbone's file: none is needed, unknown ones pass."""
    record(checks_of_options() | schemas(options.SPARSE), closed=False)(value, key)


MODEL_CLASS = full_record(
    name=NAME, file=NAME, sha256=text('(?:[0-9a-f]{64})?', '64 hexadecimal digits, or nothing'), ours=FLAG
)
"""Check of an entry of `Metadata.model_classes`."""

# The plan of a graph of sparse convolutions numbers its levels of active sites from 0, which is the input: a
# table pairs the sites of two levels, or of one, for convolutions, and a scatter puts those of a level into a
# dense tensor
TABLE = full_record(
    name=NAME,
    level_in=number(0, 63, integer=True),
    level_out=number(0, 63, integer=True),
    subm=FLAG,
    kernel_size=exactly(3, number(1, 32, integer=True)),
    stride=exactly(3, number(1, 1024, integer=True)),
    padding=exactly(3, number(0, 1024, integer=True)),
    dilation=exactly(3, number(1, 1024, integer=True)),
)
"""Check of a table of a plan."""
SCATTER = full_record(
    name=NAME, level=number(0, 63, integer=True), axes=exactly(3, number(0, 2, integer=True))
)
"""Check of a scatter of a plan."""


def _check_levels(plan: Mapping[str, Any], key: str) -> None:
    """Refuse a plan whose tables do not build their levels one after another."""
    levels = 1
    for index, table in enumerate(plan['tables']):
        expected = table['level_in'] if table['subm'] else levels
        keeps_level = (
            not table['subm'] and table['level_out'] == table['level_in'] and set(table['stride']) == {1}
        )
        if table['level_in'] >= levels or (table['level_out'] != expected and not keeps_level):
            raise Mismatch(
                f'{key}.tables[{index}] goes from level {table["level_in"]} to {table["level_out"]}, and '
                f'there are {levels}'
            )
        levels = max(levels, table['level_out'] + 1)
    for index, scatter in enumerate(plan['scatters']):
        if scatter['level'] >= levels or sorted(scatter['axes']) != [0, 1, 2]:
            raise Mismatch(
                f'{key}.scatters[{index}] is {scatter}, expected one of {levels} levels, axes 0 to 2'
            )


PLAN = full_record(
    spatial_shape=TRIPLE,
    tables=items(TABLE),
    scatters=items(SCATTER),
    level_of=mapping(number(0, 63, integer=True)),
    table_of=mapping(NAME),
    also=_check_levels,
)
"""Check of a plan: its tables and scatters, and for each tensor its level, for each convolution its table."""
SCN = full_record(
    form=one_of('buckets', 'tables'),
    order=one_of('xyz', 'zyx'),
    in_channels=number(1, 1024, integer=True),
    output_shape=exactly(4, COUNT),
    plan=PLAN,
    closed=False,
)
"""Check of the entry `scn` of a portable graph of sparse convolutions.

`output_shape` is (1, C, H, W) of its map; `plan` is in the order of the axes that `order` names.
"""
FIELDS: dict[str, Check] = dict(
    family=text(r'[a-z][\w-]*', 'the name of a model family'),
    form=NAME,
    spec=SPEC,
    preprocess=preprocess,
    voxels=VOXELS,
    classes=items(text()),
    postprocess=mapping(anything),
    options=options_of_detector,
    config=text(),
    config_sha256=DIGEST,
    checkpoint_sha256=DIGEST,
    versions=mapping(text()),
    model_classes=items(MODEL_CLASS),
    rules=number(1, 10**6, integer=True),
    edits=items(NAME),
    ranges=mapping(anything),
    scn=SCN,
    scn_modules=mapping(text()),
)
"""Entry, without its prefix -> check of its value; of `postprocess` see also `checked_facts`.

`ranges` are those of the layers in INT8, see `sparse.ranges.Ranges`, `scn_modules` is name of a node of a
sparse graph -> path of its module.
"""
COMMON_ENTRIES = (
    'family',
    'form',
    'options',
    'config',
    'config_sha256',
    'checkpoint_sha256',
    'versions',
    'model_classes',
    'rules',
    'edits',
)
OF_SPARSE_GRAPHS = ('scn', 'scn_modules')
"""Entries that the writers of sparse graphs add."""
FILE_ENTRIES = dict.fromkeys((*COMMON_ENTRIES, 'spec', 'preprocess', 'classes', 'postprocess'), True)
FILE_ENTRIES |= dict.fromkeys(OF_SPARSE_GRAPHS, False)
"""Entry of a detector's file -> whether all have it; the others are of graphs of sparse convolutions."""
BACKBONE_ENTRIES = dict.fromkeys((*COMMON_ENTRIES, 'voxels'), True)
BACKBONE_ENTRIES |= dict.fromkeys(('ranges', *OF_SPARSE_GRAPHS), False)
"""Entry of a sparse backbone's file -> whether all have it."""
