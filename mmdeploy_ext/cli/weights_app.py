"""`mm2onnx synthetic weights`: a checkpoint for the config of any detector, to try an export without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdeploy_ext.cli.options import CFG_OPTIONS_HELP, parse_cfg_options
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import ConfigError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from mmdeploy_ext.families.model import Model

DESCRIPTION = (
    ' Weights are drawn from the seed, and set in one run of the test path so that the model finds objects. '
    'No family has to know the model. The same seed and samples give the same file.'
)
LARGEST_SEED = (1 << 63) - 1
"""Largest seed: PyTorch refuses 2^64 and more."""
SCORE = 0.05
"""Smallest score of an object that is counted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = cli.adder(parser)
    add('config', 'mmcv config, mmdet 2.x or mmdet3d 1.x')
    cli.writes(parser.add_argument('out', type=Path, help='checkpoint to write'))
    add('--seed SEED', 'of the drawn weights (default: 0)', 0)
    add(
        '--samples SAMPLE...',
        'pictures, or FILE.py:function, which yields the keyword arguments of the test path; the first is '
        "run (default: the config's data set, else the package's picture, or a generated drive or sweep)",
        (),
    )
    add('--cfg-options KEY=VALUE...', CFG_OPTIONS_HELP)


def run(args: argparse.Namespace) -> int:
    from mmdeploy_ext.core.files import check_writable

    cli.check_minimums(args, seed=0)
    if args.seed > LARGEST_SEED:
        raise UsageError(f'--seed {args.seed}: expected at most {LARGEST_SEED}')
    check_writable(args.out)
    if args.out.exists():
        raise UsageError(f'{args.out}: is there already, and is never overwritten; give another name')
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
    """Write a checkpoint for the config of any detector, by `synthetic.weights.calibrate`.

    Args:
        config: mmcv config.
        out: the file; the seed is in its `meta`.
        seed: of the weights.
        cfg_options: dotted key of the config -> value.
        samples: pictures or 'FILE.py:function', see `cutting.samples.samples_of`.

    Returns:
        The scores of the objects in the result of the first sample, and the number of their classes.
    """
    import torch

    from mmdeploy_ext import compat
    from mmdeploy_ext.cutting.results import scores_of
    from mmdeploy_ext.synthetic.weights import calibrate
    from mmdeploy_ext.weights.convert.conversion import save_checkpoint

    compat.apply()
    torch.manual_seed(seed)
    model, test = model_and_test(config, cfg_options, samples)
    with compat.single_thread():
        calibrate(model, test, seed)
        result = test()
    fork = getattr(model, 'fork', None)  # a repository whose kernels may have another layout
    save_checkpoint(out, fork.weights(model) if fork else model.state_dict(), dict(seed=seed))
    found, classes = scores_of(result)
    is_sure = found >= SCORE
    return found[is_sure].tolist(), len({*classes[is_sure]} if len(classes) == len(found) else ())


def model_and_test(
    config: str, cfg_options: Mapping[str, Any] | None = None, samples: Sequence[str] = ()
) -> tuple[torch.nn.Module, Callable[[], Any]]:
    """Return the model of a config without weights, and a function that runs its test path on a sample."""
    from mmdeploy_ext.cutting.samples import run_test_path, samples_of

    deployment = _of_family(config, cfg_options)
    if deployment is not None and not samples:
        return deployment.model, _test_of_family(deployment)
    if deployment is not None:
        model, cfg = deployment.model, deployment.cfg
    else:
        from mmdeploy_ext.cutting.model import read_model

        unloaded = read_model(config, '', cfg_options)
        model, cfg = unloaded.build(), unloaded.cfg
    sample = samples_of(cfg, samples, 1)[0][0]
    return model, lambda: run_test_path(model, sample)


def _of_family(config: str, cfg_options: Mapping[str, Any] | None) -> Model | None:
    """Return the built model of a family; None: no family takes the config."""
    from mmdeploy_ext.families.base import BACKBONE, DETECTOR
    from mmdeploy_ext.families.model import build, read_config

    for product in (DETECTOR, BACKBONE):
        try:
            deployment = read_config(config, '', cfg_options, product=product)
            build(deployment)
        except ConfigError:
            continue
        deployment.model.eval()
        return deployment
    return None


def _test_of_family(deployment: Model) -> Callable[[], Any]:
    from mmdeploy_ext.families.base import BACKBONE
    from mmdeploy_ext.preprocess import DEFAULT_PICTURE
    from mmdeploy_ext.proving.inputs.inputs import ProofInput
    from mmdeploy_ext.proving.inputs.samples import proof_samples, read_picture
    from mmdeploy_ext.proving.inputs.voxel_sets import proof_sets
    from mmdeploy_ext.proving.references import InputReference

    family, model, rule = deployment.family, deployment.model, deployment.rule
    if family.product == BACKBONE:
        settings = deployment.settings
        voxels = proof_sets(settings.spatial_shape, settings.in_channels)[-1]
        return lambda: family.run_encoder(model, voxels.features, voxels.coordinates)
    if family.samples == 'images':
        picture = read_picture(DEFAULT_PICTURE, rule)
        sample = ProofInput('sample', (rule.apply(picture),), (('sample', picture),), rescale=True)
        return lambda: InputReference(deployment, sample).run()
    (sample, *_), _ = proof_samples(deployment, 2)

    def step() -> Any:
        return family.reference(model).step(sample)

    return step
