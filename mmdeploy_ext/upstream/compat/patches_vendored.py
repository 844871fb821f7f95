"""Patches of research repositories and their copies of mmdet for today's libraries, each with its reason.

Copies of mmdet 2.11 to 2.25 lack names that families use: see `mmdet_module`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, ModuleType, SimpleNamespace
from typing import Any

from mmdeploy_ext.base.errors import ConfigError
from mmdeploy_ext.base.source_code import OURS, is_users_file
from mmdeploy_ext.upstream.compat.import_hook import Execute, after, patch, patched

# What a copy of mmdet3d 0.x in a repository needs beside today's mmcv.


@patch('mmdet3d.ops.spconv.conv', versions='mmdet3d 0.17 with mmcv-full 1.7.2')
def mmdet3d_sparse_convolutions(module: ModuleType, execute: Execute) -> bool:
    """mmcv registers sparse convolutions under mmdet3d 0.x's names since 1.5: the copy's replace them."""
    from mmcv.cnn import CONV_LAYERS

    of_mmcv = [
        name for name, kind in CONV_LAYERS.module_dict.items() if kind.__module__.startswith('mmcv.ops.')
    ]
    replaced = [name for name in of_mmcv if name.startswith(('SparseConv', 'SubMConv', 'SparseInverseConv'))]
    for name in replaced:
        del CONV_LAYERS.module_dict[name]
    execute()
    return bool(replaced)


# The user's code on the stack: whether it reads modules, and in which `try` it is.


COMPAT = f'{os.path.dirname(__file__)}{os.sep}'


@functools.lru_cache(maxsize=4096)
def is_users(file: str) -> bool:
    """Return whether a file is of the user's modules."""
    return os.path.isabs(file) and is_users_file(Path(file)) and os.path.isfile(file)


def users_frames(frame: FrameType | None) -> Iterator[FrameType]:
    """Yield the user's frames, innermost first, up to a script or the code of ours that imports or builds."""
    while frame is not None and frame.f_globals.get('__name__') != '__main__':
        file = frame.f_code.co_filename
        if is_users(file):
            yield frame
        elif file.startswith(f'{OURS}{os.sep}') and not file.startswith(COMPAT):
            return
        frame = frame.f_back


def is_importing(frame: FrameType) -> bool:
    """Return whether the body of a module of the user's runs."""
    return any(users.f_code.co_name == '<module>' for users in users_frames(frame))


def place(frame: FrameType) -> str:
    """Return FILE:LINE."""
    return f'{frame.f_code.co_filename}:{frame.f_lineno}'


def users_place(frame: FrameType) -> str:
    """Return FILE:LINE of the user's innermost frame, or ''."""
    return next(map(place, users_frames(frame)), '')


def tried_at(frame: FrameType, error: type[BaseException]) -> str:
    """Return FILE:LINE of the innermost frame of the user's in a `try` that takes such an error, or ''."""
    names = {base.__name__ for base in error.__mro__}
    for users in users_frames(frame) if is_users(frame.f_code.co_filename) else ():
        for first, last, taken in _tries(users.f_code.co_filename):
            if first <= users.f_lineno <= last and names & taken:
                return place(users)
    return ''


@functools.lru_cache(maxsize=1024)
def _tries(file: str) -> list[tuple[int, int, set[str]]]:
    """First and last line of each `try` or `suppress` of a file, and names of the errors that it takes."""
    blocks = []
    for node in ast.walk(parsed(file)):
        kinds: list[ast.expr | None] = []
        if isinstance(node, ast.Try | ast.TryStar):
            kinds = [handler.type for handler in node.handlers]
        elif isinstance(node, ast.With):
            calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
            kinds = [arg for call in calls if 'suppress' in ast.unparse(call.func) for arg in call.args]
        names = {'BaseException'} if None in kinds else set()
        for kind in filter(None, kinds):
            names |= {getattr(part, 'attr', getattr(part, 'id', '')) for part in ast.walk(kind)}
        if names:
            blocks.append((node.body[0].lineno, node.body[-1].end_lineno or 0, names))
    return blocks


def parsed(file: str) -> ast.Module:
    """Return the syntax tree of a file, empty if it cannot be read."""
    try:
        return ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])


