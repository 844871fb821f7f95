"""The toys whose files are mutated, and whose code gets faults; the tools export and prove them.

A toy is a config and a checkpoint on disk, and words of the command lines, so that what is judged here is
what `pytorch2onnx.py --verify` and `verify.py` do with it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import toy_centerpoint
import toy_corner
import toy_query
import toy_scn_family
import toy_two_stage
import toy_yolact
from mmdeploy_ext.cli import check_autoware_app, export_app, export_scn_app, verify_app
from mmdeploy_ext.exporting import model as deploy
from mmdeploy_ext.families.base import BACKBONE, load_families
from mmdeploy_ext.preprocess.pictures import read_image
from mmdeploy_ext.proving import ladder
from mmdeploy_ext.proving.inputs.samples import proof_samples
from mmdeploy_ext.proving.inputs.voxel_sets import proof_sets
from mmdeploy_ext.synthetic.seeded import write_seeded
from mmdeploy_ext.zoo.configs import without_augmentation
from toy_atss import PICTURE, REPO

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from mmdeploy_ext.exporting.model import Model
    from mmdeploy_ext.proving.verdict import Verdict

    ModelPaths = tuple[str, str]

SWEEPS = (100, 400, 1200, 3000, 3000, 3000)
"""Points of the sweeps of the tiny LiDAR models; with 3000 most voxels are full."""
FRAMES = 6
"""Frames or sweeps by which the results of the reference are compared with those before a fault."""
SMALL = (320, 256)
"""Pixels, (width, height): the scale of the test pipelines of seeded toys."""


def register() -> None:
    """Register all families, as the tools do."""
    load_families()
    toy_scn_family.register()


@dataclasses.dataclass
class Record:
    """What a tool loaded and found.

    Attributes:
        deployment: config and checkpoint as the tool loaded them.
        verdict: of its proof.
    """

    deployment: Model | None = None
    verdict: Verdict | None = None


@contextlib.contextmanager
def recorded() -> Iterator[Record]:
    """Record what a tool loads and finds inside the block, and let it print nothing."""
    record, prove = Record(), ladder.prove

    def proven(deployment: Model, *args: Any, **named: Any) -> tuple[Verdict, list[Any]]:
        record.deployment = deployment
        record.verdict, pictures = prove(deployment, *args, **named)
        return record.verdict, pictures

    ladder.prove = proven
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield record
    finally:
        ladder.prove = prove


@functools.cache
def folder_of(name: str) -> Path:
    """Return a folder that lasts as long as this process."""
    holder = tempfile.TemporaryDirectory(prefix=f'{name}_')
    HOLDERS.append(holder)
    return Path(holder.name)


HOLDERS: list[tempfile.TemporaryDirectory] = []
"""They remove their folders when Python ends."""


@dataclasses.dataclass(frozen=True)
class Toy:
    """A model, and how its files are exported and proven.

    Attributes:
        name: key of `TOYS`.
        model: writes or names config and checkpoint; asked once, without any fault.
        options: words of the export, without files.
        samples: words of the proof, without files.
        folder: the export is a folder of graphs.
        overrides: of the config, given to both tools.
    """

    name: str
    model: Callable[[Path], ModelPaths]
    options: tuple[str, ...] = ()
    samples: Callable[[Path], Sequence[str]] = lambda folder: ()
    folder: bool = False
    overrides: tuple[str, ...] = ()

    @property
    def files(self) -> ModelPaths:
        """Config and checkpoint, written once."""
        return _model_of(self)

    def words(self, *paths: str) -> list[str]:
        """Return config, checkpoint, files and overrides as both tools take them."""
        register()
        changes = ['--cfg-options', *self.overrides] if self.overrides else []
        return [*self.files, *paths, *changes]

    def output(self, folder: Path) -> Path:
        """Return the file or folder that an export into a folder writes."""
        return folder / (self.name if self.folder else f'{self.name}.onnx')

    def export_arguments(self, folder: Path, **options: Any) -> argparse.Namespace:
        """Return the command line of an export; `options` are of the family, besides the toy's."""
        words = [*self.words(), '--output-file', str(self.output(folder)), *self.options]
        args = export_app.build_parser().parse_args(words)
        vars(args).update(options)
        return args

    def export(self, folder: Path, **options: Any) -> Path:
        """Write the files into a new folder; return the file, or the folder of graphs."""
        args = self.export_arguments(folder, **options)
        folder.mkdir(parents=True, exist_ok=True)
        with recorded():
            self.run_export(args)
        return self.output(folder)

    def run_export(self, args: argparse.Namespace) -> None:
        """Run the exporting tool."""
        export_app.Export(args).run()

    def export_and_prove(self, folder: Path, **options: Any) -> Record:
        """Export and prove as `--verify` does."""
        args = self.export_arguments(folder, **options)
        args.verify = True
        self.give_samples(args)
        folder.mkdir(parents=True, exist_ok=True)
        with recorded() as record:
            self.run_export(args)
        return record

    def give_samples(self, args: argparse.Namespace) -> None:
        """Give the samples of `verify.py` to the exporting tool."""
        given = verify_app.build_parser().parse_args([*self.words('m.onnx'), *self.sample_words()])
        args.test_img, args.frames = given.images or [], given.frames

    def sample_words(self) -> Sequence[str]:
        """Return the words that give a proof its samples, which are written once."""
        return _samples_of(self)

    def prove(self, path: str | Path) -> Record:
        """Prove files as `verify.py` does."""
        words = [*self.words(str(path)), *self.sample_words()]
        args = verify_app.build_parser().parse_args(words)
        with recorded() as record:
            verify_app.run(args)
        return record

    def load(self) -> Model:
        """Return the model, loaded anew."""
        register()
        overrides = verify_app.shared.parse_cfg_options(list(self.overrides))
        return deploy.load(*self.files, overrides)

    def reference(self, deployment: Model) -> list[np.ndarray]:
        """Return what the unpatched PyTorch model gives for some inputs."""
        family, model = deployment.family, deployment.model
        if family.samples == 'images':
            return picture_results(deployment)
        given = verify_app.build_parser().parse_args([*self.words('m.onnx'), *self.sample_words()])
        with contextlib.redirect_stdout(io.StringIO()):
            samples, _ = proof_samples(deployment, FRAMES, given.images or ())
        stepper, arrays = family.reference(model), []
        for _, sample in zip(range(FRAMES), samples, strict=False):
            step = stepper.step(sample)
            arrays += [*step.outputs.values(), *vars(step.detections).values()]
        return arrays

    def reference_bytes(self) -> list[bytes]:
        """Return the results of the reference bit for bit, of a model that is loaded anew."""
        return [np.asarray(array).tobytes() for array in self.reference(self.load())]


