"""Forms in PyTorch of compiled operators, found by the source of the operator that they replace.

A name says too little: `voxel_layer.dynamic_voxelize` gives x first in one repository and z first in another,
drops points outside of the grid or moves them into it. The hash is of the function that the extension binds
and of all that it calls, so that neighbours, comments and line breaks do not count.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

SUFFIXES = ('.cc', '.cpp', '.cu', '.cuh', '.h', '.hpp')
WITHOUT_SOURCES = ('data', 'work_dirs', 'build')
FOLDERS_ABOVE, PARENTS = 3, 8
"""Folders above a file that imports an extension whose sources may hold it."""
HASH_DIGITS = 12
BINDING = r'\.def\(\s*"{}"\s*,\s*&?\s*([\w:]+)'
FUNCTION = re.compile(r'(\w+)\s*\(')
BODY = re.compile(r'\s*(?:const|noexcept)?\s*\{')
CLASS = re.compile(r'\b(?:struct|class)\s+(\w+)[^;{}()=]*\{')
CONSTANT = re.compile(r'^(?:\w+ +)*?const(?:expr)? +(?:\w+ +)*(\w+) *=[^;]*;', re.MULTILINE)
MACRO = re.compile(r'^[ \t]*#[ \t]*define[ \t]+(\w+)(?:.*\\\n)*.*$', re.MULTILINE)
MODULE = 'PYBIND11_MODULE'
ENDS_OF_NAMES = re.compile(r'(ext|_cuda|_C|_layer)$')
"""Of names of extensions."""
KEYWORDS = ('if', 'for', 'while', 'switch', 'catch', 'return')

NOT_COMPILED = (
    "it is not compiled and has no PyTorch version: build the repository's operators, or export the "
    'parts around it (--parts)'
)
executed_operators: dict[str, None] = {}
"""Operators whose form ran in this process, for reports: 'dynamic_voxelize (source 9c96d5c3852a)'."""


def is_compiled(name: str, file: str) -> bool:
    """Whether a name that a Python file imports is an extension, whose sources are near it."""
    if not sources_near(Path(file)):
        return False
    for folder in Path(file).resolve().parents:
        setup = folder / 'setup.py'
        if setup.is_file():
            text = setup.read_text(encoding='utf-8', errors='replace')
            if re.search(rf'[\'"](?:[\w.]+\.)?{re.escape(name)}[\'"]', text):
                return True
        if (folder / '.git').exists():
            break
    return bool(ENDS_OF_NAMES.search(name) or _is_named_with_sources(name, file))


def _is_named_with_sources(name: str, file: str) -> bool:
    sources = sources_near(Path(file))
    return len(sources) > len(sources_of(file, name)) > 0


def functions_of(file: str, extension: str = '') -> dict[str, Callable[..., Any]]:
    """Operator -> its form, for an extension that a Python file imports and whose sources are near it."""
    return functions_of_sources(sources_of(file, extension))


def sources_of(file: str, extension: str = '') -> list[Path]:
    """C++ and CUDA files of an extension that a Python file imports.

    Of several extensions near it, it is the one whose name and sources a setup.py has, if any.
    """
    sources = sources_near(Path(file))
    modules = [path for path in sources if MODULE in _text(path)]
    if len(modules) <= 1:
        return sources
    for setup in dict.fromkeys(
        folder / 'setup.py' for path in [*modules, Path(file).resolve()] for folder in path.parents[:PARENTS]
    ):
        text = setup.read_text(encoding='utf-8', errors='replace') if setup.is_file() and extension else ''
        named = re.search(rf'[\'"](?:[\w.]+\.)?{re.escape(extension)}[\'"][^\[]*\[([^\]]*)\]', text)
        names = {Path(name).name for name in re.findall(r'[\'"]([^\'"]+)[\'"]', named[1])} if named else set()
        own = [module for module in modules if module.name in names]
        if len(own) == 1:
            return [path for path in sources if path.parent == own[0].parent]
    return []


def functions_of_sources(sources: Iterable[str | Path]) -> dict[str, Callable[..., Any]]:
    """Operator that C++ and CUDA files bind -> its form, where there is one; calls are noted."""
    paths = [path for path in map(Path, sources) if path.is_file()]
    names = {name for path in paths for name in re.findall(BINDING.format(r'(\w+)'), _text(path))}
    forms_of_names = {name: form_of(paths, name) for name, _ in names}
    return {name: form for name, form in forms_of_names.items() if form is not None}


def form_of(sources: Sequence[Path], operator: str) -> Callable[..., Any] | None:
    """Form of the operator that C++ and CUDA files bind to a name, or None; calls are noted."""
    digest = source_hash(sources, operator)
    form = known_forms().get(operator, {}).get(digest)
    if form is None:
        return None
    return noted(f'{operator} (source {digest})', form)


def noted(title: str, form: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that notes its calls in `executed_operators`."""

    def in_pytorch(*args: Any, **options: Any) -> Any:
        executed_operators[title] = None
        return form(*args, **options)

    return in_pytorch


