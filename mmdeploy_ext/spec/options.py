"""Export options: declaration, parsing, checks, and shared options of families."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mmdeploy_ext.base.errors import UsageError

DEFAULT_OPSET = 17
"""LayerNormalization is one operator from 17 on; TensorRT 10 gets GridSample of 20 wrong."""
OPSETS = {'torchscript': (11, 20), 'dynamo': (18, 20)}
"""Exporter -> first and last opset that it writes in torch 2.13 (measured; dynamo writes 18 if asked for 11).
"""


def check_opset(opset: int, exporter: str, option: str = '') -> None:
    if exporter not in OPSETS:
        raise UsageError(f'--exporter {exporter}: expected one of {", ".join(OPSETS)}')
    low, high = OPSETS[exporter]
    if not low <= opset <= high:
        raise UsageError(
            f'{option or f"--opset-version {opset}"}: the {exporter} exporter writes opsets {low} to {high}'
        )


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of an export.

    Attributes:
        name: key in metadata and attribute of `Options`.
        choices: allowed values, '' if it may stay open; () allows any value of the default's type.
        flag: spelling on the command line; None: '--' and the name; '' cannot be typed.
        key: key in `backend_config`; None if configs cannot set it.
        minimum, maximum: bounds of typed numbers.
        only_with: (name, value) of the option that it requires.
        stated: show it in commands even at its default.
        pair: option for the argument's second value (width after height).
        hint: advice in errors about the value.
        group: title in the help; '': the general group.
        open: metadata may have values outside `choices`.
        rare: metadata omits it at its default.
        refused: value that users may expect -> why it is not allowed.
        fixes: choice -> other option -> value that the choice fixes.
    """

    name: str
    default: Any
    help: str = ''
    choices: tuple[Any, ...] = ()
    flag: str | None = None
    key: str | None = None
    metavar: str | None = None
    minimum: int | None = None
    maximum: int | None = None
    only_with: tuple[str, Any] | None = None
    stated: bool = False
    pair: str = ''
    hint: str = ''
    group: str = ''
    open: bool = False
    rare: bool = False
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    fixes: Mapping[Any, Mapping[str, Any]] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def typed(self) -> str:
        return f'--{self.name.replace("_", "-")}' if self.flag is None else self.flag

    def as_typed(self, prefix: str = '--', value: Any = None) -> str:
        """Spell the option behind `prefix`: `--fp16-io`, `--no-x`, or a key of a config."""
        if prefix != '--':
            return prefix + (self.key or self.name)
        return f'--no-{self.typed[2:]}' if self.default is True and value is False else self.typed

    def with_value(self, value: Any, prefix: str = '--') -> str:
        if prefix != '--':
            return f'{self.as_typed(prefix)}={value!r}'
        if isinstance(value, bool):
            return self.as_typed(value=value)
        return ' '.join([self.typed, *map(_argument, value if isinstance(value, tuple) else [value])])

    def with_value_of(self, values: Mapping[str, Any]) -> str:
        value = values[self.name]
        return self.with_value((value, values[self.pair]) if self.pair in values else value)

    def check(self, value: Any, prefix: str = '--') -> None:
        """Raise UsageError unless `value` is an allowed choice."""
        typed, hint = self.with_value(value, prefix), f'; {self.hint}' if self.hint else ''
        if isinstance(value, str) and value in self.refused:
            raise UsageError(f'{typed}: {self.refused[value]}')
        if self.choices:
            if value not in self.choices:
                choices = [str(choice) for choice in self.choices if choice != '']  # '' is not typed
                choices = f'one of {", ".join(choices)}' if len(choices) > 2 else ' or '.join(choices)
                raise UsageError(f'{typed}{":" if prefix == "--" else ","} expected {choices}{hint}')
            return
        types = {float: (int, float)}.get(type(self.default), (type(self.default),))
        if type(value) not in types:
            titles = {bool: 'True or False', int: 'a number', float: 'a number', tuple: 'a list'}
            raise UsageError(f'{typed}, expected {titles.get(type(self.default), "a text")}')
        if self.minimum is not None and value < self.minimum:
            minimum = 'a positive number' if self.minimum == 1 else f'at least {self.minimum}'
            raise UsageError(f'{typed}: expected {minimum}{hint}')
        if self.maximum is not None and value > self.maximum:
            raise UsageError(f'{typed}: expected at most {self.maximum}{hint}')

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Command-line words for its value in `values`; [] at an unstated default."""
        value = _as_tuple(values.get(self.name, self.default))
        if not self.typed or (value == self.default and not self.stated) or not self.has_effect(values):
            return []
        if isinstance(value, bool):
            return [self.as_typed(value=value)] if value or self.default else []
        arguments = list(value) if isinstance(value, tuple) else [value]
        if self.pair:
            arguments.append(values[self.pair])
        return [self.typed, *map(_argument, arguments)]

    def has_effect(self, values: Mapping[str, Any]) -> bool:
        return not self.only_with or values.get(self.only_with[0]) == self.only_with[1]


class Options(Mapping[str, Any]):
    """Immutable values of declared options, as mapping and attributes."""

    def __init__(self, declared: Sequence[Option], /, **values: Any) -> None:
        names = [option.name for option in declared]
        if unknown := sorted(values.keys() - set(names)):
            raise UsageError(f'{", ".join(unknown)}: no such option; there are {", ".join(names)}')
        self.__dict__['declared'] = tuple(declared)
        for option in declared:
            self.__dict__[option.name] = _as_tuple(values.get(option.name, option.default))

    def __getitem__(self, name: str) -> Any:
        if name == 'declared':
            raise KeyError(name)
        return self.__dict__[name]

    def __iter__(self) -> Iterator[str]:
        return iter([option.name for option in self.declared])

    def __len__(self) -> int:
        return len(self.declared)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f'{name}: options do not change; use replace()')

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __repr__(self) -> str:
        return f'Options({", ".join(f"{name}={self[name]!r}" for name in self._changed())})'

    def _changed(self) -> list[str]:
        return [option.name for option in self.declared if self[option.name] != option.default]

    def replace(self, **changes: Any) -> Options:
        return Options(self.declared, **{**self, **changes})

    def check(self, prefix: str = '--', names: Iterable[str] | None = None) -> None:
        """Raise UsageError for refused values, options without effect, and conflicts.

        `names` are the typed options; default: all that are not at their default.
        """
        names = set(self._changed() if names is None else names)
        by_name = {option.name: option for option in self.declared}
        for name, option in by_name.items():
            if name not in names:
                continue
            value = self[name]
            option.check(value, prefix)
            if not option.has_effect(self):
                condition, needed = option.only_with
                needed_option = by_name[condition].with_value(needed, prefix)
                raise UsageError(
                    f'{option.with_value(value, prefix)} goes with {needed_option} only, got '
                    f'{self[condition]}'
                )
            fixing, fixed_value = self.fixed.get(name, (None, value))
            if fixing is not None and value not in (fixed_value, '') and (value or value is False):
                reason = f'{by_name[fixing].with_value(self[fixing], prefix)} is written with {fixed_value}'
                raise UsageError(f'{option.with_value(value, prefix)}: {reason}; leave it out')

    def refuse(self, options: Iterable[Option], reason: str) -> None:
        """Raise UsageError with `reason` if an option is set."""
        for option in options:
            if self[option.name] != option.default:
                raise UsageError(f'{option.with_value_of(self)}: {reason}; leave it out')

    @property
    def fixed(self) -> dict[str, tuple[str, Any]]:
        """Option -> (option whose choice fixes it, fixed value)."""
        return {
            name: (option.name, value)
            for option in self.declared
            for name, value in option.fixes.get(self[option.name], {}).items()
        }

    def to_json(self) -> dict[str, Any]:
        rare = {
            option.name for option in self.declared if option.rare and self[option.name] == option.default
        }
        return {name: _as_list(value) for name, value in self.items() if name not in rare}


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list | tuple) else value


def _as_list(value: Any) -> Any:
    return list(map(_as_list, value)) if isinstance(value, tuple) else value


def _argument(value: Any) -> str:
    return f'{value[0]}={":".join(value[1:])}' if isinstance(value, tuple) else str(value)


NO_BF16_FILE = (
    'a file has no bfloat16 form: ONNX has bfloat16 convolutions from opset 22 on, the exporters write up to '
    '20. Export fp32 and let OpenVINO compute it in bfloat16: --inference-precision bf16, or '
    "inference_precision='bf16' in backend_config"
)

FORM = Option(
    'form',
    'full',
    'full: detections; decode: boxes, scores, centerness; raw: head outputs; post: from raw to detections; '
    'proposals, regions: the two graphs of a two-stage detector (default: full)',
    ('full', 'decode', 'raw', 'post', 'proposals', 'regions'),
    flag='--postprocess',
    key='postprocess',
    stated=True,
    open=True,
)
OPSET = Option(
    'opset',
    DEFAULT_OPSET,
    'opset of the file, 11 to 20 (default: 17; 18 for dynamo; 19 with DCN)',
    flag='--opset-version',
    key='opset_version',
    metavar='N',
    stated=True,
)
EXPORTER = Option(
    'exporter',
    'torchscript',
    'exporter of PyTorch (default: torchscript)',
    ('torchscript', 'dynamo'),
    key='exporter',
    stated=True,
)
SIMPLIFY = Option('simplify', False, 'simplify the graph with onnxslim', key='simplify')
GROUP_NORM = Option(
    'group_norm',
    '',
    'GroupNorm: operator uses InstanceNormalization, which is fast but sums less exactly in ONNX Runtime; '
    'exact takes 1.2 to 1.8 times as long (default: exact in float32 if the backbone has a GroupNorm, '
    'else operator)',
    ('', 'operator', 'exact'),
    key='group_norm',
)
PRECISIONS = ('fp32', 'fp16', 'bf16')
"""Choices of `--inference-precision`; a file has one of the first two."""
PRECISION = Option(
    'precision',
    'fp32',
    'fp16: float16 in the graph, float32 in the post-processing; for bf16 see --inference-precision '
    '(default: fp32)',
    ('fp32', 'fp16'),
    key='precision',
    group='half precision',
    refused=dict(bf16=NO_BF16_FILE),
)
FP16_IO = Option(
    'fp16_io',
    False,
    'with fp16: also make input images and output features float16',
    key='fp16_io',
    group='half precision',
    only_with=('precision', 'fp16'),
)
KEEP_FP32 = Option(
    'keep_fp32',
    (),
    "with fp16: more nodes that stay float32, by name, operator, module or output ('*', '?')",
    key='keep_fp32',
    metavar='PATTERN',
    group='half precision',
    only_with=('precision', 'fp16'),
)
KEEP_RESULTS = Option(
    'keep_results',
    0.0,
    'with fp16: find the modules that must stay float32 to keep this share of the results, e.g. 0.999',
    metavar='SHARE',
    minimum=0,
    maximum=1,
    only_with=('precision', 'fp16'),
    group='half precision',
    rare=True,
)
HALF = (PRECISION, FP16_IO, KEEP_FP32, KEEP_RESULTS)

HOSTS = '2D models in other programs'
INPUT = Option(
    'input',
    'float32',
    'float32: normalised images (default); uint8: pixels (N, 3, H, W); uint8-nhwc: pixels (N, H, W, 3), '
    'with mean, std, channel order and padding in the graph',
    ('float32', 'uint8', 'uint8-nhwc'),
    key='input',
    group=HOSTS,
    rare=True,
)
CHANNELS = Option(
    'channels',
    '',
    "with --input uint8: channel order of the pixels (default: as in the config's Normalize)",
    ('', 'rgb', 'bgr'),
    key='channels',
    group=HOSTS,
    rare=True,
)
REQUIRED_INPUTS = Option(
    'required_inputs',
    False,
    'img_shape, scale_factor and other inputs with a default become required inputs',
    key='required_inputs',
    group=HOSTS,
    rare=True,
)
OUTPUTS = Option(
    'outputs',
    'detections',
    'detections: dets and labels (default); efficient-nms: num_dets, det_boxes, det_scores, det_classes of '
    "constant shape, which DeepStream's parsers read",
    ('detections', 'efficient-nms'),
    key='outputs',
    group=HOSTS,
    only_with=('form', 'full'),
    rare=True,
)
FOR_HOSTS = (INPUT, CHANNELS, REQUIRED_INPUTS, OUTPUTS)
"""Options that change inputs and outputs of image graphs, see `families/host_programs.py`."""

LARGEST_K = 3840
"""Most rows that TensorRT's TopK returns."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What a program needs of a file.

    Attributes:
        needs: option -> value; a family without the option is refused.
        prefers: option -> value, where the family has the option.
        largest_k: most candidates of an image in a fixed-shape `full` file; 0: no limit.
    """

    needs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefers: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    largest_k: int = 0


TENSORRT_PREFERS = dict(grid_sample='gather', sparse_form='tables')
TARGETS = dict(
    tensorrt=Target(prefers=dict(TENSORRT_PREFERS, required_inputs=True), largest_k=LARGEST_K),
    # nvinfer feeds images only: TensorRT takes the defaults of other inputs as constants
    deepstream=Target(dict(outputs='efficient-nms'), TENSORRT_PREFERS, LARGEST_K),
    openvino=Target(prefers=dict(required_inputs=True)),
    web=Target(dict(input='uint8-nhwc', channels='rgb'), dict(required_inputs=True)),
    autoware=Target(dict(contract='autoware')),
)
"""Choice of `--for` -> what it needs."""
MADE_FOR = Option(
    'made_for',
    '',
    'set the options that this program needs and limits that its engine supports; options that you pass win',
    ('', *TARGETS),
    flag='--for',
    rare=True,
)

IMAGE = (
    FORM,
    OPSET,
    Option(
        'height',
        0,
        'height and width of the input, or one number for both (default: from the test pipeline)',
        maximum=16_384,
        flag='--shape',
        key='shape',
        metavar='N',
        stated=True,
        pair='width',
    ),
    Option('width', 0, maximum=16_384, flag=''),
    Option(
        'batch',
        1,
        'fixed batch size of the graph (default: 1)',
        flag='--batch-size',
        metavar='N',
        minimum=1,
        stated=True,
    ),
    Option(
        'dynamic',
        False,
        'accept any batch, height and width',
        flag='--dynamic-export',
        key='dynamic',
    ),
    EXPORTER,
    Option(
        'score_form',
        'separate',
        'decode form: centerness as a separate output, or multiplied into the scores (default: separate)',
        ('separate', 'product'),
        only_with=('form', 'decode'),
    ),
    SIMPLIFY,
    GROUP_NORM,
    *HALF,
    *FOR_HOSTS,
    MADE_FOR,
)
"""Options of every family of single images."""
OF_SOME = 'options of some families'
MAX_CANDIDATES = Option(
    'max_candidates',
    0,
    'full form: keep at most the K best candidates, with constant shapes, for TensorRT (default: all)',
    key='max_candidates',
    metavar='K',
    minimum=1,
    hint='omit it to keep all',
    only_with=('form', 'full'),
    group=OF_SOME,
)
MAX_PROPOSALS = dataclasses.replace(
    MAX_CANDIDATES,
    name='max_proposals',
    help='full form, with --max-candidates: keep at most the K best proposals (default: all)',
    key='max_proposals',
)
COUNTERS = {MAX_CANDIDATES.name: 'candidates', MAX_PROPOSALS.name: 'proposal_candidates'}
"""Limit of candidates before NMS -> output with their number in each image."""
LIMITS = tuple(COUNTERS)
DRIVE = (PRECISION, FP16_IO, OPSET, EXPORTER, SIMPLIFY, KEEP_FP32, KEEP_RESULTS, MADE_FOR)
"""Options of every family of frames or sweeps."""

CONTRACT = Option(
    'contract', '', 'program that loads the files', key='contract', stated=True,
    group='models of cameras and sweeps',
)  # fmt: skip


def own_contract(name: str, text: str) -> Option:
    """`--contract` for a family's own files; `registry.register_contract` adds choices."""
    return dataclasses.replace(CONTRACT, default=name, help=f'{name}: {text} (default)', choices=(name,))