def picture_results(deployment: Model) -> list[np.ndarray]:
    """Return results of two pictures in pixels of the original, and tensors of the network if it has any."""
    family, model, picture = deployment.family, deployment.model, read_image(PICTURE)
    sizes = ((256, 320), (320, 256))
    images = [deploy.prepare_fixed(deployment.rule, picture, *size) for size in sizes]
    results = [family.reference_detections(model, [image], True)[0] for image in images]
    tensors: dict[str, np.ndarray] = {}
    if 'raw' in family.forms:
        with contextlib.suppress(NotImplementedError, KeyError):
            tensors = family.reference_tensors(model, family.feeds(images[:1], True), 'raw')
    return [*tensors.values(), *(array for result in results for array in vars(result).values())]


@functools.cache
def _model_of(toy: Toy) -> ModelPaths:
    return toy.model(folder_of(toy.name))


@functools.cache
def _samples_of(toy: Toy) -> tuple[str, ...]:
    return tuple(toy.samples(folder_of(toy.name)))


class AutowareToy(Toy):
    """A folder for Autoware, which `check_autoware.py` has to take, too."""

    def prove(self, path: str | Path) -> Record:
        """Prove a folder as `verify.py` does, then check it as `check_autoware.py` does."""
        record = super().prove(path)
        check_folder(record, path)
        return record

    def export_and_prove(self, folder: Path, **options: Any) -> Record:
        """Export and prove as `--verify` does, then check the folder."""
        record = super().export_and_prove(folder, **options)
        check_folder(record, self.output(folder))
        return record


