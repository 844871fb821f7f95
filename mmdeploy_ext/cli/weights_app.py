"""`mm2onnx synthetic weights`: a checkpoint for the config of any detector, to try an export without one."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.api import ModelRequest
from mmdeploy_ext.base import cli
from mmdeploy_ext.base.errors import ConfigError, UsageError
from mmdeploy_ext.cli.options import parse_cfg_options

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from mmdeploy_ext.families.detector import Detector

DESCRIPTION = (
    ' Weights are random numbers of the seed, scaled in one run of the test path so that the model finds '
    'objects. Works with any detector. The same seed and samples give the same file.'
)
LARGEST_SEED = (1 << 63) - 1
"""Largest seed: PyTorch refuses 2^64 and more."""
SCORE = 0.05
"""Smallest score of an object that is counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = cli.adder(parser)
    add('config', 'mmcv config, mmdet 2.x or mmdet3d 1.x')
    output = cli.add(parser, '--out FILE', 'checkpoint to write; never overwritten', type=Path)
    parser.take_output_by_position(output)
    add('--seed SEED', 'seed of the weights (default: 0)', 0)
    add(
        '--samples SAMPLE...',
        'images, or FILE.py:function that yields the keyword arguments of the test path; only the first '
        "runs (default: the config's data set, else the package's image, or a generated drive or sweep)",
        (),
    )
    cli.add_fields(parser, ModelRequest, 'cfg_options')


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.base.files import check_writable

    cli.check_minimums(args, seed=0)
    if args.seed > LARGEST_SEED:
        raise UsageError(f'--seed {args.seed}: expected at most {LARGEST_SEED}')
    check_writable(args.out)
    if args.out.exists():
        raise UsageError(f'{args.out}: already exists and is not overwritten; choose another name')
    cli.wait_passively()
    options = parse_cfg_options(args.cfg_options)
    scores, labels = write_weights(args.config, args.out, args.seed, options, args.samples)
    size = f'{args.out.stat().st_size / 1e6:.1f} MB'
    print(f'{args.out}: weights of {args.config}, {size}; {_found(scores, labels)} in the sample')
    return 0


def _found(scores: Sequence[float], labels: int) -> str:
    if not len(scores):
        return f'no object of score {SCORE} or more'
    classes = f' of {labels} classes' if labels else ''
    return f'{len(scores)} objects{classes}, scores {min(scores):.2f} to {max(scores):.2f},'


def write_weights(
    config: str,
    out: Path,
    seed: int = 0,
    cfg_options: Mapping[str, Any] | None = None,
    samples: Sequence[str] = (),
) -> tuple[list[float], int]:
    """Write a checkpoint for the config of any detector, by `families.synthetic.weights.calibrate`.

    Args:
        config: mmcv config.
        out: the file; the seed is in its `meta`.
        seed: of the weights.
        cfg_options: dotted key of the config -> value.
        samples: pictures or 'FILE.py:function', see `proving.parts.samples.samples_of`.

    Returns:
        The scores of the objects in the result of the first sample, and the number of their classes.
    """
    import torch

    from mmdeploy_ext.families.synthetic.weights import calibrate, has_nan, initialise_again
    from mmdeploy_ext.proving.parts.results import scores_of
    from mmdeploy_ext.upstream import compat
    from mmdeploy_ext.upstream.weights.convert.conversion import save_checkpoint

    compat.apply()
    torch.manual_seed(seed)
    model, test = model_and_test(config, cfg_options, samples)
    with compat.single_thread():
        calibrate(model, test, seed)
        if has_nan(model):  # its code takes the logarithm of a parameter, such as a size
            initialise_again(model, seed)
        *_, result = test()
    fork = getattr(model, 'fork', None)  # a repository whose kernels may have another layout
    save_checkpoint(out, fork.weights(model) if fork else model.state_dict(), dict(seed=seed))
    found, classes = scores_of(result)
    is_sure = found >= SCORE
    return found[is_sure].tolist(), len({*classes[is_sure]} if len(classes) == len(found) else ())


def model_and_test(
    config: str, cfg_options: Mapping[str, Any] | None = None, samples: Sequence[str] = ()
) -> tuple[torch.nn.Module, Callable[[], Iterator[Any]]]:
    """Return the model of a config without weights, and a function that yields results of its test path."""
    from mmdeploy_ext.proving.parts.samples import run_test_path, samples_of

    detector = _of_family(config, cfg_options)
    if detector is not None and not samples:
        return detector.model, functools.partial(_results, detector)
    if detector is not None:
        model, cfg = detector.model, detector.cfg
    else:
        from mmdeploy_ext.proving.parts.export import read_model

        unloaded = read_model(config, '', cfg_options)
        model, cfg = unloaded.build(), unloaded.cfg
    sample = samples_of(cfg, samples, 1)[0][0]
    return model, lambda: map(run_test_path, [model], [sample])


def _results(detector: Detector) -> Iterator[Any]:
    from mmdeploy_ext.base.config import refused_by_name
    from mmdeploy_ext.bench.kinds import kind_of
    from mmdeploy_ext.families.first_run import own_forward

    advice = 'choose another scale in its test pipeline'
    with refused_by_name(detector.cfg), own_forward(detector.model, 'its generated sample', advice):
        yield from kind_of(detector.family).test(detector)


def _of_family(config: str, cfg_options: Mapping[str, Any] | None) -> Detector | None:
    """Return the built model of a family; None: no family takes the config."""
    from mmdeploy_ext.bench.kinds import kind_of
    from mmdeploy_ext.families.base import BACKBONE, DETECTOR
    from mmdeploy_ext.families.detector import TRACED, read_config

    for product in (DETECTOR, BACKBONE):
        try:
            detector = read_config(config, '', cfg_options, product=product)
            kind_of(detector.family).build(detector)
            if kind_of(detector.family).traces and detector.family.name != TRACED:
                detector.family.facts(detector.model)
        except ConfigError:
            continue
        detector.model.eval()
        return detector
    return None
