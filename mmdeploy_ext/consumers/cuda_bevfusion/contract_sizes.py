"""Sizes in the files of CUDA-BEVFusion: how they go together, and what its main.cpp has as constants.

Source and glossary: see `contract`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmdeploy_ext.core.violations import ERROR, WARNING, Violation
from mmdeploy_ext.runtime.contract_files import shape_text as _text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mmdeploy_ext.runtime.contract_files import Ends

POOLING_STEP = 10
"""Channels that one thread of the pooling kernel adds up."""
MAIN = {
    'img': (1, 6, 3, 256, 704),
    'camera_feature': (6, 32, 88, 80),
    'camera_depth_weights': (6, 118, 32, 88),
    'feat_in': (1, 80, 360, 360),
    'feat_out': (1, 80, 180, 180),
    'score': (1, 10, None),
}
"""Name -> sizes that src/main.cpp has as constants; None where it reads the engine."""
ROWS = dict(rot=2, dim=3, reg=2, height=1, vel=2)


def size_rules(ends: Mapping[str, Ends]) -> Iterator[Violation]:
    """Yield what the C++ would read wrongly.

    Of files that are there `ends` has, by name without `.onnx`, the inputs and outputs; a rule about a tensor
    that is not there says nothing, `contract` does.
    """
    yield from _camera(ends)
    pairs = [
        (('camera.vtransform', 'feat_out'), ('fuser', 'camera'), 'the fuser reads the cameras from it'),
        (('fuser', 'middle'), ('head.bbox', 'middle'), 'the head reads it'),
    ]
    lidar = [(name, next(iter(both.outputs), '')) for name, both in ends.items() if name.startswith('lidar')]
    pairs += [(given, ('fuser', 'lidar'), 'the fuser reads the LiDAR from it') for given in lidar]
    for one, other, why in pairs:
        yield from _ranks(ends, {one: 4, other: 4})
        left, right = _of(ends, *one, 4), _of(ends, *other, 4)
        if left and right and left != right:
            said = f'{other[1]} is {_text(right)}, {one[1]} of {one[0]}.onnx {_text(left)}: {why}'
            yield _wrong(*other, said)
    yield from _head(ends)
    yield from _main(ends)


def _fixed(ends: Mapping[str, Ends], file: str, name: str) -> tuple[int, ...] | None:
    """Return the shape of a tensor, None where it is not there or not fixed."""
    shape = ends[file].shapes.get(name) if file in ends else None
    return None if shape is None or None in shape else shape


def _of(ends: Mapping[str, Ends], file: str, name: str, rank: int) -> tuple[int, ...] | None:
    """Return a fixed shape with a number of axes, None where it is another."""
    shape = _fixed(ends, file, name)
    return shape if shape and len(shape) == rank else None


def _ranks(ends: Mapping[str, Ends], wanted: Mapping[tuple[str, str], int]) -> Iterator[Violation]:
    """Yield tensors with another number of axes."""
    for (file, name), rank in wanted.items():
        shape = _fixed(ends, file, name)
        if shape and len(shape) != rank:
            yield _wrong(file, name, f'{name} is {_text(shape)}, expected {rank} axes')


def _camera(ends: Mapping[str, Ends]) -> Iterator[Violation]:
    """Yield what does not go together in the camera's files."""
    file, axes = 'camera.backbone', dict(img=5, depth=5, camera_feature=4, camera_depth_weights=4)
    yield from _ranks(ends, {(file, name): rank for name, rank in axes.items()})
    img, depth, feature, weights = (_of(ends, file, name, rank) for name, rank in axes.items())
    if img and depth and (img[:2], 1, img[3:]) != (depth[:2], depth[2], depth[3:]):
        yield _wrong(file, 'depth', f'depth is {_text(depth)}, img {_text(img)}: one value of each pixel')
    if img and img[0] != 1:
        yield _wrong(file, 'img', f'img is {_text(img)}: the C++ takes one sample')
    if feature and weights:
        yield from _lifted(file, feature, weights, img)
    seen, pooled = _of(ends, 'camera.vtransform', 'feat_in', 4), feature and feature[3]
    if seen and pooled and seen[:2] != (1, pooled):
        said = f'feat_in is {_text(seen)}, the pooled features have {pooled} channels'
        yield _wrong('camera.vtransform', 'feat_in', said)


def _lifted(
    file: str, feature: tuple[int, ...], weights: tuple[int, ...], img: tuple[int, ...] | None
) -> Iterator[Violation]:
    if feature[1:3] != weights[2:]:
        first = feature[2:] == weights[2:]
        why = 'channels stand first, and the C++ reads N, h, w, C' if first else 'expected N, h, w, C'
        said = f'camera_feature is {_text(feature)} beside weights of {_text(weights)}: {why}'
        yield _wrong(file, 'camera_feature', said, 'axes')
    elif feature[3] % POOLING_STEP:
        said = f'camera_feature has {feature[3]} channels; a thread of the pooling adds up {POOLING_STEP}'
        yield _wrong(file, 'camera_feature', said)
    counts = {feature[0], weights[0], *([img[1]] if img else [])}
    if len(counts) > 1:
        said = f'camera_feature is of {feature[0]} cameras, the weights of {weights[0]}'
        yield _wrong(file, 'camera_feature', said + (f', img of {img[1]}' if img else ''))


def _head(ends: Mapping[str, Ends]) -> Iterator[Violation]:
    """Yield outputs of the head of other shapes."""
    file, score = 'head.bbox', _of(ends, 'head.bbox', 'score', 3)
    yield from _ranks(ends, {(file, name): 3 for name in ('score', *ROWS)})
    for name, count in ROWS.items():
        shape, wanted = _of(ends, file, name, 3), score and (1, count, score[2])
        if shape and wanted and shape != wanted:
            said = f'{name} is {_text(shape)}, expected {_text(wanted)}, as score has queries'
            yield _wrong(file, name, said)


def _main(ends: Mapping[str, Ends]) -> Iterator[Violation]:
    """Yield sizes that are not those of main.cpp; the tensors go together, so the constants change."""
    for file, both in ends.items():
        for name, wanted in MAIN.items():
            shape = both.shapes.get(name)
            if not shape or len(shape) != len(wanted):
                continue
            if any(size not in (None, own) for own, size in zip(shape, wanted, strict=True)):
                said = f'{name} is {_text(shape)}, main.cpp has {_text(wanted)}: change its constants'
                yield _wrong(file, name, said, 'main.cpp', WARNING)


def _wrong(file: str, name: str, said: str, rule: str = 'shape', severity: str = ERROR) -> Violation:
    return Violation(f'{file}.onnx', name, rule, said, severity)