OLDEST_MMDET = 2, 6
"""Oldest mmdet that families work with."""


def _string_constants(module: ModuleType) -> dict[str, str]:
    source = module.__spec__.loader.get_source(module.__name__)
    return {
        statement.targets[0].id: statement.value.value
        for statement in ast.parse(source or '').body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    }


def _release(version: str) -> tuple[int, ...]:
    parts = version.split('+')[0].split('.')
    return tuple(int(part) for part in parts if part.isdigit())


CHECKING = ('mmcls', 'mmdet', 'mmdet3d', 'mmfewshot', 'mmocr', 'mmpose', 'mmrotate', 'mmseg', 'mmtrack')
"""Packages of OpenMMLab that assert versions of each other."""


@patch(*CHECKING, versions='mmdet 2.11.0 to 2.25.3, mmdet3d 0.11 to 1.0.0rc6, with mmcv-full 1.7.2')
def version_checks(module: ModuleType, execute: Execute) -> bool:
    """Packages of OpenMMLab assert versions of each other of their time.

    They see the oldest that they take. ConfigError: mmdet before `OLDEST_MMDET`.
    """
    if module.__name__ == 'mmdet':
        _refuse_too_old(Path(module.__spec__.origin or '').parent)
    limits = _string_constants(module)
    newer: dict[ModuleType, str] = {}
    for name in ('mmcv', *CHECKING):
        lowest, highest = (
            limits.get(f'{name}_{bound}imum_version') or limits.get(f'{name.upper()}_{bound.upper()}')
            for bound in ('min', 'max')
        )
        if highest and importlib.util.find_spec(name) is not None:
            library = importlib.import_module(name)  # all of them before one seems older
            if _release(library.__version__) > _release(highest):
                newer[library] = lowest or highest
    with contextlib.ExitStack() as stack:
        for library, version in newer.items():
            stack.enter_context(patched(library, __version__=version))
        execute()
    return bool(newer)


def _refuse_too_old(folder: Path) -> None:
    text = (folder / 'version.py').read_text('utf-8') if (folder / 'version.py').is_file() else ''
    version = re.search(r'^__version__\s*=\s*[\'"](\d+\.\d+[^\'"]*)', text, re.MULTILINE)
    if version and _release(version[1])[:2] < OLDEST_MMDET:
        oldest = '.'.join(map(str, OLDEST_MMDET))
        raise ConfigError(
            f'{folder}: is mmdet {version[1]}; expected {oldest} or newer: combine your own modules with '
            "such a version, and name them in the config's custom_imports"
        )


@after('numba', versions='numba 0.68 with mmdet3d 0.11.0, 0.15.0 and 0.16.0')
def numba_errors_in_their_old_place(module: ModuleType) -> bool:
    """numba 0.49 moved numba.errors, from which mmdet3d before 1.0 imports a warning."""
    if importlib.util.find_spec('numba.errors') is not None:
        return False
    sys.modules['numba.errors'] = module.errors = importlib.import_module('numba.core.errors')
    return True


@after('mmdet.models.builder', versions='mmdet3d 0.11.0 with mmdet 2.28.2')
def builder_of_older_mmdet(module: ModuleType) -> bool:
    """mmdet before 2.11 had one function that builds a part from its registry; mmdet3d 0.11 imports it."""
    if hasattr(module, 'build'):
        return False
    from mmcv.cnn import build_model_from_cfg

    module.build = build_model_from_cfg
    return True


@after('mmcv.runner.base_module', versions='mmdet3d 0.11.0 with mmcv-full 1.7.2')
def weights_of_older_mmdet(module: ModuleType) -> None:
    """Before mmdet 2.11 detectors called init_weights with a file of weights when they were built.

    mmcv's takes no file: such a call does nothing, since a checkpoint follows.
    """
    original = module.BaseModule.init_weights

    @functools.wraps(original)
    def init_weights(self: Any, *of_older: Any, **options_of_older: Any) -> None:
        if not of_older and not options_of_older:
            original(self)

    module.BaseModule.init_weights = init_weights