def missing(file: str, operator: str, extension: str = '') -> str:
    """Why an operator of an extension that a Python file imports has no form."""
    sources = sources_of(file, extension)
    digest = source_hash(sources, operator)
    if not digest:
        return f'found no single source of {operator}, which decides its PyTorch version'
    return f'{operator} of {_binding_files(sources, operator)[0]} (source {digest}) is unknown'


def sources_near(file: Path) -> list[Path]:
    """C++ and CUDA files of extensions, below a Python file's folder or one above.

    Folders above count while they are packages or have a setup.py.
    """
    for folder in file.resolve().parents[: FOLDERS_ABOVE + 1]:
        is_package = any((folder / name).is_file() for name in ('__init__.py', 'setup.py'))
        if folder != file.resolve().parent and not is_package:
            break
        files = sorted(_source_files(folder))
        if any(MODULE in _text(path) for path in files):
            return files
    return []


def _source_files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith('.') and name not in WITHOUT_SOURCES]
        paths = (Path(place, name) for name in names if name.endswith(SUFFIXES))
        yield from filter(Path.is_file, paths)  # and no link to nothing


def source_hash(sources: Sequence[Path], operator: str) -> str:
    """First digits of the SHA-256 of an operator's function and all that it calls.

    '' unless one extension binds the operator; the files of several have to be in folders of their own.
    """
    bound = _binding_files(sources, operator)
    if len(bound) != 1:
        return ''
    is_alone = sum(MODULE in _text(path) for path in sources) == 1
    own = [path for path in sources if is_alone or path.parent == bound[0].parent]
    found = re.search(BINDING.format(operator), _text(bound[0]))
    definitions = _definitions(tuple(own))
    called: dict[str, list[str]] = {}
    waiting = [found[1].rpartition('::')[2]]
    while waiting:
        name = waiting.pop()
        if name in definitions and name not in called:
            called[name] = definitions[name]
            waiting += re.findall(r'\w+', ' '.join(definitions[name]))
    texts = sorted(''.join(text.split()) for texts in called.values() for text in texts)
    return hashlib.sha256('\n'.join(texts).encode()).hexdigest()[:HASH_DIGITS] if texts else ''


def _binding_files(sources: Sequence[Path], operator: str) -> list[Path]:
    return [path for path in sources if re.search(BINDING.format(operator), _text(path))]


@functools.lru_cache(maxsize=512)
def _text(path: Path) -> str:
    """Text of a C++ file without comments."""
    return re.sub(r'/\*.*?\*/|//[^\n]*', '', path.read_text('utf-8', errors='replace'), flags=re.DOTALL)


@functools.lru_cache(maxsize=64)
def _definitions(sources: tuple[Path, ...]) -> dict[str, list[str]]:
    """Name -> texts of the functions, classes, macros and constants that define it."""
    definitions: dict[str, list[str]] = {}
    for text in map(_text, sources):
        for pattern in (CONSTANT, MACRO):
            for found in pattern.finditer(text):
                definitions.setdefault(found[1], []).append(found[0])
        for name, definition in _blocks(text):
            definitions.setdefault(name, []).append(definition)
    return definitions


def _blocks(text: str) -> Iterator[tuple[str, str]]:
    for found in FUNCTION.finditer(text):
        body = BODY.match(text, _end(text, found.end() - 1, '(', ')'))
        if body and found[1] not in KEYWORDS:
            yield found[1], text[found.start() : _end(text, body.end() - 1, '{', '}')]
    for found in CLASS.finditer(text):
        yield found[1], text[found.start() : _end(text, found.end() - 1, '{', '}')]


def _end(text: str, start: int, opening: str, closing: str) -> int:
    """Place behind the bracket that closes the one at `start`."""
    depth = 0
    for found in re.compile(f'[{re.escape(opening + closing)}]').finditer(text, start):
        depth += 1 if found[0] == opening else -1
        if not depth:
            return found.end()
    return len(text)


