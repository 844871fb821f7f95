"""Counts the configs of an mmdet 3 that are translated and built, by family, and why the others are refused.

    python -m dev.mmdet3_configs FOLDER [FOLDER ...] --json refusals.json

FOLDER is `.mim/configs` of an installed mmdet 3, or `mmdet/configs` of its repository (pure Python).
"""

import argparse
import collections
import dataclasses
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path
from typing import Any

from mmdeploy_ext.base.errors import Mm2OnnxError
from mmdeploy_ext.upstream import compat


@dataclasses.dataclass(frozen=True)
class Translation:
    """A config's family and task, such as `dense bbox2d`, or why it is refused, without the file's name."""

    family: str = ''
    reason: str = ''


def translations_of(root: Path, files: list[Path]) -> dict[str, Translation]:
    """Translate and build configs; the keys are files below `root`."""
    from mmdeploy_ext.families.base import find_family
    from mmdeploy_ext.upstream.weights.convert.mmdet3_config import read_mmdet3_config, to_mmdet2_config

    translations = {}
    for file in files:
        try:
            cfg = to_mmdet2_config(read_mmdet3_config(file))
            family = find_family(cfg)
            translation = Translation(family=f'{family.name} {family.task}')
        except Mm2OnnxError as error:
            reason = str(error).replace(f'{file}: ', '').replace(f'{root}{os.sep}', '')
            translation = Translation(reason=reason)
        translations[str(file.relative_to(root))] = translation
    return translations


def by_reason(translations: dict[str, Translation]) -> list[dict[str, Any]]:
    """Refused configs by the text before an advice, most configs first."""
    files = collections.defaultdict(list)
    for file, translation in translations.items():
        if translation.reason:
            files[re.split(r'; |: expected|; expected', translation.reason)[0]].append(file)
    rows = [dict(reason=reason, count=len(names), configs=names) for reason, names in files.items()]
    return sorted(rows, key=lambda row: -row['count'])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('folders', nargs='+', type=Path)
    parser.add_argument('--kinds', nargs='*', help='folders of configs, such as rtmdet; default: all')
    parser.add_argument('--json', type=Path)
    args = parser.parse_args()
    compat.apply()
    context, counts = multiprocessing.get_context('fork'), []
    for root in args.folders:
        kinds = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != '_base_')
        translations: dict[str, Translation] = {}
        for kind in args.kinds or kinds:
            files = sorted(path for path in (root / kind).rglob('*.py') if '_base_' not in path.parts)
            with context.Pool(1) as process:
                found = process.apply(translations_of, (root, files))
            translations |= found
            translated = sum(not one.reason for one in found.values())
            print(f'{kind}: {translated} of {len(found)}', file=sys.stderr, flush=True)
        families = collections.Counter(one.family for one in translations.values() if one.family)
        translated = families.total()
        refused = by_reason(translations)
        count = dict(configs=len(translations), translated=translated, families=families, refused=refused)
        counts.append(count)
        print(f'{root}: {translated} of {len(translations)} configs are translated and built')
    if args.json:
        args.json.write_text(json.dumps(counts, indent=1))


if __name__ == '__main__':
    main()
