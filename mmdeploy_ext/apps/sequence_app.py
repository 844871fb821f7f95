"""Export of models of frames: what `pytorch2onnx.py` does with them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.apps import options as shared
from mmdeploy_ext.apps import proof
from mmdeploy_ext.apps.options import check_engine_kind, refuse_given
from mmdeploy_ext.core.errors import after_weights

if TYPE_CHECKING:
    import argparse

    from mmdeploy_ext.families.base import Family

IMAGE_OPTIONS = (
    'input_img',
    'mean',
    'std',
    'show',
)
"""Arguments of pytorch2onnx.py about pictures."""


def run_export(
    args: argparse.Namespace,
    parser: argparse.ArgumentParser,
    engine: dict[str, Any],
    family: Family,
    values: dict[str, Any],
) -> int:
    """Export a model of frames, with a memory or without, and prove it when asked to."""
    from mmdeploy_ext.deploy import deployment as deploy
    from mmdeploy_ext.deploy.sequence_files import check_output, export_sequence

    why = f'family {family.name!r} has no such option; {family.of_config}'
    refuse_given(args, parser, IMAGE_OPTIONS, why)
    options = family.choose(**{'opset': 0, **values})
    options.check(given=values)
    check_engine_kind(engine['engine'], engine.get('inference_precision'))
    output = args.output_file
    if output is None:
        output = f'{Path(args.config).stem}{"_fork.onnx" if options.contract == "fork" else ""}'

    def check(cfg: Any, family: Any, model: Any) -> None:
        nonlocal options
        options = deploy.check_options(options, cfg, family, model)
        check_output(output, options, family.files)

    samples = proof.Samples(family, args.test_img or [], args.frames, '--test-img')
    deployment = deploy.load(
        args.config, args.checkpoint, shared.parse_cfg_options(args.cfg_options), args.device, check
    )
    found = samples.of(deployment) if args.verify else ((), '')
    with after_weights():
        paths, seconds = export_sequence(deployment, options, output)
        print(
            f'{output}: {options.contract} contract, {len(paths)} graph(s), opset {options.opset}, '
            f'{options.precision}, exported in {seconds:.1f} s'
        )
        if not args.verify:
            words = [args.config, args.checkpoint, output, *shared.given_words(args)]
            command = ['python', 'tools/deployment/verify.py', *words]
            print(f'NOT PROVEN: nothing was compared. Prove it with\n  {shlex.join(command)}')
            return 0
        return proof.run_proof(deployment, paths, found, args, engine)
