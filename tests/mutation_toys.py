"""The toys whose files are mutated, and whose code gets faults: how each is loaded, exported and proven."""

from __future__ import annotations

import copy
import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import toy_atss
import toy_centerpoint
import toy_rtdetr
import toy_scn_family
import toy_streampetr_deploy as petr
from mmdeploy_ext.deploy import deployment as deploy
from mmdeploy_ext.deploy.files import export_files
from mmdeploy_ext.families.base import BACKBONE
from mmdeploy_ext.inputs.pictures import read_image
from mmdeploy_ext.proof import ladder
from mmdeploy_ext.proof.inputs.voxel_sets import proof_sets
from mmdeploy_ext.runtime.frames import Sweep

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np

    from mmdeploy_ext.proof.verdict import Verdict

FRAMES = 12
POINTS = (100, 400, 1200, 3000, 3000, 3000)
"""Of the sweeps; with 3000 most voxels are full."""
SCORE = 'model.pts_bbox_head.bbox_coder.score_threshold'
IMAGES = [('toy.jpg', read_image(toy_atss.PICTURE))]


class Toy:
    """One family's toy.

    Attributes:
        graphs: names of its files, without '.onnx'.
        has_metadata: they have the metadata of `mmdeploy_ext.contract.metadata`.
        engine: options of the engine that proves them.
    """

    graphs: ClassVar[tuple[str, ...]]
    has_metadata: ClassVar[bool] = True
    engine: ClassVar[dict[str, Any]] = {}

    @functools.cached_property
    def deployment(self) -> Any:
        """The model with its weights."""
        raise NotImplementedError

    def export(self, folder: Path) -> list[str]:
        """Write the files and return their paths, in the order of `graphs`."""
        raise NotImplementedError

    def samples(self) -> Iterable[Any]:
        """Return what a proof is given."""
        return ()

    def prove(self, paths: list[str]) -> Verdict:
        """Prove files as the tools do."""
        return ladder.prove(self.deployment, paths, self.samples(), self.engine)[0]

    def reference(self) -> list[np.ndarray]:
        """Return what the unpatched PyTorch model gives for some inputs."""
        raise NotImplementedError

    def reference_bytes(self) -> list[bytes]:
        """Return the same bit for bit."""
        return [array.tobytes() for array in self.reference()]

    def anew(self) -> Toy:
        """Return the toy with nothing loaded or exported yet: for code that has changed."""
        return dataclasses.replace(self)


@dataclasses.dataclass(unsafe_hash=True)
class Pictures(Toy):
    """A detector of pictures, `full` and dynamic.

    Attributes:
        name: of config and checkpoint.
    """

    name: str
    graphs = ('full',)

    @functools.cached_property
    def deployment(self) -> Any:
        """See `Toy`."""
        import projects.mmdet_plugin  # noqa: F401

        folder = toy_atss.REPO / 'demo/checkpoints'
        return deploy.load(
            str(toy_atss.REPO / f'configs/demo/{self.name}.py'), str(folder / f'{self.name}.pth')
        )

    def export(self, folder: Path) -> list[str]:
        """See `Toy`."""
        return [toy_rtdetr.export_toy(self.deployment, _made(folder) / 'full.onnx', height=256, width=320)]

    def samples(self) -> Iterable[Any]:
        """See `Toy`."""
        return IMAGES

    def reference(self) -> list[np.ndarray]:
        """See `Toy`: two pictures in pixels of the original, and the network's tensors."""
        family, model = self.deployment.family, self.deployment.model
        sizes = ((256, 320), (320, 288))
        images = [deploy.prepare_fixed(self.deployment.rule, IMAGES[0][1], *size) for size in sizes]
        found = [family.reference_detections(model, [image], True)[0] for image in images]
        tensors = family.reference_tensors(model, family.feeds(images[:1], True), 'raw')
        return [*tensors.values(), *(array for one in found for array in vars(one).values())]


@dataclasses.dataclass(unsafe_hash=True)
class Frames(Toy):
    """A model of frames: three graphs with a memory, or two of points.

    Attributes:
        graphs: its files.
        load: gives the model.
        samples: frames that its proof runs.
    """

    graphs: tuple[str, ...]
    load: Callable[[], Any]
    samples: Callable[[], Iterable[Any]]

    @functools.cached_property
    def deployment(self) -> Any:
        """See `Toy`."""
        deployment = copy.copy(self.load())
        deployment.exports = {}
        return deployment

    def export(self, folder: Path) -> list[str]:
        """See `Toy`."""
        export_files(self.deployment, self.deployment.family.choose(), str(folder))
        return [str(folder / f'{name}.onnx') for name in self.graphs]

    def reference(self) -> list[np.ndarray]:
        """See `Toy`: of all frames, the memory too."""
        stepper = self.deployment.family.reference(self.deployment.model)
        results = [stepper.step(frame) for frame in self.samples()]
        found = [
            array for one in results for array in (*one.outputs.values(), *vars(one.detections).values())
        ]
        return found


@dataclasses.dataclass(unsafe_hash=True)
class Sparse(Toy):
    """A sparse backbone in one of the two dialects.

    Attributes:
        target: 'libspconv' or 'portable'.
        net: of `toy_scn_family`.
        order: of the file's coordinates.
    """

    target: str
    net: str
    order: str
    graphs = ('backbone',)
    has_metadata = False
    engine: ClassVar[dict[str, Any]] = dict(threads=1)

    @functools.cached_property
    def deployment(self) -> Any:
        """See `Toy`."""
        self.folder = tempfile.TemporaryDirectory()
        model = toy_scn_family.write_model(Path(self.folder.name), self.net)
        return deploy.load(*model, product=BACKBONE)

    def export(self, folder: Path) -> list[str]:
        """See `Toy`."""
        from mmdeploy_ext.deploy.sparse import export_file

        path = str(_made(folder) / f'backbone.{self.order}.onnx')
        options = self.deployment.family.choose(target=self.target, order=self.order)
        export_file(self.deployment, options, path)
        return [path]

    def reference(self) -> list[np.ndarray]:
        """See `Toy`: of the sets of voxels that a proof runs."""
        one, settings = self.deployment, self.deployment.settings
        sets = proof_sets(settings.spatial_shape, settings.in_channels)
        return [one.family.run_encoder(one.model, each.features, each.coordinates) for each in sets[2:]]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sweeps() -> list[Sweep]:
    return [Sweep(toy_centerpoint.sweep(seed, count), f'sweep {seed}') for seed, count in enumerate(POINTS)]


def _centerpoint() -> Any:
    """Return the toy with a threshold in the middle of its scores."""
    *_, config, checkpoint = toy_centerpoint.exported()
    return deploy.load(config, checkpoint, {SCORE: 0.517})


PETR_GRAPHS = ('extract_img_feat', 'position_embedding', 'pts_head_memory')
TOYS: dict[str, Toy] = dict(
    dense=Pictures('atss_toy'),
    solo=Pictures('solov2_toy'),
    solo_decoupled=Pictures('decoupled_solo_toy'),
    rtdetr=Pictures('rtdetr_toy'),
    streampetr=Frames(PETR_GRAPHS, petr.deployment, lambda: petr.drive(FRAMES)),
    centerpoint=Frames(('backbone', 'head'), _centerpoint, _sweeps),
    sparse_portable=Sparse('portable', 'bevfusion', 'xyz'),
    sparse_libspconv=Sparse('libspconv', 'second', 'xyz'),
)
"""Name -> toy."""
