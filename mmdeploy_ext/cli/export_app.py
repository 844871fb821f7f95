"""`pytorch2onnx.py`: export a detector, and prove it with `--verify`. `export_scn.py` derives from it."""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mmdeploy_ext.api import Exported, ModelSource, check_normalisation, check_provable, export_source
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.cli import proof
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.commands import command, tool
from mmdeploy_ext.core.errors import Mm2OnnxError, UsageError, after_weights
from mmdeploy_ext.core.files import will_write
from mmdeploy_ext.core.user_modules import libraries_not_run, not_run_text
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.engines.registry import check_engine_kind
from mmdeploy_ext.families.base import DETECTOR, Family
from mmdeploy_ext.proving.inputs.samples import Samples
from mmdeploy_ext.proving.tasks import task_module

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from mmdeploy_ext.contract.options import Options
    from mmdeploy_ext.exporting.deployment import Deployment


IMAGE_OPTIONS = ('input_img', 'mean', 'std', 'show')
"""Arguments about pictures."""
SIZES = {False: 'fixed', True: 'dynamic'}
"""`Options.dynamic` -> the word of the table of --check."""
ENGINE_OPTIONS = ('engine', 'providers', 'threads', 'inference_precision')
"""Arguments about the engine that runs the file."""


def build_parser(only_check: bool = False) -> argparse.ArgumentParser:
    """Return the parser; options of mmdet 2.28's pytorch2onnx.py have their names and meaning.

    --dataset does nothing. `only_check`: the command line has --check, which needs no checkpoint.
    """
    parser = cli.ArgumentParser(
        description='Export an OpenMMLab 1.x detector to ONNX and prove that it is the same model.'
    )
    shared.add_model_arguments(parser, needs_checkpoint=not only_check)
    add = cli.adder(parser)
    add('--check', 'say what would be exported, how, and what would be refused; takes no CHECKPOINT')
    add(
        '--output-file OUTPUT_FILE',
        'where the graph is written (default: tmp.onnx); three graphs go to a folder '
        "(default: the config's name)",
        writes='{}',
    )
    add('--input-img INPUT_IMG', 'image that is traced (default: demo/toy.jpg)')
    add(
        '--test-img TEST_IMG...',
        'samples that --verify adds, as --images of verify.py: images or folders (default: the '
        'mirrored --input-img), LiDAR sweeps or an info file (default: of the data set, else generated)',
    )
    shared.add_graph_arguments(parser)
    shared.add_normalisation_arguments(parser)
    add(
        '--dataset DATASET',
        'accepted for old command lines; class names come from the checkpoint or the config',
    )
    add('--verify', 'prove the file; exit status 1 when it is not')
    add('--show', "draw both engines' detections to OUTPUT_FILE.png and print the graph")
    shared.add_proof_arguments(parser)
    shared.add_library_argument(parser)
    shared.add_report_arguments(parser)
    cli.add_debug_option(parser)
    return parser


