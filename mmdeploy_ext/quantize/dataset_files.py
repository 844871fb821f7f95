"""Where the files are that infos of a data set name: as they are, or below the folder that somebody gave."""

from __future__ import annotations

from pathlib import Path

from mmdeploy_ext.core.errors import DataError

PARTS = ('samples', 'sweeps')
"""nuScenes' folders: what a path has from there on stays when the data set moves."""


def find_file(
    name: str, source: Path, root: str | Path | None = None, what: str = 'file', alone: Path | None = None
) -> Path:
    """Return a file that infos name.

    Args:
        name: path in the infos.
        source: the infos' file.
        root: folder of the data set; the infos' own folder is tried after it.
        what: the file is, for the message.
        alone: folder below that of the data set where names without a folder are.

    Raises:
        DataError: it is nowhere.
    """
    path = Path(name)
    parts = path.parts
    below = next((parts[index:] for index, part in enumerate(parts) if part in PARTS), parts)
    folders = list(dict.fromkeys(Path(folder) for folder in (root, source.parent) if folder is not None))
    places = [path, Path(*below), *([alone / name] if alone and len(parts) == 1 else [])]
    for candidate in (path, *(folder / place for folder in folders for place in places)):
        if candidate.is_file():
            return candidate
    raise DataError(
        f'{source}: its {what} {name} is not there, nor under {" or ".join(map(str, folders))}; give the '
        f'folder of the data set (--data-root)'
    )