@after('mmdet.core.anchor.anchor_generator', versions='mmdet 2.6.0, 2.10.0, 2.11.0 and 2.14.0')
def priors_of_a_level(module: ModuleType) -> bool | None:
    """Before mmdet 2.18 the priors of a level were float32 anchors; families ask for priors of a type.

    `single_level_grid_priors` takes sizes of maps as tensors.
    """
    generator = module.AnchorGenerator
    present = getattr(generator, 'single_level_grid_priors', None)
    if present is not None and 'dtype' in inspect.signature(present).parameters:
        return False

    def single_level_grid_priors(
        self: Any, featmap_size: Sequence[Any], level_idx: int, dtype: Any = None, device: Any = 'cuda'
    ) -> Any:
        import torch

        from mmdeploy_ext.upstream.compat.older_priors import shifted_priors

        base = self.base_anchors[level_idx].to(device=device, dtype=dtype or torch.float32)
        return shifted_priors(base, featmap_size, self.strides[level_idx])

    if present is not None:  # a change of the user's is found in it
        functools.update_wrapper(single_level_grid_priors, present)
    generator.single_level_grid_priors = single_level_grid_priors
    if not hasattr(generator, 'num_base_priors'):
        generator.num_base_priors = property(lambda self: self.num_base_anchors)
    return None


@after('mmdet.core.anchor.point_generator', versions='mmdet 2.14.0 and 2.17.0')
def points_of_a_level(module: ModuleType) -> bool | None:
    """Before mmdet 2.18 the points of a level were float32; families ask for points of a type."""
    generator = getattr(module, 'MlvlPointGenerator', None)
    if generator is None or 'dtype' in inspect.signature(generator.single_level_grid_priors).parameters:
        return False
    own_priors = generator.single_level_grid_priors

    @functools.wraps(own_priors)
    def single_level_grid_priors(
        self: Any,
        featmap_size: Sequence[Any],
        level_idx: int,
        device: Any = 'cuda',
        with_stride: bool = False,
        *,
        dtype: Any = None,
    ) -> Any:
        if with_stride:
            return own_priors(self, featmap_size, level_idx, device=device, with_stride=True)
        import torch

        from mmdeploy_ext.upstream.compat.older_priors import shifted_priors

        stride = self.strides[level_idx]
        base = [[side * self.offset for side in stride]]
        base = torch.tensor(base, device=device, dtype=dtype or torch.float32)
        return shifted_priors(base, featmap_size, stride)

    generator.single_level_grid_priors = single_level_grid_priors
    return None


@after('mmdet.models.dense_heads.anchor_head', versions='mmdet 2.6.0, 2.11.0 and 2.14.0')
def prior_generator_of_anchors(module: ModuleType) -> bool | None:
    """Before mmdet 2.18 the generator of a head's priors was called `anchor_generator`."""
    head = module.AnchorHead
    if 'self.prior_generator' in inspect.getsource(head.__init__):
        return False
    from mmdeploy_ext.upstream.compat.older_priors import Default

    head.prior_generator = Default(lambda head: head.anchor_generator)
    head.num_base_priors = Default(lambda head: head.num_anchors)
    return None


@after(
    'mmdet.models.dense_heads.anchor_free_head',
    'mmdet.models.dense_heads.vfnet_head',
    versions='mmdet 2.6.0, 2.10.0, 2.14.0 and 2.17.0',
)
def generator_and_coder_of_points(module: ModuleType) -> bool | None:
    """Before mmdet 2.18 heads of points made points and boxes by functions, without generator and coder."""
    head = getattr(module, 'AnchorFreeHead', None) or module.VFNetHead
    if 'prior_generator' in inspect.getsource(head.__init__):
        return False
    from mmdeploy_ext.upstream.compat.older_priors import Default, DistanceCoder, points_of

    head.prior_generator, head.bbox_coder = Default(points_of), Default(lambda head: DistanceCoder())
    head.use_sigmoid_cls = True
    return None


@after('mmdet.core.bbox.coder.delta_xywh_bbox_coder', versions='mmdet 2.11.0')
def coder_without_clamped_centres(module: ModuleType) -> bool | None:
    """Before mmdet 2.13 no coder limited how far a centre moves."""
    coder = module.DeltaXYWHBBoxCoder
    if 'add_ctr_clamp' in inspect.signature(coder.__init__).parameters:
        return False
    coder.add_ctr_clamp = False
    return None