@functools.cache
def known_forms() -> dict[str, dict[str, Callable[..., Any]]]:
    """Operator -> hash of its source -> its form; repeated comments name the repository once."""
    from mmdeploy_ext.upstream.compat import mmdet3d_operators as forms
    from mmdeploy_ext.upstream.compat.plain_kernels import (
        aggregation_of_points,
        attention_at_points,
        dcnv3_forward,
        deformable_aggregation,
    )

    return {
        'dynamic_voxelize': {
            '41333e557c4c': forms.dynamic_voxelize,  # bevfusion
            'e81b09e55892': forms.dynamic_voxelize,  # IS-Fusion's copy of it, MapTR
            'e05aecf53d04': partial(forms.dynamic_voxelize, z_first=True),  # mmdet3d 0.11 to 0.16
            '14e5d2fa068f': partial(forms.dynamic_voxelize, z_first=True),  # 0.17.0
            'b2b585d0cb84': partial(forms.dynamic_voxelize, z_first=True),  # 0.17.1 to 1.0.0rc0, IS-Fusion
            'd29405b7abb9': partial(forms.dynamic_voxelize, z_first=True),  # imvoxelnet
            '668e680c010d': partial(forms.dynamic_voxelize, z_first=True, moved=True),  # SST
        },
        'hard_voxelize': {
            '97270234053b': forms.hard_voxelize,
            'edc53c6407a5': forms.hard_voxelize,
            'f9ddd2ceb7fb': partial(forms.hard_voxelize, z_first=True, stops=True),  # 0.11 and 0.12
            '4f6e2b4fb23d': partial(forms.hard_voxelize, z_first=True, stops=True),
            '335e4b45b456': partial(forms.hard_voxelize, z_first=True),  # 0.14 to 0.16
            '79583cebcc35': partial(forms.hard_voxelize, z_first=True),
            'b4698ad251eb': partial(forms.hard_voxelize, z_first=True),
            '943e4ae87b9f': partial(forms.hard_voxelize, z_first=True, moved=True),
        },
        'dynamic_point_to_voxel_forward': {
            '08b4e3c28827': forms.dynamic_point_to_voxel,  # 0.11
            'bc16abfe9122': forms.dynamic_point_to_voxel,  # TransFusion
            '84d89557e006': forms.dynamic_point_to_voxel,  # 0.12
            '9b5a97799ace': partial(forms.dynamic_point_to_voxel, without_first=True),  # 0.14 to 0.17.0, SST
            'a3e60e45da3f': forms.dynamic_point_to_voxel,
            '36492e0721cc': forms.dynamic_point_to_voxel,
        },
        'points_in_boxes_gpu': {'06e157eeb038': forms.points_in_boxes_gpu},  # 0.11 to 0.18
        'points_in_boxes_batch': {'5e34e8d6cdc6': forms.points_in_boxes_batch},
        'points_in_boxes_cpu': {'b820dc70a3c0': forms.points_in_boxes_cpu},
        'boxes_iou_bev_gpu': {'681d0b169579': forms.boxes_iou_bev, '435d9f6cebd2': forms.boxes_iou_bev},
        'nms_gpu': {'44c0372f2dcb': forms.nms_of_turned_boxes, '2d142f0b4fb3': forms.nms_of_turned_boxes},
        'get_indice_pairs_2d': {'14b5dbcc7339': forms.get_indice_pairs},
        'get_indice_pairs_3d': {'14b5dbcc7339': forms.get_indice_pairs},
        'indice_conv_fp32': {'b4840077ea43': forms.indice_conv},
        'bev_pool_forward': {'0a049383e5a5': forms.bev_pool_forward},
        'bev_pool_v2_forward': {'c8d50a85cce8': forms.bev_pool_v2_forward},
        'nearest_assign_forward': {'e4e3e5235fbd': forms.nearest_assign_forward},  # FlashOCC
        'geometric_kernel_attn_cuda_forward': {'88cb847a5c5b': forms.geometric_kernel_attention},
        'nms_normal_gpu': {
            '1883f348d6a7': forms.nms_of_upright_boxes,
            'f0d88b7813a5': forms.nms_of_upright_boxes,
        },
        'voxel_pooling_forward_wrapper': {  # OccFormer, of BEVDepth and BEVStereo
            '2b6fe63e96a5': forms.voxel_pooling,
            'c4e3020c3d1f': forms.voxel_pooling,
        },
        'voxel_pooling_train_forward_wrapper': {'392573295b79': forms.voxel_pooling},  # BEVDepth
        '_ms_deform_attn_cuda_c2345_forward': {
            'dc6ed54bc470': forms.samples_of_views
        },  # SparseBEV, SparseOcc
        'forward': {'6196ce57465f': forms.places_in_groups},  # ingroup_indices of IS-Fusion's TorchEx
        'similar_forward': {'d719ab7cffd8': forms.local_similarity},  # DeepInteraction
        'weighting_forward': {'f0ca0effa8f0': forms.local_sums},
        'ms_deform_attn_forward': {'7e01a9d53dc3': attention_at_points},  # Deformable DETR, IS-Fusion
        'deformable_aggregation_forward': {
            '3fb87baf6222': deformable_aggregation,  # Sparse4D v3
            '568f272190d0': aggregation_of_points,  # v2
        },
        'dcnv3_forward': {'0290507c95d1': dcnv3_forward},  # InternImage's detection, FB-BEV
    }
