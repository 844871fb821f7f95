"""Counts the configs of an mmdet 3 that are translated and built, and what the others are refused for.

    python -m dev.mmdet3_configs FOLDER [FOLDER ...] --json refusals.json

FOLDER is `.mim/configs` of an installed mmdet 3, or `mmdet/configs` of its repository (pure Python).
"""

import argparse
import collections
import json
import multiprocessing
import os
import re
import sys
from pathlib import Path
from typing import Any

from mmdeploy_ext import compat
from mmdeploy_ext.util.errors import Mm2OnnxError


def refusals_of(root: Path, files: list[Path]) -> dict[str, str]:
    """Translate and build configs; return file -> '' or why it is refused, without the file's name."""
    from mmdeploy_ext.weights.convert.mmdet3_config import read_mmdet3_config, to_mmdet2_config

    refusals = {}
    for file in files:
        reason = ''
        try:
            to_mmdet2_config(read_mmdet3_config(file))
        except Mm2OnnxError as error:
            reason = str(error).replace(f'{file}: ', '').replace(f'{root}{os.sep}', '')
        refusals[str(file.relative_to(root))] = reason
    return refusals


def by_reason(refusals: dict[str, str]) -> list[dict[str, Any]]:
    """Refused configs by the text before an advice, most configs first."""
    files = collections.defaultdict(list)
    for file, reason in refusals.items():
        if reason:
            files[re.split(r'; |: expected|; expected', reason)[0]].append(file)
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
        refusals: dict[str, str] = {}
        for kind in args.kinds or kinds:
            files = sorted(path for path in (root / kind).rglob('*.py') if '_base_' not in path.parts)
            with context.Pool(1) as process:
                found = process.apply(refusals_of, (root, files))
            refusals |= found
            translated = sum(not reason for reason in found.values())
            print(f'{kind}: {translated} of {len(found)}', file=sys.stderr, flush=True)
        translated = sum(not reason for reason in refusals.values())
        counts.append(dict(configs=len(refusals), translated=translated, refused=by_reason(refusals)))
        print(f'{root}: {translated} of {len(refusals)} configs are translated and built')
    if args.json:
        args.json.write_text(json.dumps(counts, indent=1))


if __name__ == '__main__':
    main()
