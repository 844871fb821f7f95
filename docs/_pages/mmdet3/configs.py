"""Count the configs of mmdet 3 that are translated: `python -m docs._pages.mmdet3.configs`.

The counts go into `docs/mmdet3.json`. A model counts as one of mmdet 2.28 where it is that of one of its
configs, key by key and but for what only training reads.
"""

from __future__ import annotations

import argparse
import collections
import json
import sys
from typing import TYPE_CHECKING, Any

from docs._pages.mmdet3.measure import DATA, configs3
from mmdeploy_ext.core import cli
from mmdeploy_ext.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

TRAINING = ('train_cfg', 'init_cfg', 'pretrained')


def plain(value: Any) -> Any:
    """Return a part of a config without what only training reads, and without empty entries."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key not in TRAINING}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def text(value: Any) -> str:
    """Return JSON by which parts of configs are equal or not."""
    return json.dumps(plain(value), sort_keys=True, default=repr)


def pipeline(cfg: Any) -> Any:
    """Return the test pipeline, or None."""
    from mmdeploy_ext.core.config import test_pipeline

    try:
        return test_pipeline(cfg)
    except ConfigError:
        return None


def configs_of_mmdet2() -> Iterator[Any]:
    """Yield the configs of mmdet 2.28 that have a model."""
    from mmdeploy_ext.core.config import load_config
    from mmdeploy_ext.zoo.configs import config_files

    for path in config_files(()):
        try:
            cfg = load_config(str(path))
        except ConfigError:
            continue
        if cfg.get('model'):
            yield cfg


def count() -> tuple[dict[str, int], list[str]]:
    """Return the counts, and what was refused with how often, the most frequent first."""
    from mmdeploy_ext.weights.convert.mmdet3_config import read_mmdet3_config, to_mmdet2_config
    from mmdeploy_ext.zoo.configs import config_files

    models = collections.defaultdict(set)
    for cfg in configs_of_mmdet2():
        models[text(cfg.model)].add(text(pipeline(cfg)))
    counts: collections.Counter[str] = collections.Counter()
    refused: collections.Counter[str] = collections.Counter()
    for path in config_files([str(configs3())]):
        counts['all'] += 1
        try:
            cfg = to_mmdet2_config(read_mmdet3_config(path))
        except ConfigError as error:
            refused[str(error).split(': ', 1)[-1].split(': ')[0][:110]] += 1
            continue
        counts['translated'] += 1
        same = models.get(text(cfg.model), ())
        counts['equal'] += bool(same)
        counts['pipelines'] += text(pipeline(cfg)) in same
    return dict(counts), [f'{number} {why}' for why, number in refused.most_common()]


def body(_: argparse.Namespace) -> int:
    """Count, print and keep."""
    from mmdeploy_ext import compat
    from mmdeploy_ext.core.files import read_json, write_json

    compat.apply()
    import mmdeploy_ext.families.mmdet_plugin  # noqa: F401

    counts, refused = count()
    print(json.dumps(counts), *refused, sep='\n')
    content = read_json(DATA) if DATA.is_file() else {}
    write_json(DATA, {**content, 'configs': counts})
    return 0


def main() -> int:
    """Run the command."""
    parser = cli.ArgumentParser(prog='python -m docs._pages.mmdet3.configs', description='Count configs.')
    cli.add_debug_option(parser)
    return cli.run(body, parser, None)


if __name__ == '__main__':
    sys.exit(main())
