"""The code of mit-han-lab/bevfusion that this package's implementation follows, by hashes.

    python -m mmdeploy_ext.families.bevfusion.followed_code VERSION CONFIG...

adds a version of the repository in the working directory to the table: the code of the models of its configs.
A verdict names the functions and classes of a repository that differ from the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext import compat
from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.families.replaced import DIGITS, DifferingMethod

TABLE = Path(__file__).with_name('followed_code.json')
"""Version of mit-han-lab/bevfusion -> file -> qualified name -> first digits of its hash."""
NOT_FOLLOWED = {'326653d': ('mmdet3d/models/vtransforms/base.py', 'mmdet3d/models/vtransforms/depth_lss.py')}
"""Version -> files whose code the graphs do not follow: its depth maps have other points and channels."""
TRAINING_FUNCTIONS = (
    'loss', 'get_targets', 'get_targets_single', 'encode', 'backward', 'init_weights', 'train_step',
    'val_step', '_parse_losses',
)  # fmt: skip
"""Names of functions and methods that no inference calls."""

Sources = Mapping[str, Mapping[str, tuple[str, int, int]]]
"""File with code of a model -> qualified name -> hash, first and last line."""


def differing_code(sources: Sources) -> list[DifferingMethod]:
    """Return the functions and classes of a repository that differ from those of a version of mit-han-lab's.

    It is the version of the table with the fewest differences. What only one of the two has in a file of both
    counts as a difference, and a file that the version lacks counts as one. `TRAINING_FUNCTIONS` do not
    count, nor do files of the version that are not in `sources`.
    """
    table = json.loads(TABLE.read_text(encoding='utf-8'))
    versions = (list(_differing(sources, version, followed)) for version, followed in table.items())
    return min(versions, key=len)


def _differing(
    sources: Sources, version: str, followed: Mapping[str, Mapping[str, str]]
) -> Iterator[DifferingMethod]:
    upstream = f'mit-han-lab/bevfusion {version}'
    for file, names in sources.items():
        if file not in followed:
            lines = max(last for _, _, last in names.values())
            yield DifferingMethod(file, file, 1, lines, upstream)
            continue
        for name in dict.fromkeys([*names, *followed[file]]):
            digest, first, last = names.get(name, ('', 0, 0))
            if name.rpartition('.')[2] in TRAINING_FUNCTIONS or digest[:DIGITS] == followed[file].get(name):
                continue
            title = f'{file}: {name}' if name == '<module>' else name
            yield DifferingMethod(title, file if digest else '', first, last, upstream)


def main(argv: Sequence[str] | None = None) -> int:
    """Add a version of the repository to the table and return 0.

    `argv` has its name and the paths of configs; None stands for the command line. ConfigError: a config is
    missing or cannot be read. InferenceError: it is in no repository, or the repository's code fails.
    """
    compat.apply()
    from mmdeploy_ext.families.bevfusion.fork import Fork, ForkProcess, root_of

    version, *configs = sys.argv[1:] if argv is None else argv
    table: dict[str, Any] = json.loads(TABLE.read_text(encoding='utf-8')) if TABLE.is_file() else {}
    files = table.setdefault(version, {})
    for config in configs:
        cfg = load_config(config)
        process = ForkProcess(Fork(str(root_of(config)), cfg._cfg_dict.to_dict()))
        for file, names in process.facts['sources'].items():
            if file in NOT_FOLLOWED.get(version, ()):
                continue
            files[file] = {name: digest[:DIGITS] for name, (digest, _, _) in names.items()}
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
