"""`pytorch2onnx.py`: export a detector, and prove it with `--verify`."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmdeploy_ext.api import (
    ExportRequest,
    ProofRequest,
    built,
    check_normalisation,
    chosen_options,
    engine_of,
    export_read,
    output_of,
    read_detector,
    traced_instead,
)
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.commands import tool
from mmdeploy_ext.base.config import check_config_file
from mmdeploy_ext.base.errors import ConfigError, ExportError, Mm2OnnxError, UsageError, after_weights
from mmdeploy_ext.base.files import will_write
from mmdeploy_ext.bench.kinds import kind_of
from mmdeploy_ext.cli import export_scn_app, parts_app, proof
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.engines import build_backend
from mmdeploy_ext.families.base import Family, exported_options
from mmdeploy_ext.families.contracts import contract_of
from mmdeploy_ext.families.detector import TRACED, Detector, resolve, with_size
from mmdeploy_ext.runtime.preprocess import DEFAULT_PICTURE
from mmdeploy_ext.runtime.tasks import task_module
from mmdeploy_ext.spec.options import LARGEST_K, MADE_FOR, OPSET, Options
from mmdeploy_ext.spec.registry import detector_options

COMMON = {
    '-h', '--help-all', '--check', '--parts', '--out', '--verify', '--shape', '--dynamic-export',
    '--simplify', '--dynamic-batch', '--postprocess', '--opset-version', '--precision', '--backbone',
    '--images', '--cfg-options', '--report', '--for',
}  # fmt: skip
"""Options that `--help` shows; `--help-all` shows all."""
SIZES = {False: 'fixed', True: 'dynamic'}


DESCRIPTIONS = {
    shared.DETECTOR: 'Export an OpenMMLab 1.x detector to ONNX and prove that the file equals the model.',
    shared.PARTS: 'Export parts of any detector as separate files, from its test path. Exit status 0 '
    'exported or proven, 1 not proven, 2 usage.',
    shared.BACKBONE: "Export the sparse-convolution backbone of a LiDAR model, to NVIDIA's libspconv dialect "
    'or to standard ONNX operators. Neither export nor proof needs a GPU.',
}
OUTPUTS = {
    shared.DETECTOR: {},
    shared.PARTS: dict(text='folder to write (default: cut)', default='cut', writes='{}/parts.json'),
    shared.BACKBONE: dict(text='file to write (default: lidar.backbone.ORDER.onnx)'),
}
"""Settings of --out."""


def build_parser(
    subject: str = shared.DETECTOR, only_check: bool = False, show_all: bool = False, only: str = ''
) -> cli.ArgumentParser:
    """Build the parser of a subject.

    - only_check: CHECKPOINT may be left out.
    - show_all: the help shows all.
    - only: family whose configs are taken; '' takes all.
    """
    parser = shared.parser_of(subject, DESCRIPTIONS, build_parser)
    cli.add_fields(parser, ExportRequest, 'config')
    cli.add_fields(parser, ExportRequest, 'checkpoint', nargs='?' if only_check else None)
    cli.add_fields(parser, ExportRequest, 'cfg_options')
    if subject != shared.BACKBONE:
        cli.add_fields(parser, ExportRequest, 'device')
    add = cli.adder(parser)
    if subject == shared.PARTS:
        add(
            '--parts PART...',
            "module paths joined by + ('backbone+neck'), or methods ('extract_feat()'); 'list' shows "
            "possible parts, 'samples' prints a file for --samples",
        )
    else:
        add('--backbone', 'export only the sparse backbone of a LiDAR model; options: `--backbone --help`')
    cli.add_fields(parser, ExportRequest, 'output_file', **OUTPUTS[subject])
    add('--verify', 'prove the file; exit status 1 if it is not proven')
    if subject == shared.DETECTOR:
        add_arguments(parser)
        parser.set_defaults(only=only)
        for action in parser._actions:
            if not show_all and action.option_strings and not COMMON.intersection(action.option_strings):
                action.help = argparse.SUPPRESS
    else:
        (parts_app if subject == shared.PARTS else export_scn_app).add_arguments(parser)
    return parser


def add_arguments(parser: cli.ArgumentParser) -> None:
    """Add the options of whole detectors."""
    add = cli.adder(parser)
    add('--help-all', 'show all options, including those of one family or contract', action='help')
    add(
        '--parts',
        'export parts of any detector as separate files, e.g. backbone+neck; options: `--parts --help`',
    )
    add(
        '--check',
        'report what would be exported or why it cannot be; writes nothing and needs no CHECKPOINT',
    )
    cli.add_fields(parser, ExportRequest, 'picture')
    add(
        '--images --test-img PATH...',
        'more samples for --verify: images or folders (default: 3 of the data set, else the mirrored '
        '--input-img), LiDAR sweeps or an info file (default: of the data set, else generated)',
        (),
        dest='samples',
    )
    shared.add_declared(parser, detector_options())
    add('--skip-postprocess', 'same as --postprocess raw')
    cli.add_fields(parser, ExportRequest, 'mean std')
    add(
        '--dataset DATASET',
        'ignored; class names come from the checkpoint or the config',
    )
    cli.add_fields(parser, ExportRequest, 'ignored_keys')
    add('--show', "draw both engines' detections to FILE.png and print the graph")
    cli.add_fields(parser, ProofRequest, f'{shared.ENGINE} library')
    shared.add_report_arguments(parser)


def run(args: argparse.Namespace) -> int:
    if args.subject == shared.BACKBONE:
        return export_scn_app.run(args)
    check_config_file(args.config)
    if args.subject == shared.PARTS:
        return parts_app.run(args)
    try:
        return _run(args)
    except (ConfigError, ExportError) as error:
        refused = error
    parts = parts_app.parts_of_refused(args)  # behind the block: its errors are not caused by this one
    if parts is None:  # the config cannot be read at all
        raise refused
    advised = type(refused)(f'{refused}; {parts.advice}')
    advised.exit_code = 1 if parts.words else refused.exit_code
    raise advised from refused


def _run(args: argparse.Namespace) -> int:
    cli.wait_passively()
    engine, values = engine_of(args), shared.graph_values(args)
    check_arguments(args)
    request = shared.request_of(ExportRequest, args, checkpoint=args.checkpoint or '', options=values)
    proof.check_report_targets(args)

    try:
        detector = read_detector(request)
    finally:
        proof.print_replaced()
    family, kind = detector.family, kind_of(detector.family)
    check_family(args, family, engine)
    if args.skip_postprocess:
        check_raw_form(family)
    options = chosen_options(detector, request)
    if options.get('made_for'):
        print(_chosen_for(detector, options))
    proof.print_libraries_not_run(detector.cfg, args)
    if args.check:
        return print_exports(*built(detector, options, request))
    if args.verify:
        kind.check_provable(family)
    output, picture = output_of(detector, options, request), request.picture or DEFAULT_PICTURE
    inputs = kind.samples(detector, args.samples, args.frames, traced=picture)
    if args.show:
        will_write('--show', [f'{output}.png'])
    exported = export_read(detector, options, request, inputs, args.verify)
    detector, family = exported.detector, exported.detector.family
    title = _title(family, exported.options, len(exported.files))
    print(f'{output}: {title}, exported in {exported.seconds:.1f} s')
    print_held(detector)
    if exported.plan:
        from mmdeploy_ext.bench.precision.plan import show_plan

        show_plan(exported.plan)
    if args.show:
        with after_weights():
            _show(detector, exported.files[0], inputs.pictures[0], engine)

    if not args.verify:
        proof.print_proof_command('verify', [args.config, args.checkpoint, output], args)
        return 0
    verdict = exported.prove(engine, library=args.library, strict=args.strict)
    return proof.show(verdict, detector, args)


def print_held(detector: Detector) -> None:
    """Print the lines of a traced test path whose result for the example is in the graph."""
    facts = detector.family.facts(detector.model)
    if detector.refused:
        print(f'your test path is traced whole, since: {detector.refused}')
    for line in getattr(facts, 'escapes', ()):
        print(f"the file holds this of the example, guarded by its output 'valid': {line}")
    if ends_in := getattr(facts, 'ends_in', ''):
        print(f'the graph ends where your code leaves the tensors: its outputs are arguments of {ends_in}')
    if difference := getattr(facts, 'difference', ''):
        print(f'traces of two images differ, first in {difference}')


def check_arguments(args: argparse.Namespace) -> None:
    for name in ('report', 'json', 'frames'):
        if getattr(args, name) is not None and not args.verify:
            raise UsageError(f'--{name} {getattr(args, name)}: requires --verify')
    check_normalisation(args.mean, args.std)


def check_family(args: argparse.Namespace, family: Family, engine: dict[str, Any]) -> None:
    """Raise UsageError for a family of another tool, and arguments that the family lacks."""
    if args.only and family.name != args.only:
        raise UsageError(
            f'{args.config}: is a config of family {family.name!r}, expected {args.only!r}; '
            f'use {tool("export")} for it'
        )
    shared.refuse_of_kind(args, build_parser(), 'export', family)
    kind_of(family).check_engine(engine)


def check_raw_form(family: Family) -> None:
    """Raise UsageError for --skip-postprocess of a family without a raw form."""
    forms = next((option.choices for option in family.options if option.name == 'form'), ())
    if 'raw' in forms:
        return
    parts = [f'--postprocess {form}' for form in forms if form != 'full']
    advice = 'its graph includes the results; omit the option'
    if parts:
        advice = f'write the network with {" and ".join(parts)}, one file each'
    raise UsageError(f'--skip-postprocess: family {family.name!r} has no form without results; {advice}')


def _chosen_for(detector: Detector, options: Options) -> str:
    """The options that `--for` sets, and what changes against the config, in one line."""
    sized = with_size(options, detector.family.preprocess_rule(detector.cfg))
    words = [
        ' '.join(option.words(sized))
        for option in sized.declared
        if sized[option.name] != option.default and option.name not in (MADE_FOR.name, OPSET.name)
    ]
    changes = [
        f'{key} {limit} instead of {given}, since one top-k sorts the candidates of all levels and TensorRT '
        f'sorts at most {LARGEST_K}: PyTorch is compared with {limit}, too'
        for key, (given, limit) in detector.lowered.items()
    ]
    return f'for {options.made_for}: {"; ".join([" ".join(filter(None, words)) or "no options", *changes])}'


def _title(family: Family, options: Options, count: int) -> str:
    numbers = f'opset {options.opset}, {options.precision}'
    if 'form' not in options:
        title = f'{options.contract} contract' if 'contract' in options else family.name
        return f'{title}, {count} graph(s), {numbers}'
    shape = 'dynamic batch, fixed size' if options.get('dynamic_batch') else 'fixed shape'
    if options.dynamic:
        shape = 'any size' if family.name == TRACED else 'dynamic batch and size'
    return f'{family.name}/{options.form}, {numbers}, {shape}'


def _show(detector: Detector, path: str, image: tuple[str, np.ndarray], engine: Mapping[str, Any]) -> None:
    import onnx
    import onnx.printer

    from mmdeploy_ext.proving.pictures import Pictures, references
    from mmdeploy_ext.proving.proof import open_file
    from mmdeploy_ext.runtime.draw import write_picture

    file = open_file(path)
    graph = onnx.GraphProto()
    graph.CopyFrom(file.model.graph)
    graph.ClearField('initializer')  # their values would fill the screen
    print(onnx.printer.to_text(graph))
    with build_backend(path=path, **engine) as backend:
        traced = references(detector, exported_options(detector.family, file.options, path), [image])[0]
        subject = Pictures(detector, backend, None, [traced])
        pairs = subject.drawn(traced, subject.got(subject.sample(traced.input, 0, ''), None))
    task = task_module(detector.family.task)
    for pair in pairs[:1]:
        picture = Path(f'{path}.png')
        write_picture(picture, task.draw_pair(task.fit_pair(pair), detector.classes))
        print(f'detections side by side: {picture}')


def print_exports(detector: Detector, options: Options) -> int:
    """Print a table of the exports of a config, fixed and dynamic; needs no weights.

    A refusal of the export that the options ask for is raised behind the table.
    """
    from rich.console import Console
    from rich.table import Table

    from mmdeploy_ext.families.first_run import check_translation

    family, cfg, model = detector.family, detector.unbuilt_cfg, detector.model
    with traced_instead(detector):
        family.facts(model)  # the table is of the trace
    resolved = resolve(options, model, detector.rule)
    console = Console(width=150)
    console.print(f'{cfg.filename}: family {family.name}', highlight=False)
    rule = ', '.join(f'{key} {value}' for key, value in detector.rule.to_json().items())
    for title, value in {**_part_types(cfg), 'preprocessing': rule}.items():
        console.print(f'  {title:14} {value}', highlight=False)
    table = Table(title='exports')
    for title in ('form', 'size', 'opset', 'inputs', 'outputs, or why it cannot be exported'):
        table.add_column(title)
    forms = next((option.choices for option in options.declared if option.name == 'form'), ())
    rows = []
    for form in forms or (None,):
        for dynamic in SIZES if 'dynamic' in options else (None,):
            changes = {} if form is None else dict(form=form)
            if dynamic is not None:
                changes['dynamic'] = dynamic
            rows.append(_export_row(detector, resolved.replace(**changes)))
    if len({row[2:] for row in rows}) > 1 or rows[0][2]:  # else all are refused for one reason
        for row in rows:
            table.add_row(*row)
        console.print(table)
    options = kind_of(family).check(detector, options)
    contract_of(family, options).graphs(model, options)
    check_translation(family, model, options)
    print_held(detector)
    return 0


def _part_types(cfg: Any) -> dict[str, str]:
    types = dict(detector=str(cfg.model.type))
    for key, value in cfg.model.items():
        parts = value if isinstance(value, list | tuple) else [value]
        names = [str(part['type']) for part in parts if isinstance(part, dict) and 'type' in part]
        if names:
            types[key] = ' + '.join(names)
    return types


def _export_row(detector: Detector, options: Options) -> tuple[str, ...]:
    from mmdeploy_ext.families.host_programs import hosted

    family, model = detector.family, detector.model
    size = f'{options.get("height")} x {options.get("width")}' if 'height' in options else ''
    title = options.get('form', ''), f'{SIZES.get(options.get("dynamic"), "")} {size}'.strip()
    try:
        options.check()
        options = kind_of(family).check(detector, options)
        graphs = contract_of(family, options).graphs(model, options)
        graphs = [hosted(family, graph, options, detector.rule, model) for graph in graphs]
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


chosen_by = functools.partial(shared.subject_by_option, subjects=[shared.BACKBONE, shared.PARTS])


def main(argv: Sequence[str] | None = None, only: str = '') -> int:
    words = sys.argv[1:] if argv is None else list(argv)

    def build(subject: str) -> cli.ArgumentParser:
        make = functools.partial(build_parser, subject, '--check' in words, '--help-all' in words, only)
        return shared.parser_for(make, words) if subject == shared.DETECTOR else make()

    return shared.program(run, build, chosen_by)(words)