class Export:
    """One export from the command line, and its proof; `run` does both.

    Attributes:
        product: the part of the model that is exported: DETECTOR or BACKBONE of `families.base`.
        samples_option: option that names samples of the proof, for messages.
        weight_layout: layout of the kernels in the checkpoint of a sparse backbone; 'auto' finds it.
        engine: name of the backend (`engine`) by which the proof runs the file, and the backend's options.
        source: config and checkpoint, once `run` has read them.
        family: the family that claims the config.
        options: options of the export.
        claims: further arguments of `proving.ladder.prove`, by which the proof judges the file: `strict`, and
            those that a subclass sets.
        args: parsed arguments of the command line.
        only: name of the one family that the tool is for; '' for all.
    """

    product: ClassVar[str] = DETECTOR
    samples_option: ClassVar[str] = '--test-img'
    weight_layout = 'auto'
    engine: dict[str, Any]
    family: Family
    options: Options

    def __init__(self, args: argparse.Namespace, only: str = '') -> None:
        """Keep the arguments; `only` names the one family that the tool is for."""
        self.args, self.only = args, only
        self.claims: dict[str, Any] = {}

    def values(self) -> dict[str, Any]:
        """Return name -> value of the options on the command line, after checks that need no config.

        Opset 0 stands for the model's default. `engine` is set to what --engine and its options say.
        UsageError: options that do not go together, or values that are out of range. EngineError: the engine
        is not here, see `options.engine_options`.
        """
        args = self.args
        self.engine, values = shared.engine_options(args), shared.graph_values(args)
        if args.strict and not args.verify:
            raise UsageError('--strict: goes with --verify')
        for name in ('report', 'json', 'frames'):
            if getattr(args, name) is not None and not args.verify:
                raise UsageError(f'--{name} {getattr(args, name)}: goes with --verify')
        if not args.verify and not args.show:
            reason = 'goes with --verify; the export itself runs no engine'
            shared.refuse_options(args, build_parser(), ENGINE_OPTIONS, reason)
        check_normalisation(args.mean, args.std)
        self.claims['strict'] = args.strict
        return {'opset': 0, **values}

    def run(self) -> int:
        """Export, and prove with --verify; with --check print what would be exported.

        Return the exit status: 0 exported, checked or proven, 1 not proven. UsageError: options that do not
        go together or with the model; further errors are those of config, checkpoint and export.
        """
        cli.wait_passively()
        args, values = self.args, self.values()
        cfg_options = shared.parse_cfg_options(args.cfg_options)
        proof.check_report_targets(args)
        self.source = ModelSource.read(
            args.config,
            args.checkpoint or '',
            cfg_options,
            args.device,
            product=self.product,
            weight_layout=self.weight_layout,
        )
        self.family = self.source.family
        self.check_family()
        self.options = self.family.choose(**values)
        self.options.check(names=values)
        if not_run := libraries_not_run(self.source.cfg):
            advice = '' if args.library else '; a proof of it takes --library installed'
            print(not_run_text(not_run) + advice)
        if getattr(args, 'check', False):
            return print_exports(self.source.cfg, self.family, self.options)
        if args.verify:
            check_provable(self.family)
        return self.export(Samples(self.family, args.test_img or [], args.frames, self.samples_option))

    def check_family(self) -> None:
        """Raise UsageError for a family that the tool is not for, and arguments that it does not have.

        EngineError: the engine does not run models of frames or sweeps, and the family is one.
        """
        args, family = self.args, self.family
        if self.only and family.name != self.only:
            raise UsageError(
                f'{args.config}: is a config of family {family.name!r}, expected {self.only!r}; '
                f'use {tool("export")} for it'
            )
        if family.samples != 'images':
            reason = f'family {family.name!r} has no such option; {family.of_config}'
            shared.refuse_options(args, build_parser(), IMAGE_OPTIONS, reason)
            check_engine_kind(self.engine['engine'], self.engine.get('inference_precision'))

    def export(self, samples: Samples) -> int:
        """Write the files; with --verify prove them on the samples, else print the command that does.

        Returns the exit status: 0 written, or proven; 1 not proven.
        """
        args, family = self.args, self.family
        args.output_file = args.output_file or family.default_output(Path(args.config).stem, self.options)
        exported = self.write(samples)
        if args.verify:
            verdict, pictures = exported.prove(self.engine, library=args.library, **self.claims)
            return proof.show(verdict, pictures, exported.deployment, args)
        name, *words = *self.proof_command(), *shared.proof_words(args)
        print(f'NOT PROVEN: nothing was compared. Prove it with\n  {command(name)} {shlex.join(words)}')
        return 0

    def check(self) -> None:
        """Refuse a picture of --show that is a file of another option, before the weights load.

        UsageError: this run reads the file, or another option writes it.
        """
        if self.args.show:
            will_write('--show', [f'{self.args.output_file}.png'])

    def write(self, samples: Samples) -> Exported:
        """Write the files, and print what they are; with --show also the graph, and a picture.

        `samples` are those of the proof, which are read if --verify is given.
        """
        args = self.args
        exported = export_source(
            self.source,
            args.output_file,
            self.options,
            samples=samples if args.verify else None,
            picture=args.input_img or '',
            mean=args.mean,
            std=args.std,
            before_weights=self.check,
        )
        files = exported.files
        title = _title(self.family, exported.options, len(files))
        print(f'{args.output_file}: {title}, exported in {exported.seconds:.1f} s')
        if args.show:
            with after_weights():
                _show(exported.deployment, files[0], exported.traced[0], self.engine)
        return exported

    def proof_command(self) -> list[str]:
        """Return the name of the command that proves the files, and its words without `proof_words`."""
        return ['verify', self.args.config, self.args.checkpoint, self.args.output_file]


def _title(family: Family, options: Options, count: int) -> str:
    """Return family, form or contract, opset, precision and shape of an export in words."""
    numbers = f'opset {options.opset}, {options.precision}'
    if 'contract' in options:
        return f'{options.contract} contract, {count} graph(s), {numbers}'
    shape = 'dynamic batch, fixed size' if options.get('dynamic_batch') else 'fixed shape'
    if options.dynamic:
        shape = 'dynamic batch and size'
    return f'{family.name}/{options.form}, {numbers}, {shape}'