def check_folder(record: Record, path: str | Path) -> None:
    """Add to a verdict what `check_autoware.py` finds in a folder."""
    with contextlib.redirect_stdout(io.StringIO()):
        status = check_autoware_app.run_check(check_autoware_app.build_parser().parse_args([str(path)]))
    if status:
        record.verdict.reasons.append(f'{path}: check_autoware.py finds errors')


class SparseToy(Toy):
    """A sparse backbone; its name has the dialect, the model's folder the net."""

    def export_arguments(self, folder: Path, **options: Any) -> argparse.Namespace:
        """Return the command line of export_scn.py."""
        words = [*self.words(), '--output-file', str(self.output(folder)), *self.options]
        args = export_scn_app.build_parser().parse_args(words)
        vars(args).update(options)
        return args

    def run_export(self, args: argparse.Namespace) -> None:
        """Run the exporting tool."""
        export_scn_app.BackboneExport(args).run()

    def give_samples(self, args: argparse.Namespace) -> None:
        """Give nothing: every proof has voxels."""

    def output(self, folder: Path) -> Path:
        """Return the file, whose name has the order of its coordinates."""
        return folder / 'backbone.xyz.onnx'

    def load(self) -> Model:
        """Return the backbone, loaded anew."""
        register()
        return deploy.load(*self.files, product=BACKBONE)

    def reference(self, deployment: Model) -> list[np.ndarray]:
        """Return the maps of the sets of voxels that every proof runs."""
        settings = deployment.settings
        sets = proof_sets(settings.spatial_shape, settings.in_channels)[2:]
        run = functools.partial(deployment.family.run_encoder, deployment.model)
        return [run(voxels.features, voxels.coordinates) for voxels in sets]


def trained(config: str, checkpoint: str = '') -> Callable[[Path], ModelPaths]:
    """Return what names a config of the repository and its trained checkpoint."""
    path = REPO / 'demo/checkpoints' / f'{checkpoint or Path(config).stem}.pth'
    return lambda folder: (str(REPO / config), str(path))


def seeded(cfg_of: Callable[..., Any], *kind: str) -> Callable[[Path], ModelPaths]:
    """Return what writes a config whose pictures are small, and a checkpoint with seeded weights."""

    def write(folder: Path) -> ModelPaths:
        config, checkpoint = write_small(cfg_of(*kind), folder), folder / 'seeded.pth'
        write_seeded(config, checkpoint)
        return config, str(checkpoint)

    return write


def write_small(cfg: Any, folder: Path) -> str:
    """Write a config whose test pipeline gives small pictures; return its path."""
    without_augmentation(cfg)
    for pipeline in (cfg.data.test.pipeline, cfg.get('test_pipeline') or ()):
        for step in pipeline:
            if 'img_scale' in step:
                step['img_scale'] = SMALL
    return toy_two_stage.write_config(cfg, folder / 'm.py')


def faster_rcnn(folder: Path) -> ModelPaths:
    """Write a Faster R-CNN with the weights of the trained Mask R-CNN."""
    checkpoint = torch.load(REPO / 'demo/checkpoints/mask_rcnn_toy.pth', map_location='cpu')
    weights = {key: value for key, value in checkpoint['state_dict'].items() if 'mask_head' not in key}
    torch.save(dict(checkpoint, state_dict=weights), folder / 'm.pth')
    return toy_two_stage.write_config(toy_two_stage.toy('faster'), folder / 'm.py'), str(folder / 'm.pth')


