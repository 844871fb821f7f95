"""Folders of `mm2onnx export --parts`, see docs/parts.md: export, verify, test, benchmark."""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import Mm2OnnxError, UsageError, after_weights, one_line
from mmdeploy_ext.base.files import write_json
from mmdeploy_ext.cli import options as shared
from mmdeploy_ext.spec.options import check_opset

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from mmdeploy_ext.proving.parts.export import ModelFactory

LIST, SAMPLES = 'list', 'samples'
"""Words in place of parts."""
MANIFEST = 'parts.json'


def add_arguments(parser: cli.ArgumentParser) -> None:
    """Add the options of `export --parts`."""
    add_samples(parser)
    add = cli.adder(parser)
    add('--names FILE.json', 'names of tensors: {"PATH": "NAME"}')
    add(
        '--opset-version OPSET',
        'opset (default: the lowest that the parts need, at least 17)',
        0,
        dest='opset',
    )
    add('--exporter', 'torchscript or dynamo', 'torchscript', choices=('torchscript', 'dynamo'))
    add('--precision', 'fp32 or fp16', 'fp32', choices=('fp32', 'fp16'))
    add('--simplify', 'simplify the graphs')
    add('--seeded', "store a part's random numbers as constants in its graph")
    add('--json FILE', 'write the verdict as JSON')


def add_samples(parser: cli.ArgumentParser) -> None:
    cli.add(
        parser,
        '--samples SAMPLE...',
        'images, or FILE.py:function that yields the keyword arguments of the test path (default: the '
        "config's data set, else variants of the package's image)",
    )


def open_model(args: argparse.Namespace) -> tuple[ModelFactory, list[dict[str, Any]]]:
    """Model and samples of the arguments; no samples without `--samples`."""
    from mmdeploy_ext.cli.proof import print_replaced
    from mmdeploy_ext.proving.parts.export import read_model
    from mmdeploy_ext.proving.parts.samples import samples_of

    if args.device != 'cpu':
        raise UsageError(f'--device {args.device}: parts run on the CPU')
    cli.wait_passively()
    factory = read_model(args.config, args.checkpoint, shared.parse_cfg_options(args.cfg_options))
    print_replaced()
    if not hasattr(args, 'samples'):
        return factory, []
    samples, origin = samples_of(factory.cfg, args.samples or ())
    print(f'samples: {origin}')
    return factory, samples


@dataclasses.dataclass(frozen=True)
class PartsOfRefused:
    """Parts of a detector that is refused as a whole.

    Attributes:
        advice: the command for them.
        words: those that export; () if none was tried.
    """

    advice: str
    words: tuple[str, ...] = ()


def parts_of_refused(args: argparse.Namespace) -> PartsOfRefused | None:
    """Return the parts of a refused config, tried with `--check`; None: the model cannot be read."""
    from mmdeploy_ext.base.unregistered import missing_types
    from mmdeploy_ext.proving.parts.export import read_model

    overrides = shared.parse_cfg_options(args.cfg_options)
    try:
        factory = read_model(args.config, args.checkpoint or '', overrides)
    except Mm2OnnxError:
        return None
    if 'model.type' in missing_types(factory.cfg):  # nobody can build it
        return None
    command = f'mm2onnx export {args.config} {args.checkpoint or "CHECKPOINT"}'
    if args.cfg_options:
        command += f' --cfg-options {shlex.join(args.cfg_options)}'
    if not args.check:
        return PartsOfRefused(f'to export parts: {command} --parts list')
    try:
        words = exporting_parts(args.config, args.checkpoint, overrides)
    except Exception as error:  # also of the user's code
        reason = one_line(error)[:300]
        return PartsOfRefused(
            f'parts were not tried, because {reason}; to try them, run {command} --parts list'
        )
    if not words:
        return PartsOfRefused(f'no part can be exported; for the reasons, run {command} --parts list')
    print(f'parts: {", ".join(words)} (exports)')
    return PartsOfRefused(f'to export parts: {command} --parts {" ".join(words)}', tuple(words))


