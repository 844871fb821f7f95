"""What can be chosen about a graph, each choice declared once; needs neither torch nor mmcv.

Argument parsers, keys of `backend_config`, metadata of files and the commands that export again derive from
these declarations. A family says in its `options` which of them it has.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.contract.schema import Check, Mismatch, exactly, items, number, one_of, text
from mmdeploy_ext.contract.stages import DEFAULT_OPSET
from mmdeploy_ext.core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NAME = text(r'(?s).+', 'a text that is not empty')
FLAG = one_of(True, False)
SIZE = number(0, 16_384, whole=True)
NO_BF16_FILE = (
    'a file has no bfloat16 form: ONNX has bfloat16 convolutions from opset 22 on, the exporters write up to '
    '20. Export fp32 and let OpenVINO compute it in bfloat16: --inference-precision bf16, or '
    "inference_precision='bf16' in backend_config"
)


@dataclasses.dataclass(frozen=True)
class Option:
    """One choice about a graph.

    Attributes:
        name: as the metadata keeps it, and attribute of `Options`.
        default: its value where nothing is said.
        help: for the command line.
        choices: values that there are; empty: any that `schema` passes.
        schema: check of its value in the metadata of a file.
        flag: on the command line; by default from the name; an empty one is derived from other arguments.
        key: in `backend_config`; None where configs do not choose it.
        metavar: of its argument.
        least: of a number that is given.
        only_with: name and value of the option that it goes with; has no effect with other values.
        kept: when the metadata keep it: 'always', 'set' (not at its default), or 'half' (in float16 files).
        told: whether the command that exports again says it at its default, too.
        pair: name of the option whose value follows in the same argument: height and width.
        hint: what to do instead of a value that there is not.
        group: title above it in the help.
        open: whether families may have other choices.
        refused: values that are no choice -> why.
    """

    name: str
    default: Any
    help: str = ''
    choices: tuple[Any, ...] = ()
    schema: Check = NAME
    flag: str | None = None
    key: str | None = None
    metavar: str | None = None
    least: int | None = None
    only_with: tuple[str, Any] | None = None
    kept: str = 'always'
    told: bool = False
    pair: str = ''
    hint: str = ''
    group: str = ''
    open: bool = False
    refused: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @property
    def typed(self) -> str:
        """Return the option as it is typed on a command line."""
        return f'--{self.name.replace("_", "-")}' if self.flag is None else self.flag

    def spelt(self, where: str = '--', value: Any = None) -> str:
        """Return the option as the user wrote it: `--fp16-io`, or a key of a config behind `where`."""
        if where != '--':
            return where + (self.key or self.name)
        return f'--no-{self.typed[2:]}' if self.default is True and value is False else self.typed

    def said(self, value: Any, where: str = '--') -> str:
        """Return the option with its value, as the user wrote it."""
        if isinstance(value, bool):
            return self.spelt(where, value)
        shown = ' '.join(map(str, value)) if isinstance(value, tuple) else value
        return f'{self.spelt(where)} {shown}' if where == '--' else f'{self.spelt(where)}={value!r}'

    def said_of(self, values: Mapping[str, Any], where: str = '--') -> str:
        """Return the option with its value of all, as the user wrote it."""
        value = values[self.name]
        return self.said((value, values[self.pair]) if self.pair in values else value, where)

    def check(self, value: Any, where: str = '--') -> None:
        """Refuse a value that there is not.

        Raises:
            UsageError: the message says what there is.
        """
        said, hint = self.said(value, where), f'; {self.hint}' if self.hint else ''
        if isinstance(value, str) and value in self.refused:
            raise UsageError(f'{said}: {self.refused[value]}')
        if self.choices:
            if value not in self.choices:
                several = f'one of {", ".join(self.choices)}'
                shown = several if len(self.choices) > 2 else ' or '.join(self.choices)
                raise UsageError(f'{said}{":" if where == "--" else ","} expected {shown}{hint}')
            return
        if isinstance(self.default, int) and type(value) is not type(self.default):
            kind = 'a number' if type(self.default) is int else 'True or False'
            raise UsageError(f'{said}, expected {kind}')
        if self.least is not None and value < self.least:
            least = 'a positive number' if self.least == 1 else f'at least {self.least}'
            raise UsageError(f'{said}: expected {least}{hint}')
        try:
            self.schema(list(value) if isinstance(value, tuple) else value, '')
        except Mismatch as error:
            raise UsageError(f'{said}: {error}') from error

    def add_to(self, parser: Any) -> None:
        """Add the option to a parser or a group of one; None stands for not given."""
        import argparse

        kind: dict[str, Any] = {}
        if isinstance(self.default, bool):
            on_off = argparse.BooleanOptionalAction
            kind = dict(action=on_off) if self.default else dict(action='store_const', const=True)
        elif isinstance(self.default, tuple):
            kind = dict(nargs='+', metavar=self.metavar)
        elif self.choices:
            kind = dict(choices=(*filter(None, self.choices), *self.refused))
        else:
            kind = dict(type=type(self.default), metavar=self.metavar, nargs='+' if self.pair else None)
        parser.add_argument(self.typed, dest=self.name, help=self.help, default=None, **kind)

    def words(self, values: Mapping[str, Any]) -> list[str]:
        """Return the words of a command line that choose its value of `values`; none for the default."""
        value = values.get(self.name, self.default)
        if not self.typed or (value == self.default and not self.told) or not self.counts(values):
            return []
        if isinstance(value, bool):
            return [self.spelt(value=value)]
        said = value if isinstance(value, list | tuple) else [value]
        pairs = [values[self.pair]] if self.pair else []
        return [self.typed, *(one if isinstance(one, str) else _word(one) for one in (*said, *pairs))]

    def counts(self, values: Mapping[str, Any]) -> bool:
        """Return whether the option has an effect with the other values."""
        return not self.only_with or values.get(self.only_with[0]) == self.only_with[1]


def _word(value: Any) -> str:
    """Return a value as one word; PATTERN=P:Q of three."""
    return f'{value[0]}={":".join(value[1:])}' if isinstance(value, list | tuple) else str(value)


class Options(Mapping[str, Any]):
    """Values of declared options: a mapping, and attributes of the same names; none of them changes."""

    def __init__(self, declared: Sequence[Option], /, **values: Any) -> None:
        """Take values over; the others have their defaults.

        Raises:
            UsageError: a value of no declared option.
        """
        names = [option.name for option in declared]
        if unknown := sorted(values.keys() - set(names)):
            raise UsageError(f'{", ".join(unknown)}: no such option; there are {", ".join(names)}')
        self.__dict__['declared'] = tuple(declared)
        self.__dict__.update({one.name: _plain(values.get(one.name, one.default)) for one in declared})

    def __getitem__(self, name: str) -> Any:
        """Return one value."""
        if name == 'declared':
            raise KeyError(name)
        return self.__dict__[name]

    def __iter__(self) -> Iterator[str]:
        """Return the names, in the order in which the metadata keep them."""
        return iter([option.name for option in self.declared])

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.declared)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a change."""
        raise AttributeError(f'{name}: options do not change; use replace()')

    def __hash__(self) -> int:
        """Return a hash of the values."""
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        """Return what is not at its default."""
        changed = (f'{one.name}={self[one.name]!r}' for one in self.declared if self[one.name] != one.default)
        return f'Options({", ".join(changed)})'

    def replace(self, **changes: Any) -> Options:
        """Return the options with other values."""
        return Options(self.declared, **{**self, **changes})

    def check(self, where: str = '--', given: Iterable[str] | None = None) -> None:
        """Refuse values that there are not, and options that have no effect with the others.

        Args:
            where: what stands before a name in the message; '--' spells it as on the command line.
            given: names of those that the user gave; by default those that are not at their default.

        Raises:
            UsageError: the message says what there is, or what goes with what.
        """
        if given is None:
            given = [one.name for one in self.declared if self[one.name] != one.default]
        known = {one.name: one for one in self.declared}
        for option in (known[name] for name in known if name in set(given)):
            value = self[option.name]
            option.check(value, where)
            if not option.counts(self):
                other, wanted = option.only_with
                goes_with = f'goes with {known[other].said(wanted, where)}, got {self[other]}'
                raise UsageError(f'{option.said(value, where)} {goes_with}')

    def to_json(self) -> dict[str, Any]:
        """Return what the metadata keep, as plain JSON types."""
        kept = {one.name: self[one.name] for one in self.declared if self._keeps(one)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}

    def _keeps(self, option: Option) -> bool:
        if option.kept == 'half':
            return self['precision'] != 'fp32'
        return option.kept == 'always' or self[option.name] != option.default