@after('mmdet.models.roi_heads.bbox_heads.bbox_head', versions='mmdet 2.11.0, 2.14.0 and 2.17.0')
def softmax_of_box_heads(module: ModuleType) -> bool | None:
    """Before mmdet 2.15 every head of boxes gave softmax scores, without asking its loss."""
    head = module.BBoxHead
    if hasattr(head, 'custom_cls_channels'):
        return False
    head.custom_cls_channels = head.custom_activation = False
    return None


MMPYCOCOTOOLS = '12.0.2'
"""Version that data sets before mmdet 2.11 ask for."""


@contextlib.contextmanager
def _as_mmpycocotools() -> Iterator[None]:
    import pycocotools

    if hasattr(pycocotools, '__version__'):
        yield
        return
    pycocotools.__version__ = MMPYCOCOTOOLS
    try:
        yield
    finally:
        del pycocotools.__version__


@patch('mmdet.datasets', versions='mmdet 2.7.0 of SCRFD')
def data_sets_of_mmpycocotools(module: ModuleType, execute: Execute) -> bool:
    """Data sets that forks of mmdet before 2.11 add ask for mmpycocotools, as its `coco.py` does."""
    if mmdet_release() >= (2, 11):
        execute()
        return False
    with _as_mmpycocotools():
        execute()
    return True


@patch('mmdet.datasets.coco', versions='mmdet 2.6.0 and 2.10.0')
def coco_of_mmpycocotools(module: ModuleType, execute: Execute) -> bool:
    """Before mmdet 2.11 data sets asked for mmpycocotools, a fork of pycocotools that is no longer kept."""
    import pycocotools
    from pycocotools.coco import COCO

    asks = 'pycocotools.__version__' in (module.__spec__.loader.get_source(module.__name__) or '')
    if not asks or getattr(pycocotools, '__version__', MMPYCOCOTOOLS) != MMPYCOCOTOOLS:
        execute()
        return False
    with _as_mmpycocotools():
        execute()

    class SnakeCaseCOCO(COCO):
        """pycocotools' `COCO` with names of mmpycocotools 12.0.3."""

        def get_ann_ids(
            self, img_ids: Any = (), cat_ids: Any = (), area_rng: Any = (), iscrowd: bool | None = None
        ) -> list[int]:
            return self.getAnnIds(img_ids, cat_ids, area_rng, iscrowd)

        def get_cat_ids(self, cat_names: Any = (), sup_names: Any = (), cat_ids: Any = ()) -> list[int]:
            return self.getCatIds(cat_names, sup_names, cat_ids)

        def get_img_ids(self, img_ids: Any = (), cat_ids: Any = ()) -> list[int]:
            return self.getImgIds(img_ids, cat_ids)

        load_anns, load_cats, load_imgs = COCO.loadAnns, COCO.loadCats, COCO.loadImgs
        img_ann_map = property(lambda self: self.imgToAnns)
        cat_img_map = property(lambda self: self.catToImgs)

    module.COCO = SnakeCaseCOCO
    return True


@patch('ops_dcnv3.functions.dcnv3_func', versions='InternImage 31c962d')
def dcnv3_without_extension(module: ModuleType, execute: Execute) -> bool:
    """InternImage imports a compiled extension, DCNv3, built for GPUs; without it PyTorch computes."""
    from mmdeploy_ext.upstream.compat.plain_kernels import dcnv3_forward

    return _without_extension(module, execute, 'DCNv3', 'DCNv3Function', dcnv3_forward)


@patch('DCNv4.functions.dcnv4_func', versions='DCNv4 4b848f7')
def dcnv4_without_extension(module: ModuleType, execute: Execute) -> bool:
    """DCNv4 imports its compiled extension, built for GPUs; without it PyTorch computes."""
    from mmdeploy_ext.upstream.compat.plain_kernels import dcnv4_forward

    return _without_extension(module, execute, 'DCNv4.ext', 'DCNv4Function', dcnv4_forward)