def exporting_parts(config: str, checkpoint: str | None, overrides: Mapping[str, Any]) -> list[str]:
    """Return the words of the parts of a detector that export.

    Without a checkpoint weights are drawn; without a data set samples are those of `--parts samples`.
    """
    from mmdeploy_ext.cli.weights_app import write_weights
    from mmdeploy_ext.proving.parts.export import read_model
    from mmdeploy_ext.proving.parts.listing import candidates_of, proposal_of
    from mmdeploy_ext.proving.parts.samples import samples_of, skeleton_of

    cfg, words = read_model(config, '', overrides).cfg, []
    with tempfile.TemporaryDirectory(prefix='mm2onnx_') as folder:
        try:
            samples, _ = samples_of(cfg, count=2)
        except UsageError:
            Path(folder, 'samples.py').write_text(skeleton_of(cfg))
            words = [f'{folder}/samples.py:make']
            samples, _ = samples_of(cfg, words)
        if not checkpoint:
            checkpoint = f'{folder}/drawn.pth'
            write_weights(config, Path(checkpoint), cfg_options=overrides, samples=words)
        return proposal_of(candidates_of(read_model(config, checkpoint, overrides), samples[:2], {}))


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.proving.parts.export import DEFAULTS, export_folder, read_names
    from mmdeploy_ext.proving.parts.listing import print_parts
    from mmdeploy_ext.proving.parts.proof import prove_folder

    names = read_names(args.names) if args.names else {}
    if args.opset:
        check_opset(args.opset, args.exporter)
    if args.parts == [SAMPLES]:
        from mmdeploy_ext.proving.parts.export import read_model
        from mmdeploy_ext.proving.parts.samples import skeleton_of

        overrides = shared.parse_cfg_options(args.cfg_options)
        print(skeleton_of(read_model(args.config, args.checkpoint, overrides).cfg), end='')
        return 0
    factory, samples = open_model(args)
    options = {name: getattr(args, name) for name in DEFAULTS}
    if args.parts == [LIST]:
        print_parts(factory, samples, options, cli.stdout())
        return 0
    folder, recorded, recording = export_folder(
        factory, args.parts, samples, args.output_file, options, names
    )
    for entry in folder.entries:
        print(f'{folder.file(entry)}: {tensors_text(entry["inputs"])} -> {tensors_text(entry["outputs"])}')
        if entry['rig']:
            print(
                f'{folder.file(entry)}: valid for one camera rig only, since {", ".join(entry["rig"])} is '
                'a constant'
            )
    if not args.verify:
        words = f'{args.config} {args.checkpoint} {args.output_file}'
        print(f'NOT PROVEN: nothing was compared. Prove it with\n  mm2onnx verify {words}')
        return 0
    with after_weights():
        verdict = prove_folder(factory, folder, samples, (recorded, recording))
    return show(verdict, args.json)


def run_verify(args: argparse.Namespace) -> int:
    from mmdeploy_ext.proving.parts.folder import CutFolder
    from mmdeploy_ext.proving.parts.proof import prove_folder

    folder = CutFolder.read(args.onnx_file)
    factory, samples = open_model(args)
    factory.facts()
    with after_weights():
        verdict = prove_folder(factory, folder, samples)
    return show(verdict, args.json)


def tensors_text(tensors: Sequence[dict]) -> str:
    return ', '.join(f'{entry["name"]} {"x".join(map(str, entry["shape"]))}' for entry in tensors)


def show(verdict: object, json_file: str | None) -> int:
    """Print a verdict and write it as JSON; return the exit status."""
    from mmdeploy_ext.proving.views.table import print_verdict

    if json_file:
        write_json(json_file, verdict.to_json())
    print_verdict(verdict, cli.stdout())
    return 0 if verdict.passed else 1


def run_test(args: argparse.Namespace) -> int:
    """Evaluate PyTorch and the parts; 1 if a metric differs by more than its tolerance."""
    from mmdeploy_ext.proving.parts.folder import CutFolder
    from mmdeploy_ext.proving.parts.swap import compare_on_dataset

    folder = CutFolder.read(args.parts)
    factory, _ = open_model(args)
    rows = compare_on_dataset(factory, folder, args.eval)
    for row in rows:
        print(f'{row.name}: PyTorch {row.reference:.4f}, parts {row.candidate:.4f}, {row.difference_text}')
    if args.json:
        write_json(args.json, [vars(row) for row in rows])
    return 0 if rows and all(row.passed for row in rows) else 1


def run_benchmark(args: argparse.Namespace) -> int:
    cli.check_minimums(args, max_iter=1, warmup=0)
    from mmdeploy_ext.bench.benchmark.images import time_parts
    from mmdeploy_ext.proving.parts.folder import CutFolder

    folder = CutFolder.read(args.parts)
    factory, samples = open_model(args)
    rows = time_parts(factory, folder, samples, args.max_iter, args.warmup)
    print(f'{args.config}: {args.max_iter} rounds in turns')
    for row in rows:
        times, ratio = row['total_ms'], row['ratio_to_torch']['median']
        quartiles = f'quartiles {times["q1"]:.1f} .. {times["q3"]:.1f}'
        print(f'{row["name"]}: median {times["median"]:.1f} ms ({quartiles}), {ratio:.3f}x PyTorch')
    if args.json:
        write_json(args.json, rows)
    return 0


def is_folder(path: str) -> bool:
    return Path(path, MANIFEST).is_file()


def chosen_by(words: Sequence[str]) -> str:
    """Return the subject that a folder of parts among the words of a command chooses."""
    return shared.PARTS if any(map(is_folder, words)) else shared.DETECTOR


def refuse_folder(path: str | None, advice: str) -> None:
    """Raise UsageError for a folder of parts where another file is expected."""
    if path and is_folder(path):
        raise UsageError(f'{path}: is a folder of `mm2onnx export --parts`; {advice}')
