"""The code of mit-han-lab/bevfusion that this package's implementation follows, by hashes.

    python -m mmdeploy_ext.families.bevfusion.followed_code CONFIG...

adds to the table the code of the repository in the working directory, by models of its configs. Where a
function or class of a repository is another one, a verdict says so, and inputs decide.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdeploy_ext.core.config import load_config
from mmdeploy_ext.families.replaced import DIGITS, DifferingMethod

TABLE = Path(__file__).with_name('followed_code.json')
"""File of a repository -> qualified name -> first digits of the hashes of its versions."""
UPSTREAM = 'mit-han-lab/bevfusion'
OF_TRAINING = (
    *('loss', 'get_targets', 'get_targets_single', 'encode', 'backward', 'init_weights'),
    *('train_step', 'val_step', '_parse_losses'),
)
"""Last names of functions that no inference calls."""

Sources = Mapping[str, Mapping[str, tuple[str, int, int]]]
"""File -> qualified name -> hash, first and last line; of the files that the code of a model is in."""


def differing_code(sources: Sources) -> list[DifferingMethod]:
    """Return the functions and classes of a repository that are other ones than those of the table."""
    table = json.loads(TABLE.read_text(encoding='utf-8'))
    return [method for file, names in sources.items() for method in _differing(file, names, table.get(file))]


def _differing(
    file: str, names: Mapping[str, tuple[str, int, int]], followed: Mapping[str, Sequence[str]] | None
) -> Iterator[DifferingMethod]:
    if followed is None:
        yield DifferingMethod(file, file, 1, max(last for _, _, last in names.values()), UPSTREAM)
        return
    for name in dict.fromkeys([*names, *followed]):
        digest, first, last = names.get(name, ('', 0, 0))
        if name.rpartition('.')[2] in OF_TRAINING or digest[:DIGITS] in followed.get(name, ()):
            continue
        title = f'{file}: {name}' if name == '<module>' else name
        yield DifferingMethod(title, file if digest else '', first, last, UPSTREAM)


def main(argv: Sequence[str] | None = None) -> int:
    """Add the code of models to the table."""
    from mmdeploy_ext.families.bevfusion.fork import Fork, ForkProcess, root_of

    table: dict[str, Any] = json.loads(TABLE.read_text(encoding='utf-8')) if TABLE.is_file() else {}
    for config in sys.argv[1:] if argv is None else argv:
        cfg = load_config(config)
        process = ForkProcess(Fork(str(root_of(config)), cfg._cfg_dict.to_dict()))
        for file, names in process.facts['sources'].items():
            for name, (digest, _, _) in names.items():
                hashes = table.setdefault(file, {}).setdefault(name, [])
                if digest[:DIGITS] not in hashes:
                    hashes.append(digest[:DIGITS])
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + '\n', encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
