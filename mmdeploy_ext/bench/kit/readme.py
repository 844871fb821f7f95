"""README.md of a kit: how it was made, and what to type for each engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from mmdeploy_ext.bench.kit.contents import LIBSPCONV, KitGraph
from mmdeploy_ext.bench.kit.engine_files import DETECT, shapes_of

if TYPE_CHECKING:
    from collections.abc import Mapping


def write_readme(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write README.md from a manifest, which may lack its hashes."""
    graphs = [KitGraph.from_json(entry) for entry in manifest['graphs']]
    facts = dict(
        manifest=manifest,
        graphs=graphs,
        versions=', '.join(f'{name} {version}' for name, version in manifest['made_with'].items() if version),
        count=len(manifest['cases']),
        frames=manifest['frames'],
        tensors=_tensors,
        shapes=shapes_of,
        detects=(folder / DETECT).is_file(),
    )
    template = 'readme_libspconv.md.j2' if manifest.get('engine') == LIBSPCONV else 'readme.md.j2'
    text = Path(__file__).with_name(template).read_text(encoding='utf-8')
    (folder / 'README.md').write_text(jinja2.Template(text).render(**facts), encoding='utf-8')


def _tensors(tensors: Any) -> str:
    return ', '.join(f'`{tensor.name}` {tensor.dtype} {tensor.shape_text()}' for tensor in tensors)