def _show(
    deployment: Deployment, path: str, image: tuple[str, np.ndarray], engine: Mapping[str, Any]
) -> None:
    """Print the graph and draw both engines' detections beside the file."""
    import onnx
    import onnx.printer

    from mmdeploy_ext.proving.levels.attempts import attempt
    from mmdeploy_ext.proving.levels.cases import judge_outputs
    from mmdeploy_ext.proving.levels.exported_file import open_file
    from mmdeploy_ext.proving.references import references
    from mmdeploy_ext.runtime.draw import write_picture

    file = open_file(path)
    graph = onnx.GraphProto()
    graph.CopyFrom(file.model.graph)
    graph.ClearField('initializer')  # their values would fill the screen
    print(onnx.printer.to_text(graph))
    with build_backend(path=path, **engine) as backend:
        traced = references(deployment, deployment.family.exported_options(file.options, path), [image])[0]
        outputs = attempt(lambda: backend.infer(traced.feeds_of(backend.metadata)))
        _, pairs = judge_outputs(traced, backend, outputs)
    task = task_module(deployment.family.task)
    for pair in pairs[:1]:
        picture = Path(f'{path}.png')
        write_picture(picture, task.draw_pair(task.fit_pair(pair), deployment.classes))
        print(f'detections side by side: {picture}')


def print_exports(cfg: Any, family: Family, options: Options) -> int:
    """Print a table of the exports of a config, in each form, fixed and dynamic; needs no weights.

    `cfg` is mmcv's config, `options` are those of the requested export.

    Returns:
        0: the config and the options allow the requested export.

    Raises:
        Mm2OnnxError: they do not, for example ConfigError or UsageError; there is no table then, unless only
            the graph is refused. Other exports that are refused are rows of the table, with the reason.
    """
    from rich.console import Console
    from rich.table import Table

    from mmdeploy_ext.exporting import deployment as deploy

    model = family.build(cfg)
    options = deploy.check_options(options, cfg, family, model)
    console = Console(width=150)
    console.print(f'{cfg.filename}: family {family.name}', highlight=False)
    rule = ', '.join(f'{key} {value}' for key, value in family.preprocess_rule(cfg).to_json().items())
    for title, value in {**_part_types(cfg), 'preprocessing': rule}.items():
        console.print(f'  {title:14} {value}', highlight=False)
    table = Table(title='exports')
    for title in ('form', 'size', 'opset', 'inputs', 'outputs, or why it is refused'):
        table.add_column(title)
    forms = next((option.choices for option in options.declared if option.name == 'form'), ())
    for form in forms or (None,):
        for dynamic in SIZES if 'dynamic' in options else (None,):
            changes = {} if form is None else dict(form=form)
            if dynamic is not None:
                changes['dynamic'] = dynamic
            table.add_row(*_export_row(cfg, family, model, options.replace(**changes)))
    console.print(table)
    family.graphs(model, options)  # which may refuse the requested export
    return 0


def _part_types(cfg: Any) -> dict[str, str]:
    """Return the type names of a detector's parts by their keys."""
    types = dict(detector=str(cfg.model.type))
    for key, value in cfg.model.items():
        parts = value if isinstance(value, list | tuple) else [value]
        names = [str(part['type']) for part in parts if isinstance(part, dict) and 'type' in part]
        if names:
            types[key] = ' + '.join(names)
    return types


def _export_row(cfg: Any, family: Family, model: Any, options: Options) -> tuple[str, ...]:
    """Return the row of an export: form, size, opset, inputs and outputs, or why it is refused."""
    from mmdeploy_ext.exporting import deployment as deploy

    size = f'{options.get("height")} x {options.get("width")}' if 'height' in options else ''
    title = options.get('form', ''), f'{SIZES.get(options.get("dynamic"), "")} {size}'.strip()
    try:
        options.check()
        options = deploy.check_options(options, cfg, family, model)
        graphs = family.graphs(model, options)
    except Mm2OnnxError as error:
        return *title, '', '', str(error)
    texts = [
        '\n'.join(
            f'{tensor.name} {"x".join(map(str, tensor.axes))}'
            for graph in graphs
            for tensor in getattr(graph.spec, side)
        )
        for side in ('inputs', 'outputs')
    ]
    return *title, str(options.get('opset', '')), *texts


def main(argv: Sequence[str] | None = None, only: str = '') -> int:
    """Run the tool.

    Args:
        argv: command line; None reads sys.argv.
        only: the one family that the tool takes; '' takes all.

    Returns:
        0 exported (and proven with --verify) or checked, 1 not proven, or failed after the weights were
            read, 2 a refused option or file.
    """
    only_check = '--check' in (sys.argv[1:] if argv is None else argv)
    build = functools.partial(shared.parser_for, functools.partial(build_parser, only_check), argv)
    return cli.run(lambda args: Export(args, only).run(), build, argv)