NMS_PLUGIN = Option(
    'nms_plugin',
    False,
    "with --outputs efficient-nms: use TensorRT's plug-in EfficientNMS_TRT for NMS; needs "
    '--max-candidates K and --required-inputs',
    key='nms_plugin',
    group=HOSTS,
    only_with=('outputs', 'efficient-nms'),
    rare=True,
)

SPARSE_FORM = Option(
    'sparse_form',
    'buckets',
    'sparse backbone: buckets multiplies existing pairs only (default); tables uses plain neighbour '
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
        "axis order of coordinates and weights (default: from the name of --out, else the reference's)",
        ('', 'xyz', 'zyx'),
    ),
    Option(
        'precision',
        '',
        'precision attribute of all layers (default: none, which the engine reads as fp16)',
        ('', 'fp16', 'int8'),
        only_with=('target', 'libspconv'),
    ),
    Option(
        'int8_fp16_io',
        False,
        'with --precision int8: the first layers compute in fp16 and the last one returns fp16, as in '
        "NVIDIA's INT8 files",
        flag='--int8-fp16-input-output',
        only_with=('precision', 'int8'),
    ),
    Option(
        'layer_precision',
        (),
        'precision P of layers by node or module name (*, ?), stored in Q (default: P); later patterns win',
        metavar='PATTERN=P[:Q]',
        only_with=('target', 'libspconv'),
    ),
    Option('fold', 'fp32', 'precision for folding batch norm (default: fp32)', ('fp16', 'fp32')),
    Option(
        'output_bound',
        0,
        'number of active sites that the engine reserves memory for (default, and 0: 200000, as in '
        'the reference)',
        metavar='N',
        minimum=0,
        only_with=('target', 'libspconv'),
    ),
    dataclasses.replace(SPARSE_FORM, name='form', key=None, only_with=('target', 'portable'), group=''),
)