@patch(
    'DCNv4.functions.flash_deform_attn_func', 'mmdet_custom.models.dense_heads.msda', versions='DCNv4 4b848f7'
)
def flash_deform_attn_without_extension(module: ModuleType, execute: Execute) -> bool:
    """DCNv4's attention imports the same extension, and asks for a GPU at its import.

    It can be imported without both; a call fails.
    """
    import torch

    if torch.cuda.is_available():
        return _without_extension(module, execute, 'DCNv4.ext')
    some_gpu = SimpleNamespace(major=8, minor=0)  # compute capability
    with patched(torch.cuda, get_device_properties=lambda device: some_gpu):
        return _without_extension(module, execute, 'DCNv4.ext')


@patch('ops.functions.ms_deform_attn_func', versions='ViT-Adapter fd64a51')
def ms_deform_attn_without_extension(module: ModuleType, execute: Execute) -> bool:
    """ViT-Adapter imports Deformable DETR's extension, built for GPUs; without it PyTorch computes."""
    from mmdeploy_ext.upstream.compat.plain_kernels import attention_at_points

    extension = 'MultiScaleDeformableAttention'
    return _without_extension(module, execute, extension, 'MSDeformAttnFunction', attention_at_points)


def _without_extension(
    module: ModuleType,
    execute: Execute,
    extension: str,
    function: str = '',
    compute: Callable[..., Any] | None = None,
) -> bool:
    """Run a module; without its extension `compute` replaces `function`. Returns whether it is absent."""
    if importlib.util.find_spec(extension) is not None:
        execute()
        return False
    sys.modules[extension] = ModuleType(extension)
    try:
        execute()
    finally:
        del sys.modules[extension]
    if compute is not None:
        setattr(module, function, type(function, (), dict(apply=staticmethod(compute))))
    return True


SPARSE4D_EXTENSION = 'deformable_aggregation_ext'


@patch('projects.mmdet3d_plugin.ops.deformable_aggregation', versions='Sparse4D c41df4b, db711ad')
def sparse4d_without_extension(module: ModuleType, execute: Execute) -> bool:
    """Sparse4D imports a compiled extension, built for GPUs, or else refuses its own configs.

    PyTorch computes by the kernel's rule; upstream's variant differs at the border of pictures.
    """
    from mmdeploy_ext.upstream.compat.operator_forms import functions_of

    name = f'{module.__package__}.{SPARSE4D_EXTENSION}'
    forms = functions_of(str(module.__file__))
    is_replaced = name in sys.modules and sys.modules[name].__spec__ is None  # by an import that failed later
    if 'deformable_aggregation_forward' not in forms or (
        not is_replaced and importlib.util.find_spec(name) is not None
    ):
        execute()
        return False
    extension = ModuleType(name)
    vars(extension).update(forms)
    sys.modules[name] = extension
    setattr(sys.modules[module.__package__], SPARSE4D_EXTENSION, extension)
    execute()
    return True


TRIED = (2, 28)
"""Release that families and models are written for."""


class OlderModule:
    """A module that mmdet before 2.28 has in part or not at all: missing names are empty classes."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        try:
            return getattr(importlib.import_module(self._name), name)
        except ModuleNotFoundError as error:
            if not f'{self._name}.'.startswith(f'{error.name}.'):
                raise
        except AttributeError:
            pass
        return missing_class(name, self._name)


@functools.cache
def missing_class(name: str, module: str = '') -> type:
    """An empty class without instances."""
    return type(name, (), {'__module__': module, '__doc__': f'No class {name} can be imported.'})


def mmdet_release() -> tuple[int, ...]:
    """First two numbers of the imported mmdet's version."""
    import mmdet

    return _release(mmdet.__version__)[:2]


def mmdet_module(name: str) -> ModuleType | OlderModule:
    """A module of mmdet by full name; an `OlderModule` before 2.28."""
    return importlib.import_module(name) if mmdet_release() >= TRIED else OlderModule(name)


def lacks_part_of_mmdet(error: ImportError | AttributeError) -> bool:
    """Whether an import failed because the imported mmdet is older than 2.28."""
    module = getattr(error, 'obj', None)  # of an AttributeError
    name = module.__name__ if isinstance(module, ModuleType) else error.name or ''
    return name.partition('.')[0] == 'mmdet' and 'mmdet' in sys.modules and mmdet_release() < TRIED