def _plain(value: Any) -> Any:
    """Return a value that can be hashed: lists become tuples."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


FORM = Option(
    'form',
    'full',
    'full: detections (default); decode: boxes, scores, centerness; raw: head outputs',
    ('full', 'decode', 'raw'),
    flag='--postprocess',
    key='postprocess',
    told=True,
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
    told=True,
)
EXPORTER = Option(
    'exporter', 'torchscript', 'default: torchscript', ('torchscript', 'dynamo'), key='exporter', told=True
)
SIMPLIFY = Option('simplify', False, 'run onnxslim over the graph', schema=FLAG, key='simplify')
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
    kept='set',
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
        told=True,
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
        told=True,
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
    *(dataclasses.replace(option, kept='half') for option in HALF),
)
"""What every family of single images has."""
LAYOUT = Option(
    'layout',
    'batched',
    'SOLO, raw form: cells of all levels with a batch axis (default), or exactly the outputs of the fork '
    'zhangjinsong3/SOLOv2.tensorRT',
    ('batched', 'fork'),
    only_with=('form', 'raw'),
    group='options of some families',
)
MAX_CANDIDATES = Option(
    'max_candidates',
    0,
    'SOLO and ATSS, full form: the K best candidates at most, 1 or more, with constant shapes; for TensorRT '
    '(default, without the option: all)',
    schema=number(0, 10**9, whole=True),
    key='max_candidates',
    metavar='K',
    least=1,
    hint='leave it out for all',
    only_with=('form', 'full'),
    group='options of some families',
)
FUSE = Option(
    'fuse',
    True,
    'RT-DETR: branches of RepVGG blocks become one convolution (default: they do)',
    schema=FLAG,
    group='options of some families',
)
GRID_SAMPLE = Option(
    'grid_sample',
    'operator',
    'RT-DETR: gather replaces GridSample for engines that get it wrong (TensorRT 10.14 to 11.1)',
    ('operator', 'gather'),
    key='grid_sample',
    group='options of some families',
)
DYNAMIC_BATCH = Option(
    'dynamic_batch',
    False,
    'RT-DETR: the batch stays dynamic, the size is fixed',
    schema=FLAG,
    group='options of some families',
)
IMAGE_OWN = (LAYOUT, MAX_CANDIDATES, FUSE, GRID_SAMPLE, DYNAMIC_BATCH)
"""What some families of single images have."""

CONTRACT = Option(
    'contract',
    'deploy',
    'deploy: three graphs, state in the last LiDAR frame (default); fork: the one graph of the StreamPETR '
    'deployment fork',
    ('deploy', 'fork'),
    key='contract',
    told=True,
    group='models of frames (StreamPETR)',
)
FORK_VERSION = Option(
    'fork_version',
    '1.0',
    "the fork's branch: 1.0 has 12 inputs with absolute time (default), 1.1 has 11 with ages",
    ('1.0', '1.1'),
    key='fork_version',
    only_with=('contract', 'fork'),
    told=True,
    group='models of frames (StreamPETR)',
)
FORK_IMG2LIDAR = Option(
    'fork_img2lidar',
    'token',
    'matrices per token (default), or per token and depth bin',
    ('token', 'depth'),
    key='fork_img2lidar',
    only_with=('contract', 'fork'),
    told=True,
    group='models of frames (StreamPETR)',
)
LAYERS = Option(
    'layers',
    'all',
    'decoder layers in the outputs (default: all)',
    ('all', 'last'),
    key='layers',
    told=True,
    group='models of frames (StreamPETR)',
)
STREAM_OWN = (CONTRACT, FORK_VERSION, FORK_IMG2LIDAR, LAYERS)
DETECTOR = (*IMAGE, *IMAGE_OWN, *STREAM_OWN)
"""What `pytorch2onnx.py` takes."""
STREAM = (*STREAM_OWN, PRECISION, FP16_IO, OPSET, EXPORTER, SIMPLIFY, KEEP_FP32)
"""What families of frames and sweeps have."""

SPARSE = (
    Option(
        'target',
        'libspconv',
        "libspconv: NVIDIA's dialect (default); portable: standard operators, for any engine",
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
    ),
    Option(
        'int8_fp16_io',
        False,
        "with --precision int8: the reference's INT8 file: its first layers compute in fp16, the last gives "
        "fp16; CenterPoint's conv_input is folded in fp16 and calibrated before",
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
    ),
    Option('fold', 'fp32', 'how batch norm is folded (default: fp32)', ('fp16', 'fp32')),
    Option(
        'output_bound',
        0,
        'most active sites that the engine makes room for (default: 200000, as the reference)',
        schema=number(0, 10**9, whole=True),
        metavar='N',
        least=0,
    ),
    Option(
        'form',
        'buckets',
        'of a portable file: buckets multiplies existing pairs only (default); tables takes plain neighbour '
        'tables, two to five times slower, for engines that cannot split at run time (TensorRT)',
        ('buckets', 'tables'),
        only_with=('target', 'portable'),
    ),
)
"""How a sparse backbone is written."""


def schemas(declared: Iterable[Option]) -> dict[str, Check]:
    """Return name -> check of the value in the metadata of a file."""
    chosen = {one.name: one_of(*one.choices) for one in declared if one.choices and not one.open}
    return {one.name: chosen.get(one.name, one.schema) for one in declared}