def tiny_centerpoint(variant: str) -> Callable[[Path], ModelPaths]:
    """Return what writes a tiny CenterPoint of `toy_centerpoint`."""
    return lambda folder: toy_centerpoint.exported(variant)[2:]


def tiny_sweeps(folder: Path) -> Sequence[str]:
    """Write sweeps for the tiny LiDAR models; return the words that give them."""
    paths = []
    for seed, count in enumerate(SWEEPS):
        paths.append(str(folder / f'sweep_{seed}.npy'))
        np.save(paths[-1], toy_centerpoint.sweep(seed, count))
    return ['--images', *paths]


DYNAMIC = ('--dynamic-export', '--shape', '256', '320', '--opset-version', '17')
SMALL_DYNAMIC = ('--dynamic-export', '--shape', '192', '256')
SCORE = 'model.pts_bbox_head.bbox_coder.score_threshold=0.517'
"""The tiny CenterPoint's threshold in the middle of its scores."""
PROJECTS = 'projects/configs'


def of_demo(name: str) -> Toy:
    """Return a trained detector of pictures of configs/demo, `full` and dynamic."""
    return Toy(name.removesuffix('_toy'), trained(f'configs/demo/{name}.py'), DYNAMIC)


def of_query(name: str, kind: str) -> Toy:
    """Return a seeded detector of queries, dynamic."""
    return Toy(name, seeded(toy_query.toy, kind), SMALL_DYNAMIC)


def of_sparse(target: str, net: str) -> Toy:
    """Return a sparse backbone of a dialect."""
    model = functools.partial(toy_scn_family.write_model, net=net)
    return SparseToy(f'sparse_{target}', model, ('--target', target))


def in_folder(name: str, config: str, checkpoint: str = '') -> Toy:
    """Return a trained model of sweeps or frames, whose proof has what is generated where no data set is."""
    return Toy(name, trained(f'{PROJECTS}/{config}', checkpoint), folder=True)


EVERY = (
    *map(of_demo, ('atss_toy', 'retinanet_toy', 'yolox_toy', 'mask_rcnn_toy', 'deformable_detr_toy')),
    *map(of_demo, ('panoptic_fpn_toy', 'solov2_toy', 'decoupled_solo_toy', 'rtdetr_toy')),
    Toy('faster_rcnn', faster_rcnn, DYNAMIC),
    of_query('queryinst', 'regions_masks'),
    of_query('mask2former', 'instances'),
    of_query('mask2former_panoptic', 'panoptic'),
    Toy('yolact', seeded(toy_yolact.toy), SMALL_DYNAMIC),
    Toy('cornernet', seeded(toy_corner.toy), SMALL_DYNAMIC),
    in_folder('streampetr', 'StreamPETR/stream_petr_toy.py'),
    Toy('centerpoint', tiny_centerpoint('sparse'), (), tiny_sweeps, folder=True, overrides=(SCORE,)),
    in_folder('pointpillars', 'PointPillars/pointpillars_toy.py'),
    in_folder('bevfusion', 'BEVFusion/bevfusion_toy.py'),
    of_sparse('portable', 'bevfusion'),
    of_sparse('libspconv', 'second'),
    AutowareToy(
        'autoware_centerpoint', tiny_centerpoint('node'), ('--contract', 'autoware'), tiny_sweeps, folder=True
    ),
)
TOYS: dict[str, Toy] = {toy.name: toy for toy in EVERY}
"""Name -> toy. `planting.TOYS_OF` has the families of the mutation table."""


def names_of(families: Iterable[str]) -> list[str]:
    """Return the toys of families; a toy may be named itself."""
    from planting import TOYS_OF

    return [name for family in families for name in TOYS_OF.get(family, (family,)) if name in TOYS]
